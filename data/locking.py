"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same from a folder within this block. UserError where one is there.

    The folder is made where it is missing, and removed again where it is still empty at the end. Nothing is written to
    lock it. Where a file system can't lock folders, nothing is locked.
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
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder} is in use: another process writes there; wait for it, or name another folder"
        ) from None
    except (AttributeError, OSError):  # AttributeError: without fcntl
        pass
