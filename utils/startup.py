"""A quick start of the scripts that need torch."""

from __future__ import annotations

import gc
import os
import sys


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
