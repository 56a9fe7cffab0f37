"""Image files: which files are images, and how any of them becomes 8-bit RGB."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def is_image_name(name: str) -> bool:
    """Whether a file is named as an image is, in upper or lower case, and not hidden (macOS leaves ._x.jpg behind)."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(name).startswith(".")


def list_images(folder: Path) -> list[Path]:
    """The image files of one folder, sorted by name, without its subfolders. UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and path.is_file())


def open_image(path: str | Path) -> Image.Image:
    """Open and decode an image file, as stored: no orientation applied, no mode changed.

    Pillow decodes late, so a truncated file would fail far from here: the pixels are read at once.
    UserError where the file is missing, no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"not an image, or of a kind that Pillow can't read: {path}") from None
    except IsADirectoryError:
        raise UserError(f"a folder, where an image file is needed: {path}") from None
    except PermissionError:
        raise UserError(f"no permission to read {path}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, DecompressionBombError …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"damaged image {path}: {reason}") from None


def to_8_bit(image: Image.Image) -> Image.Image:
    """A 16-bit grey image (Pillow's modes I;16… and I) scaled to 8 bits; any other image unchanged."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it: EXIF orientation applied."""
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, upright. Alpha is dropped, grey, palette and CMYK are converted, 16 bits become 8."""
    return to_8_bit(upright(image)).convert("RGB")
