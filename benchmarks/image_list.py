"""Cost of a list of eight million images: opening, memory, an epoch's order, the first sample of a resumed run.

Run from the project's folder: python -m benchmarks.image_list
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.open_list import LOOKUPS, kilobytes, look_up, timed
from data.image_list import ImageList
from data.listing import is_unchanged, list_of_images
from data.loader import training_batches
from data.mask_files import write_mask
from data.order import SHUFFLE, shuffled
from data.samples import training_samples
from utils.config_files import load_config

PROJECT = Path(__file__).resolve().parent.parent
CATEGORIES = 400  # Places2 has about as many
WORKERS = 4
REPEATS = 25  # measurements of the first sample
RESUMED = 1_000_000  # step


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a list of images costs, and print a table.")
    parser.add_argument("--count", type=int, default=8_000_000, help="made-up images")
    parser.add_argument("--files", type=int, default=200_000, help="real, empty files for the scan")
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}", end="; ")
    print(f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores\n")
    print("| what | figure |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for what, figure in measured(Path(folder), args.count, args.files):
            print(f"| {what} | {figure} |", flush=True)


def measured(folder: Path, count: int, files: int) -> Iterator[tuple[str, str]]:
    """Measure and yield the rows of the table. Their files are written to `folder`."""
    path = folder / "images.list"
    seconds, images = timed(lambda: ImageList.of(made_up_names(count), "places", "places", {}))
    images.save(path)
    yield f"packing {count:,} paths", f"{seconds:.1f} s, {path.stat().st_size / 1e6:.1f} MB on the disk"

    for modules, name in (("numpy", "Python and numpy"), ("torch", "torch")):
        found = in_a_new_process(path, modules)
        yield f"opening, file not in memory, after importing {name}", f"{found['cold']:.3f} s"
        yield "opening, file in memory", f"{found['warm']:.3f} s"
        yield "resident before / after opening", f"{found['before']:.1f} / {found['after']:.1f} MB"
        yield f"resident after {LOOKUPS:,} random look-ups", f"{found['used']:.1f} MB"
        yield "resident after reading all paths", f"{found['all']:.1f} MB"
    yield "one look-up", f"{found['lookup'] * 1e6:.0f} µs"

    extra = worker_memory(path)
    yield f"own memory of each of {WORKERS} forked workers after {LOOKUPS:,} random look-ups", f"{extra:.1f} MB more"

    seconds, peak = order(count)
    yield f"place of an image in an epoch of {count:,}", f"{seconds * 1e6:.0f} µs, {peak / 1e3:.1f} kB at most"

    start, resumed = first_samples(folder, count)
    yield "first sample at step 0", f"{start * 1e3:.1f} ms"
    yield f"first sample at step {RESUMED:,}", f"{resumed * 1e3:.1f} ms, {resumed / start:.2f} times as long"

    seconds, again = scan(folder / "files", files)
    yield f"scanning {files:,} empty files in {-(-files // 500):,} folders", f"{seconds:.2f} s"
    yield "looking whether they have changed", f"{again * 1e3:.0f} ms"


def made_up_names(count: int) -> Iterator[str]:
    """Yield sorted names like those of Places2: a/airfield_0012/00000042.jpg."""
    each = -(-count // CATEGORIES)
    for i in range(count):
        category = i // each
        yield f"{chr(97 + category * 26 // CATEGORIES)}/category_{category:04}/{i % each + 1:08}.jpg"


def in_a_new_process(path: Path, modules: str) -> dict[str, float]:
    """Return the measurements of benchmarks/open_list.py in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.open_list", str(path), modules]
    return dict(json.loads(subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout))


def worker_memory(path: Path) -> float:
    """Return how many MB the private memory (Private_*) of a forked worker grows by its look-ups: the maximum."""
    context = multiprocessing.get_context("fork")
    images, together, answers = ImageList.open(path), context.Barrier(WORKERS), context.SimpleQueue()
    workers = [context.Process(target=_work, args=(images, seed, together, answers)) for seed in range(WORKERS)]
    for worker in workers:
        worker.start()
    extra = [float(answers.get()) for _ in workers]
    for worker in workers:
        worker.join()
    return max(extra)


def _work(images: ImageList, seed: int, together: Any, answers: Any) -> None:
    before = private()
    look_up(images, seed)
    together.wait()  # until all have looked up: pages shared by two workers are not private
    extra = private() - before
    together.wait()
    answers.put(extra)


def private() -> float:
    """Return the MB that this process shares with no other."""
    return kilobytes("/proc/self/smaps_rollup", "Private_") / 1e3


def order(count: int) -> tuple[float, int]:
    """Return the seconds per place of an epoch's order, and the peak of Python's memory in bytes."""
    places = range(0, count, -(-count // LOOKUPS))
    seconds, _ = timed(lambda: [shuffled(place, count, (SHUFFLE, 0, 0)) for place in places])
    tracemalloc.start()
    for place in places[:1000]:
        shuffled(place, count, (SHUFFLE, 0, 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds / len(places), peak


def first_samples(folder: Path, count: int) -> tuple[float, float]:
    """Return the median seconds to the first batch at step 0 and at step RESUMED. A few images fill `count` places."""
    pictures, masks = folder / "pictures", folder / "masks"
    pictures.mkdir()
    masks.mkdir()
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.jpg")
        mask = np.ones((256, 256), np.uint8)
        mask[8 * i : 8 * i + 100, 60:180] = 0
        write_mask(masks / f"{i}.png", mask)
    config = load_config(overrides=[f"masks.train_dir={masks}", "data.workers=0", "train.batch_size=8"])
    images = ImageList.of((f"{i % 16}.jpg" for i in range(count)), str(pictures), str(pictures), {})
    images.save(folder / "repeated.list")
    seconds: dict[int, list[float]] = {0: [], RESUMED: []}
    for _ in range(REPEATS):
        for step, times in seconds.items():
            samples = training_samples(config, images)
            times.append(timed(lambda: next(iter(training_batches(samples, config, step, 2 * RESUMED))))[0])  # noqa: B023
    return statistics.median(seconds[0]), statistics.median(seconds[RESUMED])


def scan(root: Path, files: int) -> tuple[float, float]:
    """Return the seconds to list `files` empty files, 500 per folder, and to check whether they have changed."""
    for name in (f"{i // 500 % 26:02}/{i // 500:06}/{i % 500:08}.jpg" for i in range(files)):
        with contextlib.suppress(FileExistsError):
            (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    seconds, images = timed(lambda: list_of_images(str(root), "data.train"))
    assert len(images) == files
    again, unchanged = timed(lambda: is_unchanged(images))
    assert unchanged
    return seconds, again


if __name__ == "__main__":
    main()
