"""Mask files and hole ratios.

Inside the project a mask is 1 where the image is valid and 0 in the hole. In files either colour may be
the hole, or alpha; `read_mask` is the only place that knows which.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from data.images import open_image, to_8_bit, upright
from utils.errors import UserError

# Hole-to-image ratios of the paper's test set: the bin is (low, high].
HOLE_BINS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))

# Half of the test set's masks keep their holes away from the image's edge ("free"), half need not ("any").
BORDERS = ("free", "any")

# Beside the masks of a test set: file, ratio, bin, border in px; 0 where the holes may lie anywhere.
INDEX = "index.csv"

# A row less the row above is mostly zeros, and zlib looks for runs alone: half of the bytes of OpenCV's default.
_ONE_BIT_PNG = (
    *(cv2.IMWRITE_PNG_BILEVEL, 1),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
)
# How a PNG begins; and where its header says how many bits and which kind of colour: 1 and grey.
_PNG, _ONE_BIT_GREY = b"\x89PNG\r\n\x1a\n", b"\1\0"

# A grey level this far from both black and white is no noise (JPEG rings by less around an edge).
_NOISE = 32
# A larger share of such levels is a photograph, or a mask in colours.
_MOST_BETWEEN = 0.05
# How far from a hole's colour a channel may be, of 255.
_NEAR = 48


class ReadMask(NamedTuple):
    """What a mask file holds."""

    valid: np.ndarray  # uint8 (H,W), 1 = valid, 0 = hole
    between: float  # share of the pixels that are neither near black nor near white
    by_alpha: bool  # whether it is the file's alpha channel


def hole_ratio(mask: np.ndarray) -> float:
    """Share of hole pixels of a mask (H,W), 0 = hole."""
    return 1.0 - np.count_nonzero(mask) / mask.size


def hole_bin(ratio: float) -> int | None:
    """Index into HOLE_BINS of a hole ratio; None outside of all bins."""
    for index, (low, high) in enumerate(HOLE_BINS):
        if low < ratio <= high:
            return index
    return None


def bin_name(index: int) -> str:
    """A bin of HOLE_BINS as text, such as "0.01-0.1"."""
    low, high = HOLE_BINS[index]
    return f"{low:g}-{high:g}"


def border_width(size: int) -> int:
    """What border-free holes keep from the edge of an image of this size, in px: 50 of 512 (paper §4.1)."""
    return math.ceil(50 / 512 * size)


def keeps_border(mask: np.ndarray) -> bool:
    """Whether all holes of a mask (H,W), 0 = hole, keep clear of the image's edge."""
    wide = border_width(min(mask.shape))
    inner = mask[wide:-wide, wide:-wide]
    return np.count_nonzero(mask == 0) == np.count_nonzero(inner == 0)


def read_mask(path: str | Path, hole: str, data: bytes | None = None) -> ReadMask:
    """Read a mask file whose holes are `hole`: "black", "white" or a colour such as "#ff0000".

    data: the file's bytes, where they are in memory.
    Where alpha varies, alpha is the mask: transparent counts as black, opaque as white, whatever the colours are.
    Of two grey levels the lower is black; of more they are cut at half. A colour takes what is near it.
    UserError where the file can't be read, or is no mask: more than 5 % of it is neither black nor white.
    """
    image = upright(open_image(path, data))
    if hole not in ("black", "white"):
        return ReadMask(_far_from(hole, image).view(np.uint8), 0.0, False)
    alpha = _varying_alpha(image)
    grey = np.asarray(to_8_bit(image).convert("L")) if alpha is None else alpha
    counts = np.bincount(grey.ravel(), minlength=256)
    cut, between = 128, float(counts[_NOISE : 256 - _NOISE].sum()) / grey.size
    levels = np.flatnonzero(counts)
    if len(levels) == 2 and levels[1] - levels[0] >= _NOISE:
        cut, between = int(levels[1]), 0.0
    if between > _MOST_BETWEEN and len(levels) > 2:
        what = "its alpha channel" if alpha is not None else "it"
        raise UserError(
            f"{path} is no mask: {100 * between:.0f} % of {what} is neither black nor white, and at most"
            f" {100 * _MOST_BETWEEN:.0f} % may be. Export the mask from the editor as a PNG of its own, black and white"
            " without soft edges, or the photograph with the hole made transparent; a hole painted in one colour is"
            " read by --hole-colour '#rrggbb'"
        )
    valid = grey >= cut if hole == "black" else grey < cut
    return ReadMask(valid.view(np.uint8), between, alpha is not None)


def read_mask_alone(path: str | Path, hole: str) -> np.ndarray:
    """The mask as `read_mask` reads it, uint8 (H,W); one of masks.py in less than half of the time."""
    grey = _read_1_bit_png(path) if hole in ("black", "white") else None
    if grey is None:
        return read_mask(path, hole).valid
    return (grey > 127 if hole == "black" else grey <= 127).view(np.uint8)


def _read_1_bit_png(path: str | Path) -> np.ndarray | None:
    """A PNG of one bit of grey, without alpha, as write_mask writes it: uint8 (H,W), 0 or 255, by OpenCV.

    None for any other file and for a damaged one: read_mask reads the one and says what is wrong with the other.
    """
    try:
        file = Path(path).read_bytes()
    except OSError:
        return None
    if file[:8] != _PNG or file[24:26] != _ONE_BIT_GREY or b"tRNS" in file or b"eXIf" in file:
        return None
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)


def alpha_note(hole: str) -> str:
    """Says which side of an alpha channel is the hole."""
    side, other, option = ("transparent", "opaque", "white") if hole == "black" else ("opaque", "transparent", "black")
    return f"alpha is the mask, {side} parts are the hole ({other} ones: --hole {option})"


def _varying_alpha(image: Image.Image) -> np.ndarray | None:
    """Alpha, uint8 (H,W), with its range stretched from 0 to 255. None where there is none, or it says nothing."""
    if not image.has_transparency_data or image.mode.startswith("I"):
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    low, high = int(alpha.min()), int(alpha.max())
    if high - low < _NOISE:
        return None
    return ((alpha.astype(np.int32) - low) * 255 // (high - low)).astype(np.uint8)


def _far_from(colour: str, image: Image.Image) -> np.ndarray:
    """Where an image is not of this colour, "#rrggbb", or is transparent: bool (H,W)."""
    pixels = np.asarray(to_8_bit(image).convert("RGBA")).astype(np.int16)
    distance = np.abs(pixels[..., :3] - np.array(list(bytes.fromhex(colour[1:])), np.int16)).max(axis=2)
    return (distance > _NEAR) | (pixels[..., 3] < 128)


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask (H,W), 0 = hole, with its holes grown by so many px in every direction: uint8 of 0 and 1."""
    valid = (mask != 0).astype(np.uint8)
    if pixels <= 0 or valid.all():
        return valid
    # The distance of a pixel to the nearest of the hole, centre to centre.
    return (cv2.distanceTransform(valid, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > pixels).view(np.uint8)


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask (H,W), nonzero = valid, as a PNG of 1 bit a pixel: holes black, valid white."""
    pixels = (mask != 0).astype(np.uint8) * 255
    done, data = cv2.imencode(".png", pixels, _ONE_BIT_PNG)
    if not done:
        raise ValueError(f"OpenCV can't write a mask of {pixels.shape[1]}×{pixels.shape[0]} px as PNG")
    Path(path).write_bytes(data.tobytes())
