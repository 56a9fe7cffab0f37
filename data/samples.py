"""Training samples and validation pairs.

A training sample is a function of the seed and the number of samples before it: not of the number of worker processes,
of evaluations, or of when a run was interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, default_collate

from data.augment import augment_mask, centre_crop, fit_mask, random_part
from data.faults import Fault, not_all_hole, read_part_of_picture, read_picture
from data.listing import find_images, find_masks
from data.mask_files import read_mask_alone
from data.order import CROPS, SHUFFLE, SUBSTITUTES, VALIDATION_MASKS, generator, shuffled
from utils.config import Config, HoleColour
from utils.errors import UserError, message_of
from utils.schedule import Phase, Schedule

# How long a worker still serves after SIGTERM: as long as torchrun, and Slurm, give the main process.
_LAST_SECONDS = 30
# How many other pictures are tried where one is broken: if all are, it is not the pictures, but the disk.
_TRIES = 30

# data.workers is the user's choice, and slower at worst: no warning where the machine has fewer cores.
warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")

# An image and its mask, 1 = valid, 0 = hole, or a batch of them. As data workers hand them over, for that is a quarter
# of the bytes: uint8 (3,H,W) from 0 to 255, whose colours lie side by side in memory, and uint8 (1,H,W).
RawPair = tuple[Tensor, Tensor]
Pair = tuple[Tensor, Tensor]  # the same as all others see it: float32 in [0,1], float32


class TrainingSamples(Dataset[Pair]):
    """Samples of a phase, by their number in the run. Every image comes once in an epoch, in a random order."""

    def __init__(self, images: Sequence[str], masks: Sequence[Path], config: Config, phase: Phase) -> None:
        self.images = images
        self.masks = masks
        self.phase = phase
        self.seed = config.run.seed
        self.size = phase.image_size
        self.crop_scale = phase.crop_scale
        self.crop_unit = config.data.crop_unit
        self.hole: HoleColour = config.masks.hole
        self.dilate = config.masks.dilate if config.masks.augment else None
        self.own_scale = config.masks.crop == "own_scale"

    def __getitem__(self, number: int) -> Pair:
        return as_floats(self.draw(number)[0])

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[RawPair, list[Fault]]]:
        """What a DataLoader asks for instead."""
        return [self.draw(number) for number in numbers]

    def draw(self, number: int) -> tuple[RawPair, list[Fault]]:
        """A sample, and the broken pictures that were met on the way to it."""
        part, rng, faults = self._part(number)
        image = resized(part, self.size)
        if rng.random() < 0.5:
            image = cv2.flip(image, 1)
        mask_path = self.masks[int(rng.integers(len(self.masks)))]
        mask = read_mask_alone(mask_path, self.hole)
        if self.dilate:
            mask = augment_mask(mask, self.size, self.dilate, rng, self.own_scale)
        else:
            mask = fit_mask(mask, self.size)
        return to_tensors(image, not_all_hole(mask, mask_path, self.hole)), faults

    def _part(self, number: int) -> tuple[np.ndarray, np.random.Generator, list[Fault]]:
        """The part of a picture that a sample shows, and the generator that drew it, for what is to be drawn still.

        Where the file is broken, it is a part of another: of one that is a function of the sample too.
        """
        count = len(self.images)
        faults: list[Fault] = []
        epoch, position = divmod(number, count)
        chosen = shuffled(position, count, (SHUFFLE, epoch, self.seed))
        substitutes: np.random.Generator | None = None
        for _ in range(1 + _TRIES):
            rng = generator(CROPS, number, self.seed)  # anew: the broken picture must not have drawn from it
            choose = functools.partial(random_part, scale=self.crop_scale, rng=rng, unit=self.crop_unit, size=self.size)
            try:
                return read_part_of_picture(self.images[chosen], choose, self.size), rng, faults
            except UserError as error:
                faults.append(Fault(number, self.images[chosen], str(error)))
            substitutes = substitutes or generator(SUBSTITUTES, number, self.seed)
            chosen = int(substitutes.integers(count))
        others = len({fault.path for fault in faults}) - 1
        raise UserError(faults[0].reason + (f"; nor is any of {others} others that were tried instead" * (others > 0)))


class ValidationPairs(Dataset[Pair]):
    """data.val_pairs pairs of an image and its mask, the same at every evaluation and on every machine.

    Of more images some are taken, evenly spread; fewer are met by several masks each.
    """

    def __init__(self, images: Sequence[str], masks: Sequence[Path], config: Config) -> None:
        self.images = images
        self.masks = masks
        self.count = config.data.val_pairs
        self.size = config.data.image_size
        self.hole: HoleColour = config.masks.hole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        return as_floats(self._read(index))

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[RawPair, list[Fault]]]:
        """What a DataLoader asks for instead. No fault is ever among it: a broken picture stops the run."""
        return [(self._read(index), []) for index in indices]

    def _read(self, index: int) -> RawPair:
        image_path, mask_path = self.paths(index)
        image = centre_crop(read_picture(image_path), self.size, self.size)
        mask = fit_mask(read_mask_alone(mask_path, self.hole), self.size)
        return to_tensors(np.array(image), not_all_hole(mask, mask_path, self.hole))

    def paths(self, index: int) -> tuple[str, Path]:
        """The files of the image and of the mask of a pair."""
        count = len(self.images)
        image = self.images[index * count // self.count if count > self.count else index % count]
        # Mask folders are often sorted by hole ratio: shuffled, a few images meet all ratios.
        turn, position = divmod(index, len(self.masks))
        return image, self.masks[shuffled(position, len(self.masks), (VALIDATION_MASKS, turn))]


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """An image, uint8 (H,W,3), at size×size px: bicubic, with a wider kernel where it shrinks, as Pillow's."""
    # Colours side by side, and torch's own strides for the batch of one: so it takes its fast way.
    batch = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)
    batch = interpolate(batch, (size, size), mode="bicubic", antialias=True)
    return batch.permute(0, 2, 3, 1)[0].numpy()


def to_tensors(image: np.ndarray, mask: np.ndarray) -> RawPair:
    """An RGB image, uint8 (H,W,3), and a mask (H,W) of 0 and 1 as a DataLoader gets them."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))  # torch takes ten times as long for it, here or among floats
    return torch.from_numpy(planes), torch.from_numpy(mask).unsqueeze(0)


def as_floats(pair: RawPair, device: torch.device | str = "cpu") -> Pair:
    """A pair, or a batch of them, on a device: float32, contiguous, the image in [0,1]."""
    image, mask = (tensor.to(device, non_blocking=True) for tensor in pair)
    # By a tensor of the device: on a GPU torch would multiply by a rounded 1/255 instead of dividing by a number.
    return image.to(torch.float32).div_(torch.full((), 255.0, device=device)), mask.to(torch.float32)


class StepBatches:
    """Sample numbers of each step's batch, for steps of one phase; a batch sampler that can start at any step.

    Each rank takes its share of a step's slots: an equal share of the first of the batch's micro-batches, then of the
    second, and so on. Which slots a micro-batch has does not depend on the world size.
    """

    def __init__(
        self, phase: Phase, first_step: int, last_step: int, micro_batches: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        self.phase = phase
        self.steps = range(first_step, last_step)
        # Cut into micro_batches · world_size shares, this rank's are numbers rank, rank + world_size, …
        shares = np.arange(phase.batch_size).reshape(micro_batches * world_size, -1)
        self.slots = shares[rank::world_size].ravel().tolist()

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            first = self.phase.first_sample_of(step)
            yield [first + slot for slot in self.slots]


class Batches(DataLoader[Pair]):
    """A DataLoader whose batches come as floats on a device. It tells of broken pictures, and passes on a worker's
    UserError as the one line that it is."""

    def __init__(
        self,
        dataset: Dataset[Pair],
        device: torch.device | str = "cpu",
        tell: Callable[[Fault], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, collate_fn=_collate, **options)
        self.device = device
        self.tell = tell

    def __iter__(self) -> Iterator[Pair]:  # type: ignore[override]
        try:
            for image, mask, *faults in super().__iter__():
                if self.tell:
                    for fault in faults:
                        self.tell(fault)
                yield as_floats((image, mask), self.device)
            return
        except UserError as error:
            message = message_of(error)
            # By the frames of its traceback the error holds itself, and the iterator, whose workers would stay.
            error.__traceback__ = None
        raise UserError(message)


def training_samples(
    config: Config, images: Sequence[str] | None = None, masks: Sequence[Path] | None = None, phase: Phase | None = None
) -> TrainingSamples:
    """The samples of a phase (the first, by default). UserError where images or masks are missing.

    images, masks: those of data.train and masks.train_dir, where they are listed already.
    """
    images = find_images(config.data.train, "data.train") if images is None else images
    masks = find_masks(config.masks.train_dir, "masks.train_dir") if masks is None else masks
    return TrainingSamples(images, masks, config, phase or Schedule(config).phases[0])


def validation_pairs(config: Config, images: Sequence[str] | None = None) -> ValidationPairs:
    """The pairs of data.val and masks.val_dir. UserError where either is missing or empty.

    images: those of data.val, where they are listed already.
    """
    images = find_images(config.data.val, "data.val") if images is None else images
    return ValidationPairs(images, find_masks(config.masks.val_dir, "masks.val_dir"), config)


def training_batches(
    samples: TrainingSamples,
    config: Config,
    first_step: int,
    last_step: int,
    tell: Callable[[Fault], object] | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> Batches:
    """The batches of steps first_step … last_step − 1 of the samples' phase, on the device, float32.

    A batch is an image (B,3,H,W) and a mask (B,1,H,W).
    Each rank gets its share of every batch: see StepBatches.
    tell: is called with each broken picture of a batch, in this process, before the batch comes.
    """
    batches = StepBatches(samples.phase, first_step, last_step, config.train.accumulate, rank, world_size)
    return Batches(samples, device, tell, batch_sampler=batches, **_loading(config))


def validation_batches(
    pairs: ValidationPairs, config: Config, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> Batches:
    """All validation pairs in order, in batches of the size of a micro-batch, on the device. Each rank gets every
    world_size-th pair. The loader's sampler holds their numbers."""
    size = max(1, config.train.batch_size // (config.train.accumulate * world_size))
    return Batches(pairs, device, batch_size=size, sampler=range(rank, len(pairs), world_size), **_loading(config))


def _loading(config: Config) -> dict[str, Any]:
    """DataLoader's arguments. A generator of its own: an iteration must not draw from torch's global one."""
    return {
        "num_workers": config.data.workers,
        "worker_init_fn": _start_worker,
        "pin_memory": torch.cuda.is_available() and config.run.device != "cpu",
        "generator": torch.Generator(),
    }


def _collate(drawn: Sequence[tuple[RawPair, list[Fault]]]) -> tuple[Any, ...]:
    """A batch of images, one of masks, and then whatever faults were met."""
    return (*default_collate([pair for pair, _ in drawn]), *(fault for _, faults in drawn for fault in faults))


@contextlib.contextmanager
def reports_killed_workers() -> Iterator[None]:
    """A UserError where a data worker is killed: torch raises then, by a signal, wherever this process just is."""
    try:
        try:
            yield
        except (ConnectionError, EOFError):  # from a worker that was killed while it handed over a batch
            time.sleep(1)  # torch's signal is still to come, and must not come later
            raise
    except (ConnectionError, EOFError, RuntimeError) as error:
        # Of two errors the cause is the one that knows the signal.
        texts = f"{error.__cause__}\n{error}"
        told = re.search(
            r"^DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited unexpectedly)", texts, re.M
        )
        if not told and isinstance(error, RuntimeError):
            raise
        how = told[1] if told else "ended"
        raise UserError(f"a data worker {how}; was memory short? Fewer data.workers need less") from None


def _start_worker(_: int) -> None:
    # Ctrl-C reaches all processes of a terminal, and SIGTERM often all of a job. The main one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_soon)
    cv2.setNumThreads(0)  # one thread a worker
    # What hands over batches, a thread of multiprocessing, shows a traceback where the main process ends meanwhile.
    sys.excepthook = lambda *_: None


def _leave_soon(*_: object) -> None:
    """End this process, but not before the main one has its last batch: it finishes its step and saves."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))  # torch takes any other exit for a crash
    signal.alarm(_LAST_SECONDS)
