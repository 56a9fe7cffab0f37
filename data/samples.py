"""Training samples and validation pairs.

A training sample is a function of (seed, step, slot in the batch): not of the number of worker processes,
of evaluations, or of when a run was interrupted.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.augment import augment_mask, centre_crop, fit_mask, random_crop
from data.listing import find_images
from data.order import CROPS, SHUFFLE, VALIDATION_MASKS, generator, shuffled
from utils.config import Config
from utils.errors import UserError, message_of
from utils.images import list_images, open_image, to_rgb
from utils.masks import HoleColour, read_mask

# How long a worker still serves after SIGTERM.
_LAST_SECONDS = 3

# data.workers is the user's choice, and slower at worst: no warning where the machine has fewer cores.
warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")

Pair = tuple[Tensor, Tensor]  # image float32 (3,H,W) in [0,1]; mask float32 (1,H,W), 1 = valid, 0 = hole


class TrainingSamples(Dataset[Pair]):
    """Sample number i = step · batch size + slot. Every image comes once in an epoch, in an order of its own."""

    def __init__(self, images: Sequence[str], masks: Sequence[Path], config: Config) -> None:
        self.images = images
        self.masks = masks
        self.seed = config.run.seed
        self.size = config.data.image_size
        self.crop_scale = config.data.crop_scale
        self.hole: HoleColour = config.masks.hole
        self.dilate = config.masks.dilate if config.masks.augment else None

    def __getitem__(self, number: int) -> Pair:
        rng = generator(CROPS, number, self.seed)
        epoch, position = divmod(number, len(self.images))
        image_path = self.images[shuffled(position, len(self.images), (SHUFFLE, epoch, self.seed))]
        image = random_crop(to_rgb(open_image(image_path)), self.size, self.crop_scale, rng)
        mask_path = self.masks[int(rng.integers(len(self.masks)))]
        mask, _ = read_mask(mask_path, self.hole)
        mask = augment_mask(mask, self.size, self.dilate, rng) if self.dilate else fit_mask(mask, self.size)
        return to_tensors(image, _not_all_hole(mask, mask_path, self.hole))


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
        image_path, mask_path = self.paths(index)
        image = centre_crop(to_rgb(open_image(image_path)), self.size, self.size)
        mask, _ = read_mask(mask_path, self.hole)
        return to_tensors(image, _not_all_hole(fit_mask(mask, self.size), mask_path, self.hole))

    def paths(self, index: int) -> tuple[str, Path]:
        """The files of the image and of the mask of a pair."""
        count = len(self.images)
        image = self.images[index * count // self.count if count > self.count else index % count]
        # Mask folders are often sorted by hole ratio: shuffled, a few images meet all ratios.
        turn, position = divmod(index, len(self.masks))
        return image, self.masks[shuffled(position, len(self.masks), (VALIDATION_MASKS, turn))]


def _not_all_hole(mask: np.ndarray, path: Path, hole: HoleColour) -> np.ndarray:
    """The mask itself, cropped to the training's size. UserError where it has no valid pixel: nothing to fill from."""
    if not mask.any():
        size = f"{mask.shape[1]}×{mask.shape[0]} px"
        raise UserError(f"mask {path}: cropped to {size} it is all hole; remove it, or change masks.hole ({hole} now)")
    return mask


def to_tensors(image: Image.Image, mask: np.ndarray) -> Pair:
    """An RGB image and a mask (H,W) of 0 and 1 in the project's form: see Pair."""
    pixels = np.divide(np.asarray(image).transpose(2, 0, 1), 255, dtype=np.float32, order="C")  # (3,H,W)
    return torch.from_numpy(pixels), torch.from_numpy(mask).float().unsqueeze(0)


class StepBatches:
    """Sample numbers of each step's batch, from one step to another; a batch sampler that can start anywhere."""

    def __init__(self, first_step: int, last_step: int, batch_size: int) -> None:
        self.steps = range(first_step, last_step)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))


class Batches(DataLoader[Pair]):
    """A DataLoader that passes on a worker's UserError as the one line that it is."""

    def __iter__(self) -> Iterator[Pair]:  # type: ignore[override]
        try:
            yield from super().__iter__()
            return
        except UserError as error:
            message = message_of(error)
            # By the frames of its traceback the error holds itself, and the iterator, whose workers would stay.
            error.__traceback__ = None
        raise UserError(message)


def training_samples(config: Config) -> TrainingSamples:
    """The samples of data.train with the masks of masks.train_dir. UserError where either is missing or empty."""
    return TrainingSamples(find_images(config.data.train, "data.train"), _find_masks(config, "train"), config)


def validation_pairs(config: Config) -> ValidationPairs:
    """The pairs of data.val and masks.val_dir. UserError where either is missing or empty."""
    return ValidationPairs(find_images(config.data.val, "data.val"), _find_masks(config, "val"), config)


def training_batches(samples: TrainingSamples, config: Config, first_step: int, last_step: int) -> Batches:
    """The batches of steps first_step … last_step − 1: image (B,3,H,W) and mask (B,1,H,W)."""
    batches = StepBatches(first_step, last_step, config.train.batch_size)
    return Batches(samples, batch_sampler=batches, **_loading(config))


def validation_batches(pairs: ValidationPairs, config: Config) -> Batches:
    """All validation pairs in order, in batches."""
    return Batches(pairs, batch_size=config.train.batch_size, **_loading(config))


def _loading(config: Config) -> dict[str, Any]:
    """DataLoader's arguments. A generator of its own: an iteration must not draw from torch's global one."""
    return {
        "num_workers": config.data.workers,
        "worker_init_fn": _start_worker,
        "pin_memory": torch.cuda.is_available() and config.run.device != "cpu",
        "generator": torch.Generator(),
    }


def _start_worker(_: int) -> None:
    # Ctrl-C reaches all processes of a terminal, and SIGTERM often all of a job. The main one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_soon)
    cv2.setNumThreads(0)  # one thread a worker


def _leave_soon(*_: object) -> None:
    """End this process, but not before the main one has its last batch: it finishes its step and saves."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))  # torch takes any other exit for a crash
    signal.alarm(_LAST_SECONDS)


def _find_masks(config: Config, split: str) -> list[Path]:
    folder = Path(config.masks.train_dir if split == "train" else config.masks.val_dir)
    advice = "`python masks.py` with the same config makes them"
    if not folder.is_dir():
        raise UserError(f"masks.{split}_dir: no such folder: {folder}; {advice}")
    masks = list_images(folder)
    if not masks:
        raise UserError(f"masks.{split}_dir: no masks in {folder}; {advice}")
    return masks
