"""Atomic and durable writes of files."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Temporary names of write_atomically, also of older versions. Short, because the file's own name may be of any length.
_TEMPORARY = re.compile(r"\..*\.\d+\.tmp")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, rename it to `path`, and sync the folder."""
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.tmp")
    try:
        # A leftover of a killed process with the same pid may be a link to another file: never write into it.
        temporary.unlink(missing_ok=True)
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno:
            error.filename, error.filename2 = str(path), None  # not the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder. No other process may be writing there."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


def append(path: Path, data: bytes) -> None:
    """Append `data` to a file; on an OSError nothing is appended."""
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            written = file.write(data)
            while written < len(data):  # a nearly full disk takes only a part
                written += file.write(data[written:])
        except OSError as error:
            file.truncate(end)
            error.filename = str(path)
            raise


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk, if the file system supports that.

    Shared folders of virtual machines, Samba and WSL do not. The files are complete all the same.
    """
    with contextlib.suppress(OSError):
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
