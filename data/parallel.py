"""A process pool with a progress bar that Ctrl-C and SIGTERM end cleanly."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2
from tqdm import tqdm

from utils.errors import UserError
from utils.startup import keep_freed_memory

CHUNK = 16  # jobs per chunk
AHEAD = 4  # chunks in flight per process: bounds the memory
WORTH_A_PROCESS = 64  # jobs; with fewer, starting another process costs more than it saves

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], processes: int | None, name: str, unit: str
) -> Iterator[Result]:
    """Yield work(job) for each job, in order, from several processes (None: one per core), with a progress bar.

    Jobs are read and results kept only as needed. name, unit: labels of the progress bar.
    """
    keep_freed_memory()
    processes = processes or min(cores(), math.ceil(len(jobs) / WORTH_A_PROCESS))
    with contextlib.ExitStack() as stack:
        # Ctrl-C and SIGTERM stop this process. It lets the others finish their chunk and ends them.
        stack.enter_context(_on_signal(signal.SIGTERM, signal.default_int_handler))
        bar = stack.enter_context(tqdm(total=len(jobs), desc=name, unit=f" {unit}", disable=None))
        coming: Iterator[Result] = map(work, jobs)
        if processes > 1:
            coming = _spread(work, jobs, stack.enter_context(_pool(processes)), processes * AHEAD)
        for result in coming:
            yield result
            bar.update()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spread(
    work: Callable[[Job], Result], jobs: Sequence[Job], pool: ProcessPoolExecutor, ahead: int
) -> Iterator[Result]:
    """Yield the results in order, with at most `ahead` chunks in flight."""
    starts = range(0, len(jobs), CHUNK)

    def hand_out(start: int) -> Future[list[Result]]:
        return pool.submit(_work_off, work, [jobs[i] for i in range(start, min(start + CHUNK, len(jobs)))])

    with _on_signal(signal.SIGINT, signal.SIG_IGN):  # inherited by the processes started here
        waiting = deque(map(hand_out, starts[:ahead]))
    for start in starts[ahead:]:
        yield from waiting.popleft().result()
        waiting.append(hand_out(start))
    for chunk in waiting:
        yield from chunk.result()


def _work_off(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    return [work(job) for job in jobs]


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of spawned processes for the block. A fork would copy cv2's threads in any state."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start_process)
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError("a process ended too early; was memory short?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    keep_freed_memory()
    cv2.setNumThreads(1)  # there is one process per core
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _on_signal(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Set a signal handler within the block. Only the main thread can; in other threads this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
