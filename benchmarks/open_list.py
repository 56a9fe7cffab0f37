"""Measure in a fresh process what opening a list of images costs, and print JSON.

benchmarks/image_list.py runs it from the project's folder: python -m benchmarks.open_list LIST MODULES
MODULES: modules to import first, comma-separated.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.image_list import ImageList

LOOKUPS = 20_000


def opening(path: str, modules: str) -> dict[str, float]:
    """Return the seconds to open a list and to look up a path, and the resident MB (VmRSS) at each stage."""
    for module in modules.split(","):
        __import__(module)
    found = {"before": resident()}
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found["cold"], images = timed(lambda: ImageList.open(path))
    found["after"] = resident()
    found["warm"], _ = timed(lambda: ImageList.open(path))
    found["lookup"] = timed(lambda: look_up(images))[0] / LOOKUPS
    found["used"] = resident()
    for _ in images:
        pass
    found["all"] = resident()
    return found


def look_up(images: ImageList, seed: int = 0) -> None:
    rng = random.Random(seed)
    for _ in range(LOOKUPS):
        images[rng.randrange(len(images))]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `work` took, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def resident() -> float:
    """Return the resident MB of this process."""
    return kilobytes("/proc/self/status", "VmRSS:") / 1e3


def kilobytes(path: str, start: str) -> int:
    return sum(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(start))


if __name__ == "__main__":
    print(json.dumps(opening(*sys.argv[1:])))
