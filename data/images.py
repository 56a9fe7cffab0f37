"""Read image files and convert them to 8-bit RGB."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from data.names import as_stored
from utils.errors import UserError

Box = tuple[int, int, int, int]  # left, top, right, bottom, px

_JPEG_FORMATS = ("JPEG", "MPO")  # Pillow's names; MPO is a JPEG followed by more images, as some cameras write it

_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262  # tags

# Pillow's mode I is signed 32-bit. These formats use only 16 bits of it; for others the range is unknown.
_SCALED_TO_16_BITS = ("PNG", "PPM")
_AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

# Operation that makes an image upright, by EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: str | Path, data: bytes | None = None) -> Image.Image:
    """Open and decode an image file as stored: orientation and mode are unchanged.

    data: the file's bytes if they are in memory; `path` then only names them in messages.
    Pillow decodes lazily, so a truncated file would fail later; the pixels are decoded here.
    Raises UserError if the file is missing, not an image, damaged, too large, or if its pixels have no known range.
    """
    with _opened(path, data) as image:
        _load(image)
    return image


class OpenPicture:
    """An image whose header has been read but whose pixels are not decoded yet; see `open_picture`.

    size: width and height in px of the upright image.
    """

    def __init__(self, path: str | Path, image: Image.Image) -> None:
        if image.format not in _JPEG_FORMATS:
            _load(image)  # before its size is read: Pillow rotates a TIFF when decoding it
        self._path, self._image = path, image
        self._orientation = exif_orientation(image)
        self.size = image.size if self._orientation < 5 else image.size[::-1]

    def decode(self, box: Box, size: int) -> np.ndarray:
        """Return a box of the upright image as 8-bit RGB, uint8 (H,W,3), to be resized to size×size px.

        The result may have fewer pixels than the box, but at least `size` per side if the box has them: a JPEG with a
        large box is decoded at 1/2, 1/4 or 1/8. Its file is still read to the end.
        """
        image = self._image
        stored = _stored_part(box, self._orientation, *image.size)
        part = _decoded_part(image, stored, size)
        left, top, right, bottom = part
        if part == stored and self._orientation == 1 and image.format == "JPEG" and image.mode == "RGB":
            # Same pixels as Pillow's, but faster. None if the file is broken; Pillow then gives the reason.
            pixels = cv2.imdecode(np.fromfile(as_stored(self._path), np.uint8), _AS_STORED)
            if pixels is not None:
                return pixels[top:bottom, left:right]
        image.load()
        cut = to_8_bit(image.crop(part))
        turn = _TURNS.get(self._orientation)
        cut = cut if turn is None else cut.transpose(turn)
        return np.array(cut if cut.mode == "RGB" else cut.convert("RGB"))


@contextlib.contextmanager
def open_picture(path: str | Path) -> Iterator[OpenPicture]:
    """Open an image to decode a box of it. Raises UserError like open_image, also from inside the block."""
    with _opened(path) as image:
        yield OpenPicture(path, image)


def _stored_part(part: Box, orientation: int, width: int, height: int) -> Box:
    """Return the box of the stored image, of this width and height, that shows a box of the upright image."""
    left, top, right, bottom = part
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def _decoded_part(image: Image.Image, part: Box, size: int) -> Box:
    """Make Pillow decode a JPEG as coarsely as its box and `size` allow. Returns the box in the decoded image."""
    shorter = min(part[2] - part[0], part[3] - part[1])
    divisor = next((by for by in (8, 4, 2) if shorter >= by * size), 1)
    # A JPEG without quantisation tables is lossless. It cannot be decoded coarsely, although Pillow would try.
    if divisor == 1 or image.format not in _JPEG_FORMATS or not getattr(image, "quantization", None):
        return part
    image.draft(None, (image.width // divisor, image.height // divisor))
    left, top, right, bottom = ((edge + divisor // 2) // divisor for edge in part)
    return left, top, right, bottom


@contextlib.contextmanager
def _opened(path: str | Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file and read its header. Errors, here or inside the block, become UserErrors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and damaged EXIF; neither is an error here
            # As a stream: given a name, Pillow would map an uncompressed file, and rotate a TIFF with its sides
            # swapped.
            with (
                open(as_stored(path), "rb") if data is None else io.BytesIO(data) as file,
                Image.open(file) as image,
            ):
                yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"not an image, or of a kind that Pillow can't read: {path}") from None
    except IsADirectoryError:
        raise UserError(f"must be an image file, but is a folder: {path}") from None
    except PermissionError:
        raise UserError(f"no permission to read {path}") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"image {path} has over {limit} million pixels, Pillow's limit; use a smaller one") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"damaged image {path}: {reason}") from None
    if image.mode == "F" or (image.mode == "I" and image.format not in _SCALED_TO_16_BITS):
        kind = "floating-point pixels" if image.mode == "F" else "signed or 32-bit pixels"
        raise UserError(f"image {path} has {kind}, whose range is unknown; save it with 8 or 16 bits, unsigned")


def _load(image: Image.Image) -> None:
    """Decode the pixels. For TIFFs with 12 or 16 bits of grey, apply the white level, which Pillow ignores."""
    image.load()
    if not isinstance(image, TiffImageFile) or not image.mode.startswith("I;16"):
        return
    bits, white_is_zero = image.tag_v2.get(_TIFF_BITS, (16,))[0], image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
    if bits == 16 and not white_is_zero:
        return
    stored = np.asarray(image)
    values = stored.astype(np.uint32) * 65535 // (2**bits - 1)
    image.frombytes((65535 - values if white_is_zero else values).astype(stored.dtype).tobytes())


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation from EXIF (or XMP), 1 to 8; 1, upright, if it is missing or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block can raise nearly anything; the image itself is intact
        return 1
    return int(value) if value in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """Return the image as a viewer shows it, with the EXIF orientation applied. The EXIF block is unchanged."""
    turn = _TURNS.get(exif_orientation(image))
    return image if turn is None else image.transpose(turn)


def to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a 16-bit grey image (Pillow's modes I;16… and I) to 8 bits; return any other image unchanged."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to upright 8-bit RGB. Alpha is dropped; grey, palette, CMYK and 16 bits are converted."""
    return to_8_bit(upright(image)).convert("RGB")
