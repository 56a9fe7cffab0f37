"""Writing files so that no half of one ever has its final name."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The names that write_atomically gives, and those that it gave. They are short: the file's own may be as long as any.
_TEMPORARY = re.compile(r"\..*\.\d+\.tmp")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, rename it to `path`, sync the folder."""
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.tmp")
    try:
        # One of a killed process that had the same number may be a link to another file: never write into it.
        temporary.unlink(missing_ok=True)
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno:
            error.filename, error.filename2 = str(path), None  # the name that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed in `write_atomically` left in a folder. No other may be writing there."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


def append(path: Path, data: bytes) -> None:
    """Append to a file: all of `data`, or on an OSError nothing."""
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            written = file.write(data)
            while written < len(data):  # a full disk takes a part at first
                written += file.write(data[written:])
        except OSError as error:
            file.truncate(end)
            error.filename = str(path)
            raise


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where that can be waited for.

    Shared folders of virtual machines, Samba and WSL refuse it. The files are whole all the same.
    """
    with contextlib.suppress(OSError):
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
