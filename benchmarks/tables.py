"""Rivals timed by turns, and the table that figures are printed in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

HEAD = "| what | figure | to reach |\n|---|---|---|"

Row = tuple[str, str, str]  # what was measured, the figure with its unit, the figure to reach or ""


def show(rows: Iterable[Row]) -> None:
    """Print a table, each row as soon as it is known."""
    print(HEAD, flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def medians(rivals: Sequence[Callable[[], object]], rounds: int, name: str) -> list[float]:
    """Seconds that each takes, the median of so many rounds after a first one that does not count.

    By turns, so that what else the machine does hits all of them alike. name: of the progress bar.
    """
    seconds: list[list[float]] = [[] for _ in rivals]
    for turn in tqdm(range(rounds + 1), desc=name, leave=False):
        for rival, times in zip(rivals, seconds, strict=True):
            start = time.perf_counter()
            rival()
            if turn:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]
