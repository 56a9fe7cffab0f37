"""Repair photographs: fill the holes of an image with a trained network. `python predict.py --help` says how."""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.arguments import path_argument
from utils.errors import UserError, reports_user_errors
from utils.startup import import_torch

if TYPE_CHECKING:  # torch takes seconds to import: --help and argument errors are answered before
    import numpy as np
    from torch import Tensor

    from data.photo import Photo
    from model import PConvUNet
    from utils.config import HoleColour

    Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]

# A mask with more hole than this was probably meant the other way round.
_MOSTLY_HOLE = 0.6
# A mask with more grey than this is worth a warning.
_MUCH_GREY = 0.01
# A hole with a larger share of transparent pixels hides its repair.
_MOSTLY_HIDDEN = 0.5


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
    from tqdm import tqdm

    from model import load_for_prediction
    from utils.processes import pick_device

    model = load_for_prediction(args.model, pick_device(args.device))
    failed = 0
    bar = tqdm(pairs, unit="image", disable=len(pairs) == 1)
    for image, masks, output in bar:
        try:
            report = repair(model, image, the_mask(masks, image, args.mask), output, args.hole, args.raw)
        except (UserError, OSError) as error:
            failed += 1
            warn(f"error: {error}")
        else:
            bar.write(report)
    if failed and len(pairs) > 1:
        warn(f"{failed} of {len(pairs)} images failed")
    return 1 if failed else 0


def repair(model: PConvUNet, image: Path, mask: Path, output: Path, hole: HoleColour, raw: bool) -> str:
    """Repair one image file; returns a line that says what was done. UserError where it can't be."""
    from data.mask_files import hole_ratio
    from data.photo import check_keeps, read_photo, write_photo

    photo = read_photo(image)
    check_keeps(output, photo)
    valid = read_checked_mask(mask, hole)
    check_size(valid, mask, photo, image)
    write_photo(fill_photo(functools.partial(predict_pixels, model), photo, valid, image, raw), output)
    if output.suffix.lower() in (".jpg", ".jpeg"):
        warn(f"warning: JPEG changes valid pixels a little, too: {output}; name it .png to keep them")
    return f"{output}: {_px(valid.shape)}, {100 * hole_ratio(valid):.1f} % of it hole" + (", raw" if raw else "")


def fill_photo(fill: Fill, photo: Photo, valid: np.ndarray, image: Path, raw: bool = False) -> Photo:
    """The photograph with its hole filled; with `raw` all of it is what `fill` made.

    fill: from rgb (H,W,3), float32 in [0,1], and mask (H,W), 1 = valid, 0 = hole, to the filled (H,W,3). valid: the
    mask, of the photograph's size as shown. image: its name in messages. UserError where it can't be filled.
    """
    import numpy as np

    visible = photo.visible()
    hidden = 1 - visible[valid == 0].mean()
    if hidden > _MOSTLY_HIDDEN:
        warn(f"hint: {100 * hidden:.0f} % of the hole is fully transparent in {image} and stays so, as alpha is kept")
    seen = valid * visible  # colours that nobody sees are nothing to go by: for the network they are hole, too
    if not seen.any():
        raise UserError(f"image {image} is fully transparent outside the hole; nothing is left to fill it from")
    try:
        result = fill(photo.rgb(), seen)
    except (MemoryError, RuntimeError) as error:  # on a CPU torch raises a plain RuntimeError
        if "memory" in str(error) or isinstance(error, MemoryError):
            raise UserError(f"not enough memory for image {image} of {_px(valid.shape)}; make it smaller") from None
        raise
    return photo.filled(result, np.zeros_like(valid) if raw else valid)


def predict_pixels(model: PConvUNet, rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """predict_whole for arrays: rgb (H,W,3) float32 in [0,1], mask (H,W) 0/1; returns (H,W,3)."""
    import torch

    from model import predict_whole

    image_tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None]  # (1,3,H,W)
    mask_tensor = torch.from_numpy(mask).float()[None, None]  # (1,1,H,W)
    return predict_whole(model, image_tensor, mask_tensor)[0].permute(1, 2, 0).numpy()


def read_checked_mask(path: Path, hole: HoleColour, data: bytes | None = None) -> np.ndarray:
    """The mask, uint8 (H,W), 1 = valid, 0 = hole. Warns of a doubtful one on stderr. data: the file's bytes, if read.

    UserError where it can't be read, or has nothing to fill or nothing to fill it from.
    """
    from data.mask_files import hole_ratio, read_mask

    mask, between = read_mask(path, hole, data)
    other = "white" if hole == "black" else "black"
    advice = f"if its holes are {other}, add --hole {other}"
    ratio = hole_ratio(mask)
    if ratio == 0:
        raise UserError(f"mask {path} has no {hole} pixel, so no hole; {advice}")
    if ratio == 1:  # so is a mask of 0 and 1 instead of 0 and 255
        raise UserError(f"mask {path} is all hole ({hole}): none of its pixels is nearer to {other}; {advice}")
    if between > _MUCH_GREY:
        warn(f"warning: {100 * between:.1f} % of mask {path} is neither black nor white; cut at half")
    if ratio > _MOSTLY_HOLE:
        warn(f"hint: {100 * ratio:.0f} % of mask {path} is hole ({hole}); {advice}")
    return mask


def check_size(valid: np.ndarray, mask: Path, photo: Photo, image: Path) -> None:
    """UserError unless the mask is as large as the photograph is when upright."""
    size, wanted = valid.shape, photo.visible().shape
    if size == wanted:
        return
    message = f"mask {mask} is {_px(size)} and image {image} is {_px(wanted)}; they must be of one size"
    if size == wanted[::-1]:
        message += " as viewers show them, turned as EXIF asks"
    if size == photo.pixels.shape[:2]:
        message += f"; the mask fits the stored pixels, which EXIF orientation {photo.orientation} turns: turn it, too"
    raise UserError(message)


def _px(size: tuple[int, ...]) -> str:
    return f"{size[1]}×{size[0]} px"


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
    from data.images import IMAGE_SUFFIXES, list_images

    if not path.exists():
        raise UserError(f"{option}: no such file or folder: {path}")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{option}: must be a file or a folder, not a pipe or a device: {path}")
    images = list_images(path) if path.is_dir() else [path]
    if not images:
        raise UserError(f"{option}: no images ({', '.join(IMAGE_SUFFIXES)}) in the folder {path}")
    return images


def the_mask(candidates: Sequence[Path], image: Path, source: Path) -> Path:
    """The one candidate. UserError where there is none or a choice."""
    if len(candidates) != 1:
        found = " and ".join(path.name for path in candidates) or "none"
        raise UserError(f"image {image} needs one mask named {image.stem}.* in {source}; found {found}")
    return candidates[0]


def output_path(path: Path, source: Path, output: Path | None) -> Path:
    """Where a repaired image goes: as --output says, else beside the image or the folder of images.

    path: the image; source: what --image names, the image itself or its folder.
    """
    from data.images import OUTPUT_FORMATS

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


def warn(line: str) -> None:
    """Write a line to stderr, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


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
    parser.add_argument("--hole", choices=("black", "white"), default="black", help="colour of the hole (black)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (auto)")
    parser.add_argument("--raw", action="store_true", help="write what the network makes of the valid part too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
