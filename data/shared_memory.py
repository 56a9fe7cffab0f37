"""How many batches data workers may hold ready. The batches lie in /dev/shm, which has 64 MB in Docker."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

# Shares of the free room. Validation, and the averaging of statistics, run while training's batches lie ready.
TRAINING, BESIDE = 0.6, 0.3
# Batches beside those that wait: one that is handed over, and one that is used.
_IN_USE = 2
_PREFETCH = 2  # batches a worker holds ready, where there is room


def free_room() -> float:
    """Bytes of shared memory that this process may fill: an equal share of its machine's for each process there."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):  # a system without it keeps shared memory elsewhere
        return math.inf
    return status.f_bavail * status.f_frsize / int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def workers_that_fit(workers: int, batch_bytes: int, share: float) -> tuple[int, int]:
    """How many data workers of so many, and how many batches each may hold ready, fit into a share of the free room.

    More workers with one batch each are preferred to fewer with two. (0, 0): the main process must load.
    """
    batches = free_room() * share / batch_bytes - _IN_USE
    if batches >= workers * _PREFETCH:
        return workers, _PREFETCH if workers else 0
    fitting = min(workers, max(0, math.floor(batches)))
    return fitting, 1 if fitting else 0


def tell_of_fewer(workers: int, fitting: int, batch_bytes: int) -> None:
    """Say on stderr that fewer workers than data.workers load, where that is so."""
    if fitting < workers:
        print(
            f"data.workers: {fitting} instead of {workers}, since {SHARED_MEMORY} has {free_room() / 2**20:.0f} MB free"
            f" and a batch takes {batch_bytes / 2**20:.1f} MB; `docker run --shm-size=1g` gives it more",
            file=sys.stderr,
        )
