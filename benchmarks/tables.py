"""Interleaved timing of rivals, and the table of figures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

HEAD = "| what | figure | to reach |\n|---|---|---|"

Row = tuple[str, str, str]  # what was measured, figure with unit, target or ""


def show(rows: Iterable[Row]) -> None:
    """Print a table, each row as soon as it is measured."""
    print(HEAD, flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def medians(rivals: Sequence[Callable[[], object]], rounds: int, name: str) -> list[float]:
    """Return the median seconds of each rival over `rounds` rounds, after one warm-up round.

    Rivals are interleaved, so that other load on the machine affects all alike. name: title of the progress bar.
    """
    seconds: list[list[float]] = [[] for _ in rivals]
    for turn in tqdm(range(rounds + 1), desc=name, leave=False):
        for rival, times in zip(rivals, seconds, strict=True):
            start = time.perf_counter()
            rival()
            if turn:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]
