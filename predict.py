"""Repair photographs: fill the holes of an image with a trained network. `python predict.py --help` says how."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.names import IMAGE_SUFFIXES, OUTPUT_FORMATS, list_images
from utils.arguments import add_hole, path_argument
from utils.errors import UserError, reports_user_errors
from utils.startup import import_torch

if TYPE_CHECKING:
    from torch import Tensor

    from model import PConvUNet


def inpaint(model: PConvUNet, image: Tensor, mask: Tensor) -> Tensor:
    """`model.inpaint`: fill the holes of images (N,3,H,W) in [0,1] of any size; mask (N,1,H,W), 1 = valid, 0 = hole."""
    from model import inpaint as fill

    return fill(model, image, mask)


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be valid in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    pairs = pair_up(args.image, args.mask, args.output)
    if not args.model.is_file():
        raise UserError(f"--model: no such file: {args.model}")
    inputs = [*images_of(args.image, "--image"), *images_of(args.mask, "--mask"), args.model]
    refuse_to_overwrite([output for _, _, output in pairs], inputs)

    import_torch()
    from repair import repair_files

    return repair_files(pairs, args.mask, args.model, args.device, args.hole, args.raw)


def pair_up(image: Path, mask: Path, output: Path | None) -> list[tuple[Path, list[Path], Path]]:
    """(image, masks, output) of every image, one or all of a folder. UserError where there is nothing to do.

    masks: the one for all, or those of the folder that have the image's stem; there should be exactly one.
    """
    images, masks = images_of(image, "--image"), images_of(mask, "--mask")
    by_stem: dict[str, list[Path]] = {}
    for path in masks:
        by_stem.setdefault(path.stem, []).append(path)
    pairs = []
    taken: dict[Path, Path] = {}
    for path in images:
        target = output_path(path, image, output)
        if target in taken:
            raise UserError(f"--image: {taken[target]} and {path} would both become {target}; rename one of them")
        taken[target] = path
        pairs.append((path, by_stem.get(path.stem, []) if mask.is_dir() else masks, target))
    return pairs


def images_of(path: Path, option: str) -> list[Path]:
    """The images that an option names: a file, or all of a folder. UserError where there are none."""
    if not path.exists():
        raise UserError(f"{option}: no such file or folder: {path}")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{option}: must be a file or a folder, not a pipe or a device: {path}")
    images = list_images(path) if path.is_dir() else [path]
    if not images:
        raise UserError(f"{option}: no images ({', '.join(IMAGE_SUFFIXES)}) in the folder {path}")
    return images


def output_path(path: Path, source: Path, output: Path | None) -> Path:
    """Where a repaired image goes: as --output says, else beside the image or the folder of images.

    path: the image; source: what --image names, the image itself or its folder.
    """
    names_image = output is not None and output.suffix.lower() in OUTPUT_FORMATS and not output.is_dir()
    if source.is_dir():
        if names_image or (output is not None and output.is_file()):
            raise UserError(f"--output: must be a folder, as --image is one: {output}")
        here = Path(os.path.abspath(source))  # `.` and `..` have names, too
        return (output or here.parent / f"{here.name}_inpainted") / f"{path.stem}.png"
    if output is None or output.is_dir():
        return (output or path.parent) / f"{path.stem}_inpainted.png"
    if not names_image:
        raise UserError(f"--output: must end in {', '.join(OUTPUT_FORMATS)}, or be a folder that exists: {output}")
    return output


def refuse_to_overwrite(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """UserError where an output is an input of the run, whatever path or link leads to it, or a folder."""
    files = {_identity(path) for path in inputs}
    for output in outputs:
        if output.is_dir():
            raise UserError(f"--output: a folder of this name is in the way: {output}")
        if output.exists() and _identity(output) in files:
            raise UserError(f"--output: {output} is an input of this run and would be lost; name another")


def _identity(path: Path) -> tuple[int, int]:
    """What tells one file from another, however it is named."""
    status = path.stat()
    return status.st_dev, status.st_ino


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Repair photographs: fill the holes of an image, which a mask of the same size shows.",
        epilog="example: python predict.py --image photo.jpg --mask mask.png --model runs/demo/weights.safetensors",
    )
    parser.add_argument(
        "--image", type=path_argument, required=True, metavar="IMG", help="an image, or a folder of images"
    )
    parser.add_argument(
        "--mask",
        type=path_argument,
        required=True,
        metavar="MASK",
        help="its mask, or a folder of masks of the same names",
    )
    parser.add_argument(
        "--model", type=path_argument, required=True, metavar="CKPT", help="a checkpoint or a weights file"
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="PATH",
        help="image to write, or folder (IMG_inpainted.png beside the image, or a folder beside the folder);"
        " .png, .webp and .tif keep valid pixels as they are, .jpg does not",
    )
    add_hole(parser)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (auto)")
    parser.add_argument("--raw", action="store_true", help="write what the network makes of the valid part too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
