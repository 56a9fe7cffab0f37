"""Which files are images, by their names. Imports nothing large, so that a script can answer a wrong path at once."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")

# Pictures too, but not looked for in folders: of animations, of kinds that lose depth or that Pillow alone can't read.
OTHER_SUFFIXES = (
    *(".gif", ".jp2", ".j2k", ".jxl", ".heic", ".heif", ".ppm", ".pgm", ".pnm", ".tga", ".sgi", ".ico", ".psd", ".xcf"),
    *(".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)

# Images that can be written: by the suffix of the name, Pillow's word for the kind, and its options.
OUTPUT_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),  # data/photo.py writes it itself
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: colours stay where alpha is 0, too
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
}


def is_image_name(name: str) -> bool:
    """Whether a file is named as an image is, in upper or lower case, and not hidden (macOS leaves ._x.jpg behind)."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(name).startswith(".")


def is_other_picture(name: str) -> bool:
    """Whether a file is named as a picture of a kind that is not looked for in folders."""
    return name.lower().endswith(OTHER_SUFFIXES) and not os.path.basename(name).startswith(".")


def tell_left_out(source: str | Path, names: Sequence[str]) -> None:
    """Say which pictures of a folder are left out, as they are of other kinds; nothing where there are none."""
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        print(
            f"left out of {source}: {len(names)} of other kinds than {kinds}: {shown};"
            " save them as PNG or JPEG to have them read",
            file=sys.stderr,
        )


def other_pictures(folder: Path) -> list[str]:
    """Names of the pictures of a folder that `list_images` leaves out, sorted."""
    return sorted(path.name for path in folder.iterdir() if is_other_picture(path.name))


def list_images(folder: Path) -> list[Path]:
    """The image files of one folder, sorted by name, subfolders left out. UserError where it is no folder."""
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and path.is_file())


def as_stored(path: str | Path) -> str:
    """A path as the disk spells it, which may have é as one character or as two (NFC, NFD); as it is if neither is.

    Lists and configs come from other systems than the disk, and look the same.
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
