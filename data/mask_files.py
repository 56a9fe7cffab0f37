"""Mask files and hole ratios.

Inside the project a mask is 1 where the image is valid and 0 in the hole. In files either colour may be
the hole; `read_mask` is the only place that knows which.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.images import open_image, to_8_bit, upright

if TYPE_CHECKING:  # a prediction needs no config
    from utils.config import HoleColour

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


def read_mask(path: str | Path, hole: HoleColour, data: bytes | None = None) -> tuple[np.ndarray, float]:
    """Read a mask file whose holes are `hole` ("black" or "white"). data: its bytes, where they are in memory.

    Returns the mask, uint8 (H,W), 1 = valid and 0 = hole, grey cut at half; and the share of pixels that
    were neither near black nor near white. UserError where the file can't be read.
    """
    grey = _read_grey(path, data)
    between = float(np.mean((grey >= _NOISE) & (grey <= 255 - _NOISE)))
    return _cut_at_half(grey, hole), between


def read_mask_alone(path: str | Path, hole: HoleColour) -> np.ndarray:
    """The mask as `read_mask` reads it, without the share, which takes a third of its time."""
    valid = _read_own(path)
    if valid is None:
        return _cut_at_half(_read_grey(path), hole)
    return valid if hole == "black" else 1 - valid


def _read_grey(path: str | Path, data: bytes | None = None) -> np.ndarray:
    return np.asarray(to_8_bit(upright(open_image(path, data))).convert("L"))


def _cut_at_half(grey: np.ndarray, hole: HoleColour) -> np.ndarray:
    return (grey > 127 if hole == "black" else grey <= 127).view(np.uint8)


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
