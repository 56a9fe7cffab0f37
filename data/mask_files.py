"""Mask files and hole ratios.

Inside the project a mask is 1 where the image is valid and 0 in the hole. In files either colour may be
the hole, or alpha; `read_mask` is the only place that knows which.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

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

# Of the PNGs that write_mask writes: how they begin; width, height and what kind they are, 1 bit of grey; the filter of
# each row, which is stored less the row above. Larger ones, in bytes of all rows, are left to Pillow and its limit.
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_ONE_BIT_GREY = (1, 0, 0, 0, 0)
_LESS_ABOVE = 2
_LARGEST = 2**24

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
    valid = _read_own(path) if hole in ("black", "white") else None
    if valid is None:
        return read_mask(path, hole).valid
    return valid if hole == "black" else 1 - valid


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
    import cv2  # here, as few predictions need it

    # The distance of a pixel to the nearest of the hole, centre to centre.
    return (cv2.distanceTransform(valid, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > pixels).view(np.uint8)


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask (H,W), nonzero = valid, as a PNG of 1 bit a pixel: holes black, valid white.

    The PNG is put together here, in less than half of cv2's time: rows are stored less the row above, mostly zeros
    then, and zlib looks for runs alone.
    """
    height, width = mask.shape
    bits = np.packbits(mask != 0, axis=1)
    rows = np.full((height, 1 + bits.shape[1]), _LESS_ABOVE, np.uint8)  # each row begins with its filter
    rows[:, 1:] = np.diff(bits, axis=0, prepend=np.uint8(0))  # modulo 256
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    data = packer.compress(rows.tobytes()) + packer.flush()
    header = _HEADER.pack(width, height, *_ONE_BIT_GREY)
    Path(path).write_bytes(_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b""))


def _read_own(path: str | Path) -> np.ndarray | None:
    """What write_mask wrote, uint8 (H,W) of 0 and 1, in less than half of Pillow's time.

    None for any other file, damaged ones too: Pillow reads those, or says what is wrong.
    """
    try:
        file = Path(path).read_bytes()
        width, height, *kind = _HEADER.unpack_from(file, len(_SIGNATURE) + 8)
        before, end = _SIGNATURE + _chunk(b"IHDR", _HEADER.pack(width, height, *kind)), _chunk(b"IEND", b"")
        data = file[len(before) + 8 : -len(end) - 4]
        stride = 1 + (width + 7) // 8
        if tuple(kind) != _ONE_BIT_GREY or height * stride > _LARGEST or file != before + _chunk(b"IDAT", data) + end:
            return None
        unpacker = zlib.decompressobj()
        rows = np.frombuffer(unpacker.decompress(data, height * stride + 1), np.uint8).reshape(height, stride)
    except (OSError, struct.error, ValueError, zlib.error):  # ValueError: too few rows, or too many
        return None
    if not width or not unpacker.eof or (rows[:, 0] != _LESS_ABOVE).any():
        return None
    return np.unpackbits(np.add.accumulate(rows[:, 1:], axis=0, dtype=np.uint8), axis=1, count=width)


def _chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file: length, kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
