"""Which images a `data.` key or `--images` means."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from utils.errors import UserError
from utils.images import IMAGE_SUFFIXES, is_image_name

# Photographs that the scikit-image wheel carries, so that a first run needs no data set.
SAMPLE = {
    "data.train": ("astronaut.png", "coffee.png", "rocket.jpg"),
    "data.val": ("chelsea.png",),
    "--images": ("chelsea.png", "motorcycle_left.png", "hubble_deep_field.jpg", "retina.jpg"),  # none trained on
}


def find_images(source: str, key: str) -> list[str]:
    """Paths of the images that data.train, data.val or --images (the key) names, in a fixed order.

    source: a folder, searched to any depth; a text file with one path a line; or `sample`.
    UserError where there are none.
    """
    if source == "sample":
        folder = root_of(source)
        return [str(folder / name) for name in SAMPLE[key]]
    path = Path(source)
    try:
        if path.is_dir():
            return _search(path, key)
        if path.is_file():
            return _read_list(path, key)
    except PermissionError as error:
        raise UserError(f"{key}: no permission to read {error.filename}") from None
    raise UserError(f"{key}: no such folder or list: {path}; name a folder, a text file of paths, or `sample`")


def root_of(source: str) -> Path:
    """The folder that the images of a source lie in, or that its list lies in: their names are relative to it."""
    if source == "sample":
        return Path(str(resources.files("skimage") / "data"))
    return Path(source) if Path(source).is_dir() else Path(source).parent


def _search(root: Path, key: str) -> list[str]:
    """All images below a folder, sorted; nothing hidden. Linked folders are followed, each real folder once."""
    found: list[str] = []
    seen: set[str] = set()
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            # Sorted, for the order of the disk would decide by which of its names a linked folder is found.
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if entry.is_dir() and not entry.name.startswith("."):
                    waiting.append(entry.path)
                elif is_image_name(entry.name) and entry.is_file():
                    found.append(entry.path)
    if not found:
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise UserError(f"{key}: no images ({kinds}) in the folder {root} or below it")
    return sorted(found)


def _read_list(path: Path, key: str) -> list[str]:
    """The paths of a list, relative to it. A class number behind a path is dropped, as in the lists of Places365."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{key}: not a text file of paths in UTF-8: {path}") from None
    names = []
    for number, line in enumerate(text.split("\n"), start=1):
        name = _without_label(line.strip())
        if name and not is_image_name(name):
            raise UserError(f"{key}: {path} line {number}: not the path of an image: {name[:80]!r}")
        if name:
            names.append(name)
    if not names:
        raise UserError(f"{key}: the list {path} is empty")
    return _located(names, path, key)


def _without_label(line: str) -> str:
    """The path of a line that may end in a class number: `/a/airfield/00000001.jpg 0`."""
    name, *label = line.rsplit(maxsplit=1)[:2] or [""]
    return name if label and label[0].isdecimal() and is_image_name(name) else line


def _located(names: list[str], path: Path, key: str) -> list[str]:
    """Where the images of a list lie. The first of them tells, and is looked for so that a wrong folder shows early."""
    # Places365 writes /a/airfield/1.jpg and means a folder beside the list, not the root of the disk.
    rooted = names[0].startswith("/") and not os.path.exists(names[0])
    found = [os.path.join(path.parent, name.lstrip("/") if rooted else name) for name in names]
    if not os.path.isfile(found[0]):
        raise UserError(f"{key}: no image {found[0]}, the first of {path}; paths are relative to the list")
    return found
