"""A quick start of the scripts that need torch, and how a process asks the system for memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

# Numbers of mallopt's parameters, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1  # bytes, the most that mallopt takes


def import_torch() -> None:
    """`import torch` in two thirds of the time, and with larger pages of memory. Nothing where torch is there already.

    The import makes a quarter of a million objects that live as long as the process. The collector would visit them
    again and again meanwhile, and some times more at the end, to find nothing. So it rests, and the objects are frozen:
    it passes over them for good. What is made later is collected as ever.

    Linux gives memory in pages of 4 kB, each on its first use. torch then asks for 2 MB where a tensor has as many,
    unless THP_MEM_ALLOC_ENABLE is set to 0.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


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
