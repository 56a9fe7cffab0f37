"""The image and mask lists of a run: made when it begins and kept in its folder, so that the run stays the same.

If images or masks are added, removed or renamed, the run continues with its own lists and reports the change. Only
--rescan makes new lists.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from data.image_list import ImageList
from data.listing import changed_folders, find_masks, list_of_images, root_of, stamp_of
from data.names import as_stored
from utils.errors import UserError

# Images to check, evenly spread, of a list that was read from a text file.
_LOOKED_FOR = 10_000


def images_of_run(source: str, key: str, kept: Path, begun: bool, rescan: bool, max_missing: float) -> ImageList:
    """Return the images of data.train or data.val (the key), from the file `kept` if the run has begun.

    max_missing: share of them that may be missing. Raises UserError if more are, if the list is damaged, or if it is
    from another source; `rescan` makes a new list.
    """
    images = _kept_or_new(source, key, kept, begun, rescan, lambda: list_of_images(source, key), "images")
    if begun and not rescan:
        _tell_of_changes(images, key, "images", max_missing)
    return images


def masks_of_run(folder: str, key: str, kept: Path, begun: bool, rescan: bool) -> ImageList:
    """Like images_of_run, for the masks of masks.train_dir or masks.val_dir (the key); none may be missing."""
    masks = _kept_or_new(folder, key, kept, begun, rescan, lambda: list_of_masks(folder, key), "masks")
    if begun and not rescan:
        _tell_of_changes(masks, key, "masks", 0)
    return masks


def list_of_masks(folder: str, key: str) -> ImageList:
    """Return the masks of a folder, packed. Raises UserError if there are none."""
    stamp = stamp_of(folder)  # before the names, so that later additions are noticed
    return ImageList.of((path.name for path in find_masks(folder, key)), folder, folder, {"": stamp})


def is_kept(images: ImageList, kept: Path) -> bool:
    """Return whether the file `kept` lists the same paths in the same order; True if it does not exist."""
    if not kept.exists():
        return True
    with contextlib.suppress(ValueError):
        old = ImageList.open(kept)
        return len(images) == len(old) and all(one == other for one, other in zip(images, old, strict=True))
    return False


def _kept_or_new(
    source: str, key: str, kept: Path, begun: bool, rescan: bool, make: Callable[[], ImageList], what: str
) -> ImageList:
    if rescan or not begun:
        return make()
    if not kept.exists():
        print(f"{key}: the run's list of {what} is missing ({kept}); a new one is made", file=sys.stderr)
        return make()
    try:
        images = ImageList.open(kept)
    except ValueError as error:
        raise UserError(f"{key}: {error}. List the {what} again with --rescan, which may change the run") from None
    if images.source == source == "sample" and images.root != str(root_of(source)):
        return make()  # same files in another environment
    if images.source != source:
        raise UserError(
            f"{key}: the run's {what} come from {images.source}, not from {source}; to change that, add --rescan"
        )
    return images


def _tell_of_changes(images: ImageList, key: str, what: str, max_missing: float) -> None:
    """Report on stderr what has changed since the list was made. Raises UserError if too much is missing."""
    changed = changed_folders(images)
    missing = missing_files(images, changed)
    own = f"the run keeps its list of {len(images)} {what}; --rescan lists them again"
    if missing:
        lost = f"{len(missing)} of the run's {len(images)} {what} are missing, such as {missing[0]}"
        if len(missing) == len(images) or len(missing) > max_missing * len(images):
            raise UserError(
                f"{key}: {lost}. Put them back, or list the {what} again with --rescan, which changes the run"
            )
        print(f"{key}: {lost}; others replace them, and {own}", file=sys.stderr)
    elif changed:
        print(f"{key}: {images.source} has changed since this run began; {own}", file=sys.stderr)


def missing_files(images: ImageList, changed: set[str]) -> list[str]:
    """Return the images of a list that are missing, looking only in folders that have changed.

    A list from a text file has no folders: a sample of its images is checked.
    """
    if "" not in images.stamps and not any(name.endswith("/") for name in images.stamps):
        some = images[:: max(1, len(images) // _LOOKED_FOR)]
        return [path for path in some if not os.path.isfile(as_stored(path))]
    if not changed:
        return []
    there = {folder: _names_in(os.path.join(images.root, folder)) for folder in changed}
    missing = []
    for path in images:
        folder, name = os.path.split(os.path.relpath(path, images.root))
        if name not in there.get(f"{folder}/" if folder else "", (name,)):
            missing.append(path)
    return missing


def _names_in(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
