"""Recognise image files by name. Heavy imports are avoided, so that scripts can report a wrong path at once."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")

# Skipped in folders: animations, and formats that lose depth or that Pillow cannot read by itself.
OTHER_SUFFIXES = (
    *(".gif", ".jp2", ".j2k", ".jxl", ".heic", ".heif", ".ppm", ".pgm", ".pnm", ".tga", ".sgi", ".ico", ".psd", ".xcf"),
    *(".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)

# Formats that can be written: Pillow's name and options, by file suffix.
OUTPUT_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),  # written by data/photo.py itself
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: keeps colours where alpha is 0
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
}


def is_image_name(name: str) -> bool:
    """Return whether a file is named like an image, in any case, and is not hidden (macOS creates ._x.jpg)."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(name).startswith(".")


def is_other_picture(name: str) -> bool:
    """Return whether a file is named like an image in a format that is skipped in folders."""
    return name.lower().endswith(OTHER_SUFFIXES) and not os.path.basename(name).startswith(".")


def tell_left_out(source: str | Path, names: Sequence[str]) -> None:
    """Report on stderr which images of a folder are skipped for their format, if any."""
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        print(
            f"left out of {source}: {len(names)} of other kinds than {kinds}: {shown};"
            " save them as PNG or JPEG to have them read",
            file=sys.stderr,
        )


def other_pictures(folder: Path) -> list[str]:
    """Return the names of the images in a folder that `list_images` skips, sorted."""
    return sorted(path.name for path in folder.iterdir() if is_other_picture(path.name))


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, sorted by name. Raises UserError if it is not a folder."""
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and path.is_file())


def as_stored(path: str | Path) -> str:
    """Return a path as the disk spells it: é may be one character or two (NFC, NFD). Unchanged if neither exists.

    Lists and configs may come from another system than the disk; the spellings look the same.
    """
    text = os.fspath(path)
    if text.isascii() or os.path.lexists(text):
        return text
    found = "/" if text.startswith("/") else ""
    for part in Path(text).parts[bool(found) :]:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        here = next((name for name in forms if os.path.lexists(os.path.join(found, name))), None)
        if here is None:
            return text
        found = os.path.join(found, here)
    return found
