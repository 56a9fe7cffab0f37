"""Which files are images, by their names. Imports nothing large, so that a script can answer a wrong path at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

# Images that can be written: by the suffix of the name, Pillow's word for the kind, and its options.
OUTPUT_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 3}),  # as small for photographs as 6, Pillow's own, in half the time
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: colours stay where alpha is 0, too
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
}


def is_image_name(name: str) -> bool:
    """Whether a file is named as an image is, in upper or lower case, and not hidden (macOS leaves ._x.jpg behind)."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(name).startswith(".")


def list_images(folder: Path) -> list[Path]:
    """The image files of one folder, sorted by name, subfolders left out. UserError where it is no folder."""
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and path.is_file())
