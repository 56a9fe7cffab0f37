"""Which images a `data.` key means."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from utils.errors import UserError
from utils.images import IMAGE_SUFFIXES, is_image_name

# Photographs that the scikit-image wheel carries, so that a first run needs no data set.
SAMPLE = {"train": ("astronaut.png", "coffee.png", "rocket.jpg"), "val": ("chelsea.png",)}


def find_images(source: str, split: str) -> list[str]:
    """Paths of the images that data.train (split "train") or data.val (split "val") names, in a fixed order.

    source: a folder, searched to any depth; a text file with one path a line; or `sample`.
    UserError where there are none.
    """
    if source == "sample":
        folder = resources.files("skimage") / "data"
        return [str(folder / name) for name in SAMPLE[split]]
    path = Path(source)
    if path.is_dir():
        found = _search(path)
        if not found:
            kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            raise UserError(f"data.{split}: no images ({kinds}) in the folder {path} or below it")
    elif path.is_file():
        found = _read_list(path, split)
    else:
        raise UserError(f"data.{split}: no such folder or list: {path}; name a folder, a text file of paths, or `sample`")
    return found


def _search(folder: Path) -> list[str]:
    """All images below a folder, sorted. Linked folders are followed, each real folder once."""
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found.extend(os.path.join(parent, name) for name in files if is_image_name(name))
    return sorted(found)


def _read_list(path: Path, split: str) -> list[str]:
    """The paths of a list, relative to it. A class number behind a path is dropped, as in the lists of Places365."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"data.{split}: not a text file of paths: {path}") from None
    names = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        name, _, label = line.rpartition(" ")
        name = name.rstrip() if label.isdigit() and is_image_name(name.rstrip()) else line
        if not is_image_name(name):
            raise UserError(f"data.{split}: {path} line {number}: not the path of an image: {line[:80]!r}")
        names.append(name)
    if not names:
        raise UserError(f"data.{split}: the list {path} is empty")
    # Places365 writes /a/airfield/1.jpg and means a folder beside the list, not the root of the disk.
    rooted = names[0].startswith("/") and not os.path.exists(names[0])
    return [os.path.join(path.parent, name.lstrip("/") if rooted else name) for name in names]
