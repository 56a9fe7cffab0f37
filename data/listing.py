"""Find the images that a `data.` key or `--images` names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from tqdm import tqdm

from data.image_list import ImageList
from data.names import (
    IMAGE_SUFFIXES,
    as_stored,
    is_image_name,
    is_other_picture,
    list_images,
    other_pictures,
    tell_left_out,
)
from utils.errors import UserError

# Photographs in the scikit-image wheel, so that a first run needs no data set.
SAMPLE = {
    "data.train": ("astronaut.png", "coffee.png", "rocket.jpg"),
    "data.val": ("chelsea.png",),
    "--images": ("chelsea.png", "motorcycle_left.png", "hubble_deep_field.jpg", "retina.jpg"),  # not used for training
}

# More threads than cores: they wait for the disk, especially a network disk.
_THREADS = 16
# Folders that systems create: Synology previews, trash, resource forks of macOS.
_NO_PICTURES = {"@eadir", "$recycle.bin", "#recycle", "__macosx", "system volume information", "lost+found"}
_UPDATE_EVERY = 10_000  # files, so that a single large folder shows progress, too


def find_images(source: str, key: str) -> list[str]:
    """Return the paths of the images that data.train, data.val or --images (the key) names, in a fixed order.

    source: a folder, searched recursively; a text file with one path per line; or `sample`.
    Raises UserError if there are none.
    """
    names, _ = _search(source, key)
    root = str(root_of(source))
    return [os.path.join(root, name) for name in names]


def list_of_images(source: str, key: str) -> ImageList:
    """Like find_images, as a packed list for millions of images, with stamps of the folders: see `changed_folders`."""
    names, stamps = _search(source, key)
    return ImageList.of(names, source, str(root_of(source)), stamps)


def is_unchanged(images: ImageList) -> bool:
    """Return whether no image was added or removed since the list was made: see `changed_folders`."""
    return not changed_folders(images)


def changed_folders(images: ImageList) -> set[str]:
    """Return the folders of a list, or its text file, whose modification time differs from the list's.

    Images themselves are not checked. So overwritten images go unnoticed, and so does any change on file systems that
    keep no modification times of folders.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        now = pool.map(lambda name: stamp_of(os.path.join(images.root, name)), images.stamps)
        return {name for (name, stamp), other in zip(images.stamps.items(), now, strict=True) if stamp != other}


def find_masks(folder: str, key: str) -> list[Path]:
    """Return the masks in the folder of masks.train_dir or masks.val_dir (the key). Raises UserError if it has none."""
    advice = "`python masks.py` with the same config makes them"
    if not Path(folder).is_dir():
        raise UserError(f"{key}: no such folder: {folder}; {advice}")
    masks = list_images(Path(folder))
    tell_left_out(folder, other_pictures(Path(folder)))
    if not masks:
        raise UserError(f"{key}: no masks in {folder}; {advice}")
    return masks


def root_of(source: str) -> Path:
    """Return the folder that the names of a source are relative to: its own, or that of its text file."""
    if source == "sample":
        return Path(str(resources.files("skimage") / "data"))
    return Path(source) if Path(source).is_dir() else Path(source).parent


def _search(source: str, key: str) -> tuple[Iterable[str], dict[str, Any]]:
    """Return the names of a source's images relative to its root, lazily, and stamps of its folders or text file."""
    path = Path(source)
    try:
        if source == "sample":
            return SAMPLE[key], {}
        if path.is_dir():
            return _search_folder(path, key)
        if path.is_file():
            stamp = stamp_of(path)
            return _read_list(path, key), {path.name: stamp}
    except PermissionError as error:
        raise UserError(f"{key}: no permission to read {error.filename}") from None
    raise UserError(f"{key}: no such folder or list: {path}; name a folder, a text file of paths, or `sample`")


def stamp_of(path: str | Path) -> list[int] | None:
    """Return the modification time and, for a file, the size; None if the path does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_mtime_ns, 0 if stat.S_ISDIR(status.st_mode) else status.st_size]


# --- folders ---------------------------------------------------------------------------------------------------


class _Folder(NamedTuple):
    files: str  # names of its images, sorted, joined by \0: a fifth of the memory of a list
    folders: list[tuple[str, str]]  # names and real paths of its subfolders
    stamp: list[int] | None
    others: list[str]  # names of images in unsupported formats, which are skipped


def _search_folder(root: Path, key: str) -> tuple[Iterator[str], dict[str, Any]]:
    """Find all images below a folder, sorted, skipping hidden ones. Links are followed, each real folder once."""
    with tqdm(desc=f"{key}: finding images", unit=" files", leave=False, delay=1, disable=None) as bar:
        found = _read_folders(str(root), bar)
    visited: dict[str, _Folder] = {}  # by path below the root: "" or a/b/
    seen: set[str] = set()
    waiting = [("", os.path.realpath(root))]
    while waiting:
        name, real = waiting.pop()
        if real not in seen:
            seen.add(real)
            visited[name] = found[real]
            # Sorted, so that the order on disk does not decide under which name a linked folder is found.
            waiting += [(f"{name}{below}/", place) for below, place in sorted(found[real].folders, reverse=True)]
    if not any(folder.files for folder in visited.values()):
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise UserError(f"{key}: no images ({kinds}) in the folder {root} or below it")
    tell_left_out(root, [f"{name}{other}" for name, folder in visited.items() for other in folder.others])
    return _in_order(visited), {name: folder.stamp for name, folder in visited.items()}


def _read_folders(root: str, bar: tqdm) -> dict[str, _Folder]:
    """Read a folder and all folders below it in several threads. Returns their contents by real path."""
    found: dict[str, _Folder] = {}
    known: set[str] = set()
    done: SimpleQueue[tuple[str, str, Future[_Folder]]] = SimpleQueue()
    with ThreadPoolExecutor(_THREADS) as pool:

        def read(path: str, real: str) -> None:
            known.add(real)
            job = pool.submit(_read_folder, path, real, bar)
            job.add_done_callback(lambda job: done.put((path, real, job)))

        try:
            read(root, os.path.realpath(root))
            while len(found) < len(known):
                path, real, job = done.get()
                found[real] = job.result()
                for name, place in found[real].folders:
                    if place not in known:
                        read(os.path.join(path, name), place)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _read_folder(path: str, real: str, bar: tqdm) -> _Folder:
    files: list[str] = []
    others: list[str] = []
    folders: list[tuple[str, str]] = []
    stamp = stamp_of(path)  # before the names are read: a file added meanwhile then counts as a change

    def progress(count: int) -> None:
        with bar.get_lock():
            bar.update(count)

    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith(".") and entry.name.lower() not in _NO_PICTURES:
                place = os.path.join(real, entry.name)
                folders.append((entry.name, os.path.realpath(place) if entry.is_symlink() else place))
            elif is_image_name(entry.name) and entry.is_file():
                files.append(entry.name)
                if len(files) % _UPDATE_EVERY == 0:
                    progress(_UPDATE_EVERY)
            elif is_other_picture(entry.name):
                others.append(entry.name)
    progress(len(files) % _UPDATE_EVERY)
    return _Folder("\0".join(sorted(files)), folders, stamp, sorted(others))


def _in_order(visited: dict[str, _Folder]) -> Iterator[str]:
    """Yield all names sorted as full paths: those in `a-b/` before those in `a/`."""
    levels = [iter([""])]
    while levels:
        name = next(levels[-1], None)
        if name is None:
            levels.pop()
        elif name in visited:
            folder = visited[name]
            files = folder.files.split("\0") if folder.files else []
            below = [f"{below}/" for below, _ in folder.folders if f"{name}{below}/" in visited]
            levels.append(map(name.__add__, sorted(files + below)))
        else:
            yield name


# --- text files ------------------------------------------------------------------------------------------------


def _read_list(path: Path, key: str) -> Iterator[str]:
    """Yield the names in a list, relative to its folder. Class numbers after names, as in Places365, are dropped.

    Only the first is checked on disk, so that a wrong folder is found early.
    """
    rooted, below = None, ""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(tqdm(file, f"{key}: reading {path}", leave=False, delay=1, disable=None), 1):
                name = _without_label(line.strip())
                if not name:
                    continue
                if not is_image_name(name) or "\0" in name:
                    raise UserError(f"{key}: {path} line {number}: not the path of an image: {name[:80]!r}")
                if rooted is None:
                    # Places365 writes /a/airfield/1.jpg for a folder beside the list, not at the root of the disk.
                    rooted = name.startswith("/") and not os.path.exists(name)
                    below = _place_of(name.lstrip("/") if rooted else name, path, key)
                yield os.path.join(below, name.lstrip("/") if rooted else name)
    except UnicodeDecodeError:
        raise UserError(f"{key}: not a text file of paths in UTF-8: {path}") from None
    except PermissionError:
        raise UserError(f"{key}: no permission to read {path}") from None
    if rooted is None:
        raise UserError(f"{key}: the list {path} is empty")


def _place_of(name: str, path: Path, key: str) -> str:
    """Return the folder of a list's first image: "", beside the list, or a folder there, as data_large of Places365.

    Raises UserError if it is in none of them or in several.
    """
    first = os.path.join(path.parent, name)
    if os.path.isfile(as_stored(first)):
        return ""
    with os.scandir(path.parent) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    found = [folder for folder in folders if os.path.isfile(as_stored(os.path.join(path.parent, folder, name)))]
    if not found:
        raise UserError(
            f"{key}: no image {first}, the first of {path}; paths are relative to the list, or to a folder beside it"
        )
    if len(found) > 1:
        raise UserError(
            f"{key}: {name}, the first of {path}, is in {' and in '.join(found)}; move the list into one of them"
        )
    return found[0]


def _without_label(line: str) -> str:
    """Return the path in a line that may end in a class number: `/a/airfield/00000001.jpg 0`."""
    name, *label = line.rsplit(maxsplit=1)[:2] or [""]
    return name if label and label[0].isdecimal() and is_image_name(name) else line
