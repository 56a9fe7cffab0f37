"""How this process asks the system for memory."""

from __future__ import annotations

import ctypes
import sys

# Numbers of mallopt's parameters, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1  # bytes, the most that mallopt takes


def keep_freed_memory() -> None:
    """Keep what is freed for what is asked for next, in this process and those that it forks.

    glibc gives large blocks back to the system at once, and the system clears each page that it hands out again: for
    the tensors of a training step on a CPU that takes a fifth of the time. Elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _NEVER)
        mallopt(_TRIM_THRESHOLD, _NEVER)
