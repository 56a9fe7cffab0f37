"""Repair photographs: fill the holes of an image with a trained network. See `python predict.py --help`."""

from __future__ import annotations

import argparse
import math
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from data.names import IMAGE_SUFFIXES, OUTPUT_FORMATS, list_images, other_pictures, tell_left_out
from evaluation.baselines import FILLS
from utils.arguments import DEFAULT_WEIGHTS, add_hole, path_argument, whole_number
from utils.errors import UserError, reports_user_errors
from utils.startup import import_torch

NETWORK = "network"  # the method that uses --model
_MASK = "_mask"  # suffix of a mask's stem: beach_mask.png belongs to beach.jpg
_RESULT = "_inpainted"  # suffix of the stem of a repaired image, or of the name of its folder


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    for folder in (path for path in dict.fromkeys([args.image, args.mask]) if path.is_dir()):
        tell_left_out(folder, other_pictures(folder))
    pairs = pair_up(args.image, args.mask, args.output, args.format)
    if args.model.is_dir():
        raise UserError(f"--model: a folder; name the file in it, as {args.model}/weights.safetensors")
    if not args.model.is_file():
        raise UserError(f"--model: no such file: {args.model}")
    inputs = [*images_of(args.image, "--image"), *images_of(args.mask, "--mask"), args.model]
    refuse_to_overwrite([output for _, _, output in pairs], inputs)

    import_torch()
    from repair import How, fill_of, repair_files

    how = How(args.hole, args.grow, args.raw)
    return repair_files(pairs, args.mask, fill_of(args.method, args.model, args.device, args.scale), how)


def pair_up(
    image: Path, mask: Path, output: Path | None, format: str | None = None
) -> list[tuple[Path, list[Path], Path]]:
    """Return (image, candidate masks, output) per image. Raises UserError if names are ambiguous or files are missing.

    The candidates are the one mask given, or the masks in the folder with the image's stem, or else with that stem and
    `_mask`. There should be exactly one. Stems are compared in Unicode normal form C: a disk may store é in two ways.
    """
    images, masks = _without_results(images_of(image, "--image")), images_of(mask, "--mask")
    if image.is_dir() and mask.is_dir() and image.samefile(mask):
        images, masks = _split(images, mask)
    by_stem: dict[str, list[Path]] = {}
    for path in masks:
        by_stem.setdefault(_stem(path), []).append(path)
    pairs = []
    taken: dict[Path, Path] = {}
    for path in images:
        target = output_path(path, image, output, format)
        if target in taken:
            raise UserError(f"--image: {taken[target]} and {path} would both become {target}; rename one of them")
        taken[target] = path
        stem = _stem(path)
        candidates = masks
        if mask.is_dir():  # it may also contain the image
            named_alike = by_stem.get(stem, [])
            others = [other for other in named_alike if not path.samefile(other)]
            candidates = others or by_stem.get(stem + _MASK, []) or named_alike
        if any(path.samefile(candidate) for candidate in candidates):
            raise UserError(f"--mask: {path} is the image itself; name the mask that shows where its hole is")
        pairs.append((path, candidates, target))
    return pairs


def _split(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[Path]]:
    """Split the files of one folder into images and masks. A mask's stem is that of another file and `_mask`."""
    stems = {_stem(path) for path in files}
    masks = [path for path in files if _stem(path).endswith(_MASK) and _stem(path).removesuffix(_MASK) in stems]
    if not masks:
        raise UserError(
            f"--mask: {folder} is the folder of the images, and each would be its own mask; name the folder of the"
            " masks, or call the mask of beach.jpg beach_mask.png"
        )
    return [path for path in files if path not in masks], masks


def _without_results(images: list[Path]) -> list[Path]:
    """Drop earlier results, such as beach_inpainted.png beside beach.jpg, and report them in a line on stderr."""
    stems = {_stem(path) for path in images}
    results = {path for path in images if _stem(path).endswith(_RESULT) and _stem(path).removesuffix(_RESULT) in stems}
    if results:
        print(f"left out: {len(results)} earlier results, such as {min(results)}", file=sys.stderr)
    return [path for path in images if path not in results]


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)


def images_of(path: Path, option: str) -> list[Path]:
    """Return the images of an option: one file, or all in a folder. Raises UserError if there are none."""
    if not path.exists():
        raise UserError(f"{option}: no such file or folder: {path}")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{option}: must be a file or a folder, not a pipe or a device: {path}")
    images = list_images(path) if path.is_dir() else [path]
    if not images:
        raise UserError(f"{option}: no images ({', '.join(IMAGE_SUFFIXES)}) in the folder {path}")
    return images


def output_path(path: Path, source: Path, output: Path | None, format: str | None = None) -> Path:
    """Return the path of a repaired image: from --output, else beside the image or the folder of images.

    path: the image. source: the argument of --image, the image or its folder. output: the argument of --output.
    format: png (default), jpg, webp or tif. Raises UserError if --output does not fit them.
    """
    suffix = f".{format or 'png'}"
    names_image = output is not None and output.suffix.lower() in OUTPUT_FORMATS and not output.is_dir()
    if source.is_dir():
        if names_image or (output is not None and output.is_file()):
            raise UserError(f"--output: must be a folder, as --image is one: {output}")
        here = Path(os.path.abspath(source))  # gives `.` and `..` a name
        return (output or here.parent / f"{here.name}{_RESULT}") / f"{path.stem}{suffix}"
    if output is None or output.is_dir():
        return (output or path.parent) / f"{path.stem}{_RESULT}{suffix}"
    if names_image and format and OUTPUT_FORMATS[output.suffix.lower()] != OUTPUT_FORMATS[suffix]:
        raise UserError(f"--format {format} contradicts --output {output}; leave one of them out")
    if not names_image:
        raise UserError(f"--output: must end in {', '.join(OUTPUT_FORMATS)}, or be an existing folder: {output}")
    return output


def refuse_to_overwrite(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise UserError if an output is a folder or, by any path or link, an input of the run."""
    files = {_identity(path) for path in inputs}
    for output in outputs:
        if output.is_dir():
            raise UserError(f"--output: the file to write is an existing folder: {output}; name another file")
        if output.exists() and _identity(output) in files:
            raise UserError(f"--output: {output} is an input of this run and would be overwritten; name another file")


def _identity(path: Path) -> tuple[int, int]:
    """Return an identity of a file that does not depend on its path."""
    status = path.stat()
    return status.st_dev, status.st_ino


def scale_argument(text: str) -> float | None:
    """Parse --scale: None for auto, or a finite number >= 1."""
    if text == "auto":
        return None
    scale = float(text)
    if not 1 <= scale < math.inf:
        raise argparse.ArgumentTypeError(f"must be auto or a number of at least 1, got {text}")
    return scale


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Repair photographs: fill the holes of an image that a mask of the same size marks.",
        epilog="example: python predict.py --image photo.jpg --mask mask.png --model runs/demo/weights.safetensors;"
        " without --model the shipped weights are used",
    )
    parser.add_argument(
        "--image", type=path_argument, required=True, metavar="IMG", help="an image, or a folder of images"
    )
    parser.add_argument(
        "--mask",
        type=path_argument,
        required=True,
        metavar="MASK",
        help="its mask, also one for all images; or a folder of masks named like the images, or like beach_mask.png",
    )
    parser.add_argument(
        "--model",
        type=path_argument,
        metavar="CKPT",
        help="a checkpoint or weights file (default: the shipped weights)",
    )
    parser.add_argument(
        "--method", choices=(NETWORK, *FILLS), default=NETWORK, help="the network (default) or a classical method"
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="PATH",
        help="image or folder to write (default: IMG_inpainted.png beside the image, or IMG_inpainted/ beside the"
        " folder); .png, .webp and .tif keep valid pixels unchanged, .jpg does not",
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpg", "webp", "tif"),
        help="format of the results, unless --output names a file (default: png)",
    )
    add_hole(parser)
    parser.add_argument(
        "--grow",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="grow the hole by N px first, to cover a soft edge (default: 0)",
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (default: auto)"
    )
    parser.add_argument(
        "--scale",
        type=scale_argument,
        metavar="S",
        help="fill the deep part of a hole on a reduced picture first: deeper than a quarter of the holes in the"
        " network's training (auto, the default), as if the hole was S times smaller (above 1), or not at all (1)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="write the network's output for valid pixels too, instead of the image's"
    )
    args = parser.parse_args(argv)
    if args.model and args.method != NETWORK:
        parser.error(f"--method {args.method} needs no network: leave out --model")
    args.model = args.model or DEFAULT_WEIGHTS
    return args


if __name__ == "__main__":
    sys.exit(main())
