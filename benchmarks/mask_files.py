"""Masks per second that masks.py writes, and that one core draws per style.

Run from the project's folder: python -m benchmarks.mask_files
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2

from benchmarks.tables import Row, show
from data.holes import draw_mask, spread_ratio
from data.order import TRAIN_MASKS, generator
from data.parallel import cores, in_processes
from utils.config import MASK_STYLES

PROJECT = Path(__file__).resolve().parent.parent
SIZE = 512  # px
FILES = 4_000
RUNS = 3  # of masks.py
DRAWN = 100  # masks per style and round
ROUNDS = 5


def rows() -> Iterator[Row]:
    """Yield (what was measured, figure, target)."""
    what = f"{FILES:,} masks of {SIZE}×{SIZE}, the styles mixed, cores: {cores()}"
    with tempfile.TemporaryDirectory() as folder:  # emptied at the end: ext4 creates files slowly after deleting many
        speeds = [write_files(Path(folder) / str(run)) for run in range(RUNS)]
    printed, whole = (statistics.median(found) for found in zip(*speeds, strict=True))
    yield f"masks.py: {what}", f"{printed:.0f} a second", "800 on two cores"
    yield "the same with the start of the command", f"{whole:.0f} a second", ""
    for style, speed in drawing_speeds().items():
        yield f"drawing alone, style {style}, {SIZE}×{SIZE}", f"{speed:.0f} a second on one core", ""


def write_files(folder: Path) -> tuple[float, float]:
    """Return the masks per second of a run of masks.py, as printed by it and by the wall time of the command."""
    command = [sys.executable, "masks.py", f"data.image_size={SIZE}", "masks.style=mixed"]
    command += [f"masks.train_dir={folder / 'train'}", f"masks.train_count={FILES}"]
    command += [f"masks.val_dir={folder / 'val'}", "masks.val_count=1"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    printed = re.search(r"(\d+) a second", done.stdout)
    assert printed, done.stdout
    return float(printed[1]), FILES / seconds


def drawing_speeds() -> dict[str, float]:
    """Return the masks per second of CPU time for each style, the median of the rounds."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as in masks.py
    try:
        seconds = list(in_processes(draw_some, MASK_STYLES * ROUNDS, 1, "drawing", "rounds"))
    finally:
        cv2.setNumThreads(threads)
    return {style: DRAWN / statistics.median(seconds[i :: len(MASK_STYLES)]) for i, style in enumerate(MASK_STYLES)}


def draw_some(style: str) -> float:
    """Return the CPU seconds for DRAWN masks with hole ratios as in the paper."""
    start = time.process_time()
    for number in range(DRAWN):
        draw_mask(generator(TRAIN_MASKS, number, 0), SIZE, style, spread_ratio(number, 0.01, 0.6, SIZE))
    return time.process_time() - start


if __name__ == "__main__":
    show(rows())
