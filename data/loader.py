"""Batches of samples: the samples of each step, and the start and end of worker processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from data.faults import Fault
from data.prefetch import copied_ahead
from data.samples import Sample, TrainingSamples, ValidationPairs
from data.schedule import Phase
from data.shared_memory import BESIDE, TRAINING, tell_of_fewer, workers_that_fit
from utils.config import Config
from utils.errors import UserError, message_of

# Seconds that a worker continues after SIGTERM: as long as torchrun and Slurm wait for the main process.
_LAST_SECONDS = 30

# More workers than cores are slower at worst, so no warning.
warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")

Pair = tuple[Tensor, Tensor]  # images (N,3,H,W) in [0,1] and masks (N,1,H,W), 1 = valid, 0 = hole: float32


def as_floats(image: Tensor, mask: Tensor, device: torch.device | str = "cpu") -> Pair:
    """Return the image and mask of a sample or batch on a device: float32, contiguous, the image in [0,1]."""
    image, mask = (tensor.to(device, non_blocking=True) for tensor in (image, mask))
    # The divisor is a tensor, since torch on a GPU replaces division by a number with a rounded 1/255.
    return image.to(torch.float32).div_(torch.full((), 255.0, device=device)), mask.to(torch.float32)


class StepBatches:
    """Batch sampler for steps of one phase that can start at any step; yields sample numbers.

    Each rank takes an equal share of each micro-batch of a step, in order. The slots of a micro-batch do not depend on
    the world size.
    """

    def __init__(
        self, phase: Phase, first_step: int, last_step: int, micro_batches: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        self.phase = phase
        self.steps = range(first_step, last_step)
        # Split into micro_batches · world_size shares; this rank gets numbers rank, rank + world_size, …
        shares = np.arange(phase.batch_size).reshape(micro_batches * world_size, -1)
        self.slots = shares[rank::world_size].ravel().tolist()

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            first = self.phase.first_sample_of(step)
            yield [first + slot for slot in self.slots]


class Batches(DataLoader[Sample]):
    """A DataLoader that yields float batches on a device. On CUDA, copying the next batch overlaps with computation.

    tell: called with each broken image of a batch before the batch is yielded.
    A worker's UserError is raised here with its one-line message.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        device: torch.device | str = "cpu",
        tell: Callable[[Fault], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, collate_fn=_collate, **options)
        self.device = torch.device(device)
        self.tell = tell

    def __iter__(self) -> Iterator[Pair]:  # type: ignore[override]
        try:
            yield from copied_ahead(self._bytes(), lambda pair: as_floats(*pair, self.device), self.device)
            return
        except UserError as error:
            message = message_of(error)
            # The traceback references the iterator and would keep its workers alive.
            error.__traceback__ = None
        raise UserError(message)

    def _bytes(self) -> Iterator[Pair]:
        """Yield the uint8 batches of the workers."""
        for image, mask, faults in super().__iter__():
            if self.tell:
                for fault in faults:
                    self.tell(fault)
            yield image, mask


def training_batches(
    samples: TrainingSamples,
    config: Config,
    first_step: int,
    last_step: int,
    tell: Callable[[Fault], object] | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    beside: bool = False,
) -> Batches:
    """Return the batches of steps first_step … last_step − 1 of the samples' phase, on the device, float32.

    A batch is an image (B,3,H,W) and a mask (B,1,H,W).
    Each rank gets its share of every batch: see StepBatches.
    tell: called in this process with each broken image of a batch before the batch is yielded.
    beside: training batches are held at the same time, so these may use less shared memory.
    """
    batches = StepBatches(samples.phase, first_step, last_step, config.train.accumulate, rank, world_size)
    share, tells = (BESIDE, False) if beside else (TRAINING, rank == 0)
    loading = _loading(config, samples.phase.batch_size // world_size, samples.size, share, tells)
    return Batches(samples, device, tell, batch_sampler=batches, **loading)


def validation_batches(
    pairs: ValidationPairs, config: Config, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> Batches:
    """Return all validation pairs in order, on the device, in batches of the size of a micro-batch.

    Each rank gets every world_size-th pair. The loader's sampler contains their numbers.
    """
    size = max(1, config.train.batch_size // (config.train.accumulate * world_size))
    loading = _loading(config, size, config.data.image_size, BESIDE)
    return Batches(pairs, device, batch_size=size, sampler=range(rank, len(pairs), world_size), **loading)


def _loading(config: Config, batch: int, size: int, share: float, tells: bool = False) -> dict[str, Any]:
    """Return DataLoader arguments for batches of `batch` images of size×size px within a share of shared memory.

    tells: print a line if fewer workers than data.workers are used.
    """
    batch_bytes = batch * size * size * 4  # three colour channels and a mask
    workers, prefetch = workers_that_fit(config.data.workers, batch_bytes, share)
    if tells:
        tell_of_fewer(config.data.workers, workers, batch_bytes)
    return {
        "num_workers": workers,
        "prefetch_factor": prefetch or None,
        "worker_init_fn": _start_worker,
        "pin_memory": torch.cuda.is_available() and config.run.device != "cpu",
        "generator": torch.Generator(),  # iterating must not draw from torch's global generator
    }


def _collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, list[Fault]]:
    """Return a batch of images, one of masks, and the faults of all samples."""
    image, mask = default_collate([sample[:2] for sample in samples])
    return image, mask, [fault for sample in samples for fault in sample.faults]


@contextlib.contextmanager
def reports_killed_workers() -> Iterator[None]:
    """Raise UserError if a data worker is killed. torch reports that from a signal handler, anywhere in the block."""
    try:
        try:
            yield
        except (ConnectionError, EOFError):  # a worker was killed while it sent a batch
            time.sleep(1)  # wait for torch's signal here
            raise
    except (ConnectionError, EOFError, RuntimeError) as error:
        # The signal is named in the message of the error or its cause.
        texts = f"{error.__cause__}\n{error}"
        found = re.search(
            r"^DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited unexpectedly)", texts, re.M
        )
        if not found and isinstance(error, RuntimeError):
            raise
        how = found[1] if found else "ended"
        lacking = "memory short, or /dev/shm full" if "Bus error" in how else "memory short"
        raise UserError(f"a data worker {how}; was {lacking}? If so, use fewer data.workers") from None


def _start_worker(_: int) -> None:
    # Ctrl-C reaches all processes of a terminal, and SIGTERM often all of a job. The main process decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_soon)
    cv2.setNumThreads(0)  # one thread per worker
    # The thread that sends batches would print a traceback if the main process ended meanwhile.
    sys.excepthook = lambda *_: None


def _leave_soon(*_: object) -> None:
    """Exit this process after a delay, in which the main process can finish its step and save."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))  # torch treats any other exit as a crash
    signal.alarm(_LAST_SECONDS)
