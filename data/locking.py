"""Folder locks: one process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # not available on Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes within the block. Raises UserError if another process holds the lock.

    A missing folder is created, and removed again if it is still empty at the end. No lock file is written. If the file
    system cannot lock folders, nothing is locked.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder} is in use: another process writes there; wait for it, or name another folder"
        ) from None
    except (AttributeError, OSError):  # AttributeError: fcntl is None
        pass
