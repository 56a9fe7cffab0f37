"""Mask files and hole ratios.

In the code, a mask is 1 where the image is valid and 0 in the hole. In files either colour or alpha may mark the hole;
only `read_mask` handles this.
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

# Hole-to-image ratios of the paper's test set; each bin is (low, high].
HOLE_BINS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))

# Half of the test set's masks keep their holes away from the image's edge ("free"); the others need not ("any").
BORDERS = ("free", "any")

# Index of a test set's masks: file, ratio, bin, border in px; 0 if holes may be anywhere.
INDEX = "index.csv"

# A row minus the row above is mostly zeros, and zlib searches only for runs: half the bytes of OpenCV's default.
_ONE_BIT_PNG = (
    *(cv2.IMWRITE_PNG_BILEVEL, 1),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
)
# PNG signature, and the header's bit depth and colour type for 1-bit grey.
_PNG, _ONE_BIT_GREY = b"\x89PNG\r\n\x1a\n", b"\1\0"

# A grey level this far from black and white is not noise (JPEG artefacts at edges are smaller).
_NOISE = 32
# A larger share of such levels means a photograph or a coloured mask.
_MOST_BETWEEN = 0.05
# Maximum distance of a channel from the hole's colour, of 255.
_NEAR = 48


class ReadMask(NamedTuple):
    """Content of a mask file."""

    valid: np.ndarray  # uint8 (H,W), 1 = valid, 0 = hole
    between: float  # share of pixels that are neither near black nor near white
    by_alpha: bool  # whether it is the file's alpha channel


def hole_ratio(mask: np.ndarray) -> float:
    """Return the share of hole pixels in a mask (H,W), 0 = hole."""
    return 1.0 - np.count_nonzero(mask) / mask.size


def hole_bin(ratio: float) -> int | None:
    """Return the index of a hole ratio in HOLE_BINS; None outside all bins."""
    for index, (low, high) in enumerate(HOLE_BINS):
        if low < ratio <= high:
            return index
    return None


def bin_name(index: int) -> str:
    """Return a bin of HOLE_BINS as text, such as "0.01-0.1"."""
    low, high = HOLE_BINS[index]
    return f"{low:g}-{high:g}"


def border_width(size: int) -> int:
    """Return px between border-free holes and the edge of an image of this size: 50 of 512 (paper §4.1)."""
    return math.ceil(50 / 512 * size)


def keeps_border(mask: np.ndarray) -> bool:
    """Return whether all holes of a mask (H,W), 0 = hole, keep that distance from the image's edge."""
    wide = border_width(min(mask.shape))
    inner = mask[wide:-wide, wide:-wide]
    return np.count_nonzero(mask == 0) == np.count_nonzero(inner == 0)


def read_mask(path: str | Path, hole: str, data: bytes | None = None) -> ReadMask:
    """Read a mask file whose holes are `hole`: "black", "white" or a colour such as "#ff0000".

    data: the file's bytes if they are in memory.
    If alpha varies, it is the mask: transparent counts as black, opaque as white, and colours are ignored. Of two grey
    levels the darker is black; more levels are cut at half. A colour includes similar ones.
    Raises UserError if the file cannot be read or is not a mask: more than 5 % of it is neither black nor white.
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
            f"{path} is not a mask: {100 * between:.0f} % of {what} is neither black nor white, and at most"
            f" {100 * _MOST_BETWEEN:.0f} % may be. Export the mask from the editor as a separate PNG, black and white"
            " without soft edges, or the photograph with the hole made transparent; for a hole painted in one colour"
            " use --hole-colour '#rrggbb'"
        )
    valid = grey >= cut if hole == "black" else grey < cut
    return ReadMask(valid.view(np.uint8), between, alpha is not None)


def read_mask_alone(path: str | Path, hole: str) -> np.ndarray:
    """Return the mask from `read_mask`, uint8 (H,W). For files of masks.py it takes less than half the time."""
    grey = _read_1_bit_png(path) if hole in ("black", "white") else None
    if grey is None:
        return read_mask(path, hole).valid
    return (grey > 127 if hole == "black" else grey <= 127).view(np.uint8)


def _read_1_bit_png(path: str | Path) -> np.ndarray | None:
    """Read a 1-bit grey PNG without alpha, as written by write_mask, with OpenCV: uint8 (H,W), 0 or 255.

    Returns None for any other file, which read_mask can read, and for a damaged one, which it reports.
    """
    try:
        file = Path(path).read_bytes()
    except OSError:
        return None
    if file[:8] != _PNG or file[24:26] != _ONE_BIT_GREY or b"tRNS" in file or b"eXIf" in file:
        return None
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)


def alpha_note(hole: str) -> str:
    """Return a note on which side of an alpha channel is the hole."""
    side, other, option = ("transparent", "opaque", "white") if hole == "black" else ("opaque", "transparent", "black")
    return f"alpha is the mask: {side} parts are the hole (if {other} ones are, use --hole {option})"


def _varying_alpha(image: Image.Image) -> np.ndarray | None:
    """Return alpha, uint8 (H,W), stretched to 0 to 255. None if there is no alpha or it hardly varies."""
    if not image.has_transparency_data or image.mode.startswith("I"):
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    low, high = int(alpha.min()), int(alpha.max())
    if high - low < _NOISE:
        return None
    return ((alpha.astype(np.int32) - low) * 255 // (high - low)).astype(np.uint8)


def _far_from(colour: str, image: Image.Image) -> np.ndarray:
    """Return where an image differs from this colour, "#rrggbb", or is transparent: bool (H,W)."""
    pixels = np.asarray(to_8_bit(image).convert("RGBA")).astype(np.int16)
    distance = np.abs(pixels[..., :3] - np.array(list(bytes.fromhex(colour[1:])), np.int16)).max(axis=2)
    return (distance > _NEAR) | (pixels[..., 3] < 128)


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Grow the holes of a mask (H,W), 0 = hole, by `pixels` px in every direction: uint8 of 0 and 1."""
    valid = (mask != 0).astype(np.uint8)
    if pixels <= 0 or valid.all():
        return valid
    # Distance of a pixel to the nearest hole pixel, centre to centre.
    return (cv2.distanceTransform(valid, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > pixels).view(np.uint8)


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask (H,W), nonzero = valid, as a 1-bit PNG: holes black, valid white."""
    pixels = (mask != 0).astype(np.uint8) * 255
    done, data = cv2.imencode(".png", pixels, _ONE_BIT_PNG)
    if not done:
        raise ValueError(f"OpenCV can't write a mask of {pixels.shape[1]}×{pixels.shape[0]} px as PNG")
    Path(path).write_bytes(data.tobytes())
