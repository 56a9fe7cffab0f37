"""A faster import of torch, and settings of malloc."""

from __future__ import annotations

import ctypes
import gc
import sys

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1  # bytes, the most that mallopt takes


def import_torch() -> None:
    """Import torch in two thirds of the time. Does nothing if torch is already imported.

    The import makes a quarter of a million objects that live as long as the process. The garbage collector would
    traverse them many times and free nothing. So it is off during the import, and the objects are frozen afterwards.
    Later objects are collected as usual.
    """
    if "torch" in sys.modules:
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for reuse, in this process and its forks (glibc only).

    By default glibc returns large blocks to the system at once, and the system clears each page that it maps again.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _NEVER)
        mallopt(_TRIM_THRESHOLD, _NEVER)
