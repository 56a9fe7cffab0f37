"""Repair photographs: fill the holes of an image with a trained network. `python predict.py --help` says how."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, reports_user_errors

if TYPE_CHECKING:  # torch takes seconds to import: --help and argument errors are answered before
    import numpy as np
    from torch import Tensor

    from model import PConvUNet
    from utils.masks import HoleColour

# A mask with more hole than this was probably meant the other way round.
_MOSTLY_HOLE = 0.6
# A mask with more grey than this is worth a warning.
_MUCH_GREY = 0.01


def inpaint(model: PConvUNet, image: Tensor, mask: Tensor) -> Tensor:
    """Fill the holes of images of any height and width; returns the composite (N,3,H,W) in [0,1].

    image: (N,3,H,W) in [0,1]; what lies in a hole never matters. mask: (N,1,H,W), 1 = valid, 0 = hole.
    Valid pixels come back bit for bit. The model runs on its own device in evaluation mode; the result lies
    on the image's device. ValueError where shapes do not fit.
    """
    from utils.composite import composite

    return composite(image, predict_whole(model, image, mask), mask)


def predict_whole(model: PConvUNet, image: Tensor, mask: Tensor) -> Tensor:
    """What the network makes of the whole picture, valid part too: (N,3,H,W) in [0,1]. Arguments as of inpaint."""
    import torch
    from torch.nn import functional as F

    device = next(model.parameters()).device
    height, width = image.shape[-2:]
    multiple = 2**model.depth
    # Padding with mask 0 is simply a hole: outside the image the layer sees nothing either.
    padding = (0, -width % multiple, 0, -height % multiple)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(F.pad(image, padding).to(device), F.pad(mask, padding).to(device))
    finally:
        model.train(was_training)
    return output[..., :height, :width].clamp(0, 1).to(image)


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    pairs = pair_up(args.image, args.mask, args.output)

    from tqdm import tqdm

    from model import load_model
    from utils.device import pick_device

    model = load_model(args.model, pick_device(args.device))
    failed = 0
    bar = tqdm(pairs, unit="image", disable=len(pairs) == 1)
    for image, mask, output in bar:
        try:
            if mask is None:
                raise UserError(f"no mask for {image}: {args.mask} has no image named {image.stem}.*")
            refuse_to_overwrite(output, [image, mask, args.model])
            bar.write(repair(model, image, mask, output, args.hole, args.raw))
        except (UserError, OSError) as error:
            failed += 1
            bar.write(f"error: {error}", file=sys.stderr)
    if failed and len(pairs) > 1:
        print(f"{failed} of {len(pairs)} images failed", file=sys.stderr)
    return 1 if failed else 0


def repair(model: PConvUNet, image: Path, mask: Path, output: Path, hole: HoleColour, raw: bool) -> str:
    """Repair one image file; returns a line that says what was done. UserError where it can't be."""
    import numpy as np
    import torch

    from utils.masks import hole_ratio
    from utils.photo import read_photo, write_photo

    photo = read_photo(image)
    pixels = photo.rgb()  # (H,W,3)
    valid = read_fitting_mask(mask, hole, image, pixels.shape[:2])
    image_tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1,3,H,W)
    mask_tensor = torch.from_numpy(valid).float()[None, None]  # (1,1,H,W)
    fill = predict_whole if raw else inpaint
    result = fill(model, image_tensor, mask_tensor)[0].permute(1, 2, 0).numpy()
    write_photo(photo.filled(result, np.zeros_like(valid) if raw else valid), output)
    height, width = valid.shape
    return f"{output}: {width}×{height} px, {100 * hole_ratio(valid):.1f} % of it hole" + (", raw" if raw else "")


def read_fitting_mask(path: Path, hole: HoleColour, image: Path, size: tuple[int, int]) -> np.ndarray:
    """The mask, uint8 (H,W), for an image of `size` (height, width). Warns of a doubtful one on stderr.

    UserError where it can't be read, is of another size, or has nothing to fill or nothing to fill it from.
    """
    from utils.masks import hole_ratio, read_mask

    mask, between = read_mask(path, hole)
    other = "white" if hole == "black" else "black"
    if mask.shape != size:
        raise UserError(
            f"mask {path} is {mask.shape[1]}×{mask.shape[0]} px and image {image} is {size[1]}×{size[0]} px as a viewer"
            " shows it; they must be of one size"
        )
    ratio = hole_ratio(mask)
    if ratio == 0:
        raise UserError(f"mask {path} has no {hole} pixel, so no hole; if its holes are {other}, add --hole {other}")
    if ratio == 1:
        raise UserError(f"mask {path} is all hole ({hole}); if its holes are {other}, add --hole {other}")
    if between > _MUCH_GREY:
        print(f"warning: {100 * between:.1f} % of mask {path} is neither black nor white; cut at half", file=sys.stderr)
    if ratio > _MOSTLY_HOLE:
        hint = f"if its holes are {other}, add --hole {other}"
        print(f"hint: {100 * ratio:.0f} % of mask {path} is hole ({hole}); {hint}", file=sys.stderr)
    return mask


def pair_up(image: Path, mask: Path, output: Path | None) -> list[tuple[Path, Path | None, Path]]:
    """(image, mask, output) of every image: one, or all of a folder, with the mask of its stem or one for all.

    The mask is None where a folder of masks has none of that stem. UserError where there is nothing to do.
    """
    from utils.images import list_images

    for option, path in (("--image", image), ("--mask", mask)):
        if not path.exists():
            raise UserError(f"{option}: no such file or folder: {path}")
    folder = image.is_dir()
    images = list_images(image) if folder else [image]
    if not images:
        raise UserError(f"--image: no images in the folder {image}")
    if folder and output is not None and output.exists() and not output.is_dir():
        raise UserError(f"--output: must be a folder for a folder of images, and is a file: {output}")
    masks = {path.stem: path for path in list_images(mask)} if mask.is_dir() else None
    pairs = []
    taken: dict[Path, Path] = {}
    for path in images:
        target = _output_path(path, image, output)
        if target in taken:
            raise UserError(f"--image: {taken[target]} and {path} would both become {target}; rename one of them")
        taken[target] = path
        pairs.append((path, mask if masks is None else masks.get(path.stem), target))
    return pairs


def _output_path(path: Path, source: Path, output: Path | None) -> Path:
    """Where the repaired image goes: as --output says, else beside the image or the folder of images."""
    if source.is_dir():
        return (output or source.resolve().with_name(f"{source.resolve().name}_inpainted")) / f"{path.stem}.png"
    if output is not None and not output.is_dir():
        return output
    return (output or path.parent) / f"{path.stem}_inpainted.png"


def refuse_to_overwrite(output: Path, inputs: Sequence[Path]) -> None:
    """UserError where the output is one of the inputs or can't be an image. Makes its folder."""
    from utils.photo import check_output

    check_output(output)
    if output.is_dir():
        raise UserError(f"--output: a folder of this name is in the way: {output}")
    for path in inputs:
        if output.exists() and output.samefile(path):
            raise UserError(f"--output: {output} is an input and would be lost; give another name")
    output.parent.mkdir(parents=True, exist_ok=True)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Repair photographs: fill the holes of an image, which a mask of the same size shows.",
        epilog="example: python predict.py --image photo.jpg --mask mask.png --model runs/demo/weights.safetensors",
    )
    parser.add_argument("--image", type=Path, required=True, metavar="IMG", help="an image, or a folder of images")
    parser.add_argument(
        "--mask", type=Path, required=True, metavar="MASK", help="its mask, or a folder of masks with the images' names"
    )
    parser.add_argument("--model", type=Path, required=True, metavar="CKPT", help="a checkpoint or a weights file")
    parser.add_argument(
        "--output",
        type=Path,
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
