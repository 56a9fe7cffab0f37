"""Limit the batches that data workers hold ready to the size of /dev/shm, which is 64 MB in Docker."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

# Shares of the free space. Validation and recomputing statistics run while training batches are held.
TRAINING, BESIDE = 0.6, 0.3
# Batches in addition to those waiting: one being sent, one in use.
_IN_USE = 2
_PREFETCH = 2  # batches that a worker holds ready, if there is space


def free_room() -> float:
    """Return the bytes of shared memory that this process may fill: an equal share for each process of its machine."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):  # other systems keep shared memory elsewhere
        return math.inf
    return status.f_bavail * status.f_frsize / int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def workers_that_fit(workers: int, batch_bytes: int, share: float) -> tuple[int, int]:
    """Return how many of `workers`, and how many batches each may hold ready, fit into a share of the free space.

    More workers with one batch each are preferred to fewer with two. (0, 0): the main process must load the data.
    """
    batches = free_room() * share / batch_bytes - _IN_USE
    if batches >= workers * _PREFETCH:
        return workers, _PREFETCH if workers else 0
    fitting = min(workers, max(0, math.floor(batches)))
    return fitting, 1 if fitting else 0


def tell_of_fewer(workers: int, fitting: int, batch_bytes: int) -> None:
    """Report on stderr if fewer workers than data.workers are used."""
    if fitting < workers:
        print(
            f"data.workers: {fitting} instead of {workers}, since {SHARED_MEMORY} has {free_room() / 2**20:.0f} MB free"
            f" and a batch takes {batch_bytes / 2**20:.1f} MB; `docker run --shm-size=1g` gives it more",
            file=sys.stderr,
        )
