"""Work spread over processes, with a progress bar, that Ctrl-C and SIGTERM end cleanly."""

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

CHUNK = 16  # jobs that a process takes at a time
AHEAD = 4  # chunks for each process that are handed out and not yet taken back: no more is held in memory
WORTH_A_PROCESS = 64  # jobs; for fewer, another process takes longer to start than it saves

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], processes: int | None, name: str, unit: str
) -> Iterator[Result]:
    """work(job) of each job, in order, by several processes and with a progress bar; None = one process per core.

    Jobs are taken and results kept only as they are needed. name, unit: of the progress bar.
    """
    keep_freed_memory()
    processes = processes or min(cores(), math.ceil(len(jobs) / WORTH_A_PROCESS))
    with contextlib.ExitStack() as stack:
        # Ctrl-C and SIGTERM stop this process, which lets the others finish what they are at and ends them.
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
    """The results in order, with at most so many chunks of jobs ahead of the one that is waited for."""
    starts = range(0, len(jobs), CHUNK)

    def hand_out(start: int) -> Future[list[Result]]:
        return pool.submit(_work_off, work, [jobs[i] for i in range(start, min(start + CHUNK, len(jobs)))])

    with _on_signal(signal.SIGINT, signal.SIG_IGN):  # inherited by the processes that start here
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
    """Processes that start afresh (a fork would copy cv2's threads in any state) and end with this block."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start_process)
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError("a process ended too early; was memory short?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    keep_freed_memory()
    cv2.setNumThreads(1)  # one process per core: more threads would only wait for each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _on_signal(number: signal.Signals, handler: Any) -> Iterator[None]:
    """A signal is handled so within this block. Only the main thread can set that; in others nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
