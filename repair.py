"""Repair photographs: read an image file and its mask, fill the hole, write the result."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.mask_files import alpha_note, grow, hole_ratio, read_mask
from data.photo import WHOLE, Photo, Place, check_keeps, read_photo, write_photo
from evaluation import baselines
from model import PConvUNet, load_for_prediction
from model import inpaint as inpaint_holes
from model.octaves import OctaveFiller, trusted_radius
from model.regions import Box
from utils.errors import UserError
from utils.processes import pick_device

# (photograph, mask (H,W) with 0 = do not read, mask (H,W) with 0 = fill) -> parts that cover all pixels to fill. A part
# is rows and columns, and rgb (h,w,3), float32 in [0,1].
Fill = Callable[[Photo, np.ndarray, np.ndarray], Iterable[tuple[Place, np.ndarray]]]

# A mask with a larger share of hole is probably inverted: print a hint.
_MOSTLY_HOLE = 0.6
# A mask with a larger share of grey pixels gets a warning.
_MUCH_GREY = 0.01
# In a hole with a larger share of transparent pixels the repair is mostly invisible.
_MOSTLY_HIDDEN = 0.5
# Seconds per image before a progress bar appears.
_PATIENCE = 2


@dataclass(frozen=True)
class How:
    """Options of a repair."""

    hole: str = "black"  # colour of the hole in the masks, as in read_mask
    grow: int = 0  # px by which the hole grows
    raw: bool = False  # write the fill's output for valid pixels too


def fill_of(method: str, model: Path, device: str, scale: float | None = None) -> Fill:
    """Return the fill of a method, a baseline's name or "network".

    model, device, scale: only for the network. model is a checkpoint or weights file; scale is as in model.inpaint.
    """
    if method in baselines.FILLS:
        return functools.partial(fill_whole, baselines.FILLS[method])
    return functools.partial(fill_by_network, load_for_prediction(model, pick_device(device)), scale)


def repair_files(pairs: Sequence[tuple[Path, list[Path], Path]], masks: Path, fill: Fill, how: How) -> int:
    """Repair every (image, candidate masks, output). Returns the exit code: 1 if an image failed.

    masks: file or folder of the candidates, for messages.
    """
    failed = 0
    bar = tqdm(pairs, unit="image", disable=len(pairs) == 1)
    for image, candidates, output in bar:
        try:
            report = repair(fill, image, the_mask(candidates, image, masks), output, how)
        except (UserError, OSError) as error:
            failed += 1
            warn(f"error: {error}")
        else:
            bar.write(report)
    if failed and len(pairs) > 1:
        warn(f"{failed} of {len(pairs)} images failed")
    return 1 if failed else 0


def repair(fill: Fill, image: Path, mask: Path, output: Path, how: How) -> str:
    """Repair one image file and return a line that reports it. Raises UserError if that fails."""
    photo = read_photo(image)
    check_keeps(output, photo)
    valid = grow(read_checked_mask(mask, how.hole), how.grow)
    if not valid.any():
        raise UserError(
            f"--grow {how.grow}: the hole of mask {mask} grows over all of the image; nothing is left valid"
        )
    check_size(valid, mask, photo, image)
    write_photo(fill_photo(fill, photo, valid, image, how.raw), output)
    if output.suffix.lower() in (".jpg", ".jpeg"):
        warn(f"warning: JPEG changes valid pixels a little, too: {output}; name it .png to keep them")
    return f"{output}: {_px(valid.shape)}, {100 * hole_ratio(valid):.1f} % of it hole" + (", raw" if how.raw else "")


def fill_photo(fill: Fill, photo: Photo, valid: np.ndarray, image: Path, raw: bool = False) -> Photo:
    """Return the photograph with its hole filled. With `raw`, valid pixels come from `fill` too.

    valid: mask (H,W), 1 = valid, 0 = hole, of the photograph's upright size. image: its path, for messages.
    Raises UserError if nothing is left to fill from, or memory runs out.
    """
    visible = photo.visible()
    hidden = 1 - visible[valid == 0].mean()
    if hidden > _MOSTLY_HIDDEN:
        warn(f"hint: {100 * hidden:.0f} % of the hole is fully transparent in {image} and stays so, as alpha is kept")
    seen = valid * visible  # transparent pixels have arbitrary colours: the network treats them as hole
    if not seen.any():
        raise UserError(f"image {image} is fully transparent outside the hole; nothing is left to fill it from")
    to_fill = np.zeros_like(valid) if raw else valid
    try:
        return photo.filled(fill(photo, seen, to_fill), to_fill)
    except (MemoryError, RuntimeError) as error:  # on a CPU torch raises a plain RuntimeError
        if "memory" in str(error) or isinstance(error, MemoryError):
            raise UserError(f"not enough memory for image {image} of {_px(valid.shape)}; make it smaller") from None
        raise


def fill_whole(
    fill: baselines.Fill, photo: Photo, mask: np.ndarray, to_fill: np.ndarray
) -> Iterator[tuple[Place, np.ndarray]]:
    """A `Fill` that passes the full photograph to a classical method."""
    yield WHOLE, fill(photo.rgb(), mask)


def fill_by_network(
    model: PConvUNet, scale: float | None, photo: Photo, mask: np.ndarray, to_fill: np.ndarray
) -> Iterator[tuple[Place, np.ndarray]]:
    """A `Fill` that predicts only the parts of the photograph that it needs. After two seconds it shows a progress bar.

    scale: as in model.inpaint.
    """

    def read(box: Box) -> torch.Tensor:
        return torch.from_numpy(photo.rgb(box.slices[1:])).permute(2, 0, 1)[None]  # (1,3,h,w)

    valid, wanted = torch.from_numpy(mask > 0), torch.from_numpy(to_fill == 0)
    with tqdm(unit="part", delay=_PATIENCE, leave=False) as bar:
        filler = OctaveFiller(model, read, valid, wanted, trusted_radius(model, valid, scale), bar.update)
        bar.total = len(filler)
        for box, values in filler:
            yield box.slices[1:], values[0].permute(1, 2, 0).cpu().numpy()


def read_checked_mask(path: Path, hole: str, data: bytes | None = None) -> np.ndarray:
    """Read a mask, uint8 (H,W), 1 = valid, 0 = hole. Warns on stderr if it looks wrong.

    data: the file's bytes, if already read. Raises UserError if it cannot be read, or is all valid or all hole.
    """
    mask, between, by_alpha = read_mask(path, hole, data)
    if by_alpha:
        warn(f"mask {path}: {alpha_note(hole)}")
    other = "white" if hole == "black" else "black"
    advice = f"if its holes are {other}, add --hole {other}; if they have a colour, --hole-colour '#rrggbb'"
    if hole not in ("black", "white"):
        advice = "an image editor's colour picker shows the colour of its hole"
    ratio = hole_ratio(mask)
    if ratio == 0:
        raise UserError(f"mask {path} has no {hole} pixel, so no hole; {advice}")
    if ratio == 1:  # also a mask of 0 and 1 instead of 0 and 255
        raise UserError(
            f"mask {path} is all hole ({hole}): none of its pixels is nearer to {other}; {advice}"
            " (masks of 0 and 1 instead of 0 and 255 look the same: multiply them by 255)"
        )
    if between > _MUCH_GREY:
        warn(f"warning: {100 * between:.1f} % of mask {path} is neither black nor white; thresholded at half")
    if ratio > _MOSTLY_HOLE:
        warn(f"hint: {100 * ratio:.0f} % of mask {path} is hole ({hole}); {advice}")
    return mask


def check_size(valid: np.ndarray, mask: Path, photo: Photo, image: Path) -> None:
    """Raise UserError unless the mask has the upright size of the photograph."""
    size, wanted = valid.shape, photo.visible().shape
    if size == wanted:
        return
    message = f"mask {mask} is {_px(size)} and image {image} is {_px(wanted)}; they must have the same size"
    if size == wanted[::-1]:
        message += " as viewers show them, rotated according to EXIF"
    if size == photo.pixels.shape[:2]:
        message += (
            f"; the mask fits the stored pixels, which EXIF orientation {photo.orientation} rotates: rotate it too"
        )
    raise UserError(message)


def _px(size: tuple[int, ...]) -> str:
    return f"{size[1]}×{size[0]} px"


def the_mask(candidates: Sequence[Path], image: Path, source: Path) -> Path:
    """Return the only candidate. Raises UserError if there is not exactly one."""
    if len(candidates) != 1:
        found = " and ".join(path.name for path in candidates) or "none"
        raise UserError(
            f"image {image} needs one mask named {image.stem}.* or {image.stem}_mask.* in {source}; found {found}"
        )
    return candidates[0]


def warn(line: str) -> None:
    """Write a line to stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)


def inpaint(net: PConvUNet, image: Tensor, mask: Tensor, grow_by: int = 0) -> Tensor:
    """Fill the holes of images (N,3,H,W) in [0,1], of any size, by `model.inpaint`.

    mask: (N,1,H,W), 1 = valid, 0 = hole. grow_by: px by which the holes grow first, as --grow.
    """
    return inpaint_holes(net, image, grown(mask, grow_by))


def grown(mask: Tensor, pixels: int) -> Tensor:
    """Return the mask (N,1,H,W), 1 = valid, 0 = hole, with its holes grown by `pixels` px in every direction."""
    if pixels == 0:
        return mask
    return torch.stack([torch.from_numpy(grow(one.cpu().numpy(), pixels)) for one in mask[:, 0]])[:, None].to(mask)
