"""Training samples and validation pairs.

A training sample depends only on the seed and its number, not on the number of workers or validations, nor on
interruptions of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from data.augment import augment_mask, centre_crop, fit_mask, random_part
from data.faults import Fault, check_size, not_all_hole, read_picture
from data.images import open_picture
from data.listing import find_images, find_masks
from data.mask_files import read_mask_alone
from data.mask_stats import inscribed_radius
from data.order import CROPS, HOLE_RADIUS, SHUFFLE, SUBSTITUTES, VALIDATION_MASKS, generator, shuffled
from data.schedule import Phase, Schedule
from utils.config import Config
from utils.errors import UserError

# Images to try in place of a broken one. If all of them are broken, the disk is at fault.
_TRIES = 30


class Sample(NamedTuple):
    """An image and its mask as uint8, a quarter of the bytes of float32 for a worker to send."""

    image: Tensor  # uint8 (3,H,W), 0 to 255, contiguous
    mask: Tensor  # uint8 (1,H,W), 1 = valid, 0 = hole
    faults: list[Fault]  # the broken images that this one replaces


Paths = Sequence[str] | Sequence[Path]


class TrainingSamples(Dataset[Sample]):
    """Samples of a phase, by their number in the run. Every image occurs once per epoch, in random order."""

    def __init__(self, images: Sequence[str], masks: Paths, config: Config, phase: Phase) -> None:
        self.images = images
        self.masks = masks
        self.phase = phase
        self.seed = config.run.seed
        self.size = phase.image_size
        self.crop_scale = phase.crop_scale
        self.crop_unit = config.data.crop_unit
        self.hole = config.masks.hole
        self.dilate = config.masks.dilate if config.masks.augment else None
        self.own_scale = config.masks.crop == "own_scale"
        self.outlines = config.masks.outlines

    def __getitem__(self, number: int) -> Sample:
        part, rng, faults = self._part(number)
        image = resized(part, self.size)
        if rng.random() < 0.5:
            image = cv2.flip(image, 1)
        return to_sample(image, self._mask(rng), faults)

    def hole_radius(self, count: int = 300) -> float:
        """Return px, to a tenth: the 99 % quantile, over `count` masks, of the largest circle's radius in the holes."""
        masks = (self._mask(generator(HOLE_RADIUS, number, self.seed)) for number in range(count))
        return round(float(np.quantile([inscribed_radius(mask) * min(mask.shape) for mask in masks], 0.99)), 1)

    def _mask(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random mask for a sample, uint8 (H,W), 1 = valid, 0 = hole."""
        mask_path = self.masks[int(rng.integers(len(self.masks)))]
        mask = read_mask_alone(mask_path, self.hole)
        if self.dilate:
            mask = augment_mask(mask, self.size, self.dilate, rng, self.own_scale, self.outlines)
        else:
            mask = fit_mask(mask, self.size)
        return not_all_hole(mask, mask_path, self.hole)

    def _part(self, number: int) -> tuple[np.ndarray, np.random.Generator, list[Fault]]:
        """Return a sample's crop, the generator that drew it, for the rest of the sample, and the faults.

        A broken image is replaced by another one that also depends only on seed and number.
        """
        count = len(self.images)
        faults: list[Fault] = []
        epoch, position = divmod(number, count)
        chosen = shuffled(position, count, (SHUFFLE, epoch, self.seed))
        substitutes: np.random.Generator | None = None
        for _ in range(1 + _TRIES):
            path = self.images[chosen]
            rng = generator(CROPS, number, self.seed)  # a new one: the broken image may have advanced the last
            try:
                with open_picture(path) as picture:
                    check_size(path, *picture.size)
                    box = random_part(*picture.size, self.crop_scale, rng, self.crop_unit, self.size)
                    return picture.decode(box, self.size), rng, faults
            except UserError as error:
                faults.append(Fault(number, path, str(error)))
            substitutes = substitutes or generator(SUBSTITUTES, number, self.seed)
            chosen = int(substitutes.integers(count))
        others = len({fault.path for fault in faults}) - 1
        raise UserError(
            faults[0].reason + (f"; {others} other images that were tried instead failed, too" * (others > 0))
        )


class ValidationPairs(Dataset[Sample]):
    """data.val_pairs pairs of an image and a mask, the same in every validation and on every machine.

    If there are more images, they are sampled at even distances. If there are fewer, each is paired with several masks.
    """

    def __init__(self, images: Sequence[str], masks: Paths, config: Config) -> None:
        self.images = images
        self.masks = masks
        self.count = config.data.val_pairs
        self.size = config.data.image_size
        self.hole = config.masks.hole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Return a pair, never with a fault: a broken image stops the run."""
        image_path, mask_path = self.paths(index)
        image = centre_crop(read_picture(image_path), self.size, self.size)
        mask = fit_mask(read_mask_alone(mask_path, self.hole), self.size)
        return to_sample(np.array(image), not_all_hole(mask, mask_path, self.hole))

    def paths(self, index: int) -> tuple[str, str | Path]:
        """Return the paths of a pair's image and mask."""
        count = len(self.images)
        image = self.images[index * count // self.count if count > self.count else index % count]
        # Mask folders are often sorted by hole ratio. Shuffling gives a few images all ratios.
        turn, position = divmod(index, len(self.masks))
        return image, self.masks[shuffled(position, len(self.masks), (VALIDATION_MASKS, turn))]


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image, uint8 (H,W,3), to size×size px: bicubic and antialiased, like Pillow."""
    # Channels-last, with the strides that torch gives a batch of one: its fast path needs both.
    batch = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)
    batch = interpolate(batch, (size, size), mode="bicubic", antialias=True)
    return batch.permute(0, 2, 3, 1)[0].numpy()


def to_sample(image: np.ndarray, mask: np.ndarray, faults: Sequence[Fault] = ()) -> Sample:
    """Build a sample from an RGB image, uint8 (H,W,3), and a mask (H,W) of 0 and 1."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))  # torch takes ten times as long to split channels
    return Sample(torch.from_numpy(planes), torch.from_numpy(mask).unsqueeze(0), list(faults))


def training_samples(
    config: Config,
    images: Sequence[str] | None = None,
    masks: Paths | None = None,
    phase: Phase | None = None,
) -> TrainingSamples:
    """Return the samples of a phase (default: the first). Raises UserError if images or masks are missing.

    images, masks: those of data.train and masks.train_dir, if already listed.
    """
    images = find_images(config.data.train, "data.train") if images is None else images
    masks = find_masks(config.masks.train_dir, "masks.train_dir") if masks is None else masks
    return TrainingSamples(images, masks, config, phase or Schedule(config).phases[0])


def validation_pairs(
    config: Config, images: Sequence[str] | None = None, masks: Paths | None = None
) -> ValidationPairs:
    """Return the pairs of data.val and masks.val_dir. Raises UserError if either is missing or empty.

    images, masks: those of data.val and masks.val_dir, if already listed.
    """
    images = find_images(config.data.val, "data.val") if images is None else images
    masks = find_masks(config.masks.val_dir, "masks.val_dir") if masks is None else masks
    return ValidationPairs(images, masks, config)
