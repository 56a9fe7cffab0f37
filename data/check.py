"""--check-data: read every image and mask of a config once, and report broken files and statistics."""

from __future__ import annotations

import functools
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.augment import fit_mask, random_part
from data.faults import check_size, not_all_hole, one_line, read_picture
from data.images import open_picture
from data.listing import find_masks, list_of_images
from data.mask_files import HOLE_BINS, alpha_note, bin_name, hole_bin, hole_ratio, read_mask
from data.parallel import cores, in_processes
from utils.config import Config
from utils.errors import UserError

LOOKED_AT = 64  # masks to read before a run starts

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Picture(NamedTuple):
    """Properties of an image, or why it cannot be used."""

    fault: str | None
    short: int = 0  # px of the shorter side
    seconds: float = 0.0  # to read and decode it


class Mask(NamedTuple):
    """Properties of a mask, or why it cannot be used."""

    fault: str | None
    ratio: float = 0.0  # share of hole pixels
    by_alpha: bool = False  # whether alpha is the mask


def check_data(config: Config) -> int:
    """Read all images and masks that a run may read and print statistics. Returns exit code 1 if any is broken.

    Only counts are kept, so memory does not grow with the number of files.
    """
    data, masks = config.data, config.masks
    sources = {"data.train": data.train, "data.val": data.val}
    folders = {"masks.train_dir": masks.train_dir, "masks.val_dir": masks.val_dir}
    all_images = {key: list_of_images(source, key) for key, source in sources.items()}
    all_masks = {key: find_masks(folder, key) for key, folder in folders.items()}
    broken = 0
    for key, images in all_images.items():
        # Training decodes a crop, as coarsely as that allows; validation decodes the full image.
        scale = data.crop_scale if key == "data.train" else None
        broken += check_pictures(key, images, data.image_size, data.workers, scale, data.crop_unit)
    for key, files in all_masks.items():
        broken += check_masks(key, files, masks.hole, data.image_size)
    return 1 if broken else 0


def check_pictures(
    key: str,
    paths: Sequence[str],
    size: int,
    workers: int,
    crop_scale: tuple[float, float] | None = None,
    crop_unit: str = "area",
) -> int:
    """Read images, list the broken ones, print sizes and decoding times of the others. Returns the number broken.

    size: data.image_size, px. crop_scale, crop_unit: read a crop, as in training; without crop_scale the full image.
    """
    sides: Counter[int] = Counter()
    seconds, broken = 0.0, 0
    look = functools.partial(look_at_picture, size=size, crop_scale=crop_scale, crop_unit=crop_unit)
    for picture in in_processes(look, paths, None, key, "images"):
        if picture.fault:
            broken += 1
            _tell(picture.fault)
        else:
            sides[picture.short] += 1
            seconds += picture.seconds
    print(f"{key}: {len(paths)} images, {broken} broken")
    if sides:
        whole = len(paths) - broken
        spread = ", ".join(f"{share:.0%} {_quantile(sides, share)}" for share in _QUANTILES)
        small = sum(count for side, count in sides.items() if side < size)
        print(f"  shorter side: {min(sides)} to {max(sides)} px; quantiles {spread}")
        print(f"  below data.image_size = {size}, so enlarged: {small} ({small / whole:.1%})")
        epoch = seconds / whole * len(paths) / min(max(1, workers), cores())
        print(
            f"  decoding an epoch: {_duration(epoch)} with data.workers = {workers} on {cores()} cores,"
            f" {1000 * seconds / whole:.1f} ms an image"
        )
    return broken


def look_at_some_masks(key: str, paths: Sequence[str] | Sequence[Path], hole: str) -> None:
    """Read LOOKED_AT masks of a folder, evenly spread. Raises UserError if none has a hole.

    Prints a line if some have no hole, and if alpha is the mask.
    """
    places = [i * len(paths) // LOOKED_AT for i in range(LOOKED_AT)] if len(paths) > LOOKED_AT else range(len(paths))
    chosen = [Path(paths[place]) for place in places]
    masks = [mask for path in chosen if not (mask := look_at_mask(path, hole)).fault]  # reported when read
    empty, by_alpha = sum(mask.ratio == 0 for mask in masks), sum(mask.by_alpha for mask in masks)
    of_them = f"of the {len(masks)} masks checked in {chosen[0].parent}" if masks else ""
    if masks and empty == len(masks):
        raise UserError(
            f"{key}: none {of_them} has a hole, so there is nothing to learn; holes are {hole} (masks.hole):"
            " are they another colour, or are black and white 0 and 1 instead of 0 and 255?"
            " `python masks.py --stats DIR` shows what the masks are like"
        )
    if empty:
        print(f"{key}: {empty} {of_them} have no hole ({empty / len(masks):.0%})", file=sys.stderr)
    if by_alpha:
        print(f"{key}: {by_alpha} {of_them} have an alpha channel; {alpha_note(hole)}", file=sys.stderr)


def check_masks(key: str, paths: Sequence[Path], hole: str, size: int) -> int:
    """Read masks, list the broken ones, print the hole ratios of the others. Returns the number broken.

    size: data.image_size, px, to which masks are cropped.
    """
    bins: Counter[int | None] = Counter()
    total, broken, empty, by_alpha = 0.0, 0, 0, 0
    for mask in in_processes(functools.partial(look_at_mask, hole=hole, size=size), paths, None, key, "masks"):
        if mask.fault:
            broken += 1
            _tell(mask.fault)
        else:
            bins[hole_bin(mask.ratio)] += 1
            total += mask.ratio
            empty += mask.ratio == 0
            by_alpha += mask.by_alpha
    print(f"{key}: {len(paths)} masks, {broken} broken")
    if bins:
        whole = len(paths) - broken
        names = [(bin_name(index), bins[index]) for index in range(len(HOLE_BINS))]
        shares = ", ".join(f"{name} {count / whole:.1%}" for name, count in [*names, ("outside", bins[None])])
        if empty:
            print(f"  without a hole: {empty} ({empty / whole:.1%}); the network learns nothing from them")
        if by_alpha:
            print(f"  with an alpha channel: {by_alpha}; {alpha_note(hole)}")
        print(f"  hole ratio: mean {total / whole:.3f}; {shares}; holes are {hole} (masks.hole)")
    return broken


def look_at_picture(path: str, size: int, crop_scale: tuple[float, float] | None, crop_unit: str) -> Picture:
    start = time.perf_counter()
    try:
        if crop_scale is None:
            short = min(read_picture(path).size)
        else:
            with open_picture(path) as picture:
                check_size(path, *picture.size)
                short = min(picture.size)
                rng = np.random.default_rng(zlib.crc32(os.fsencode(path)))  # the same crop at every check
                picture.decode(random_part(*picture.size, crop_scale, rng, crop_unit, size), size)
    except UserError as error:
        return Picture(str(error))
    return Picture(None, short, time.perf_counter() - start)


def look_at_mask(path: Path, hole: str, size: int = 0) -> Mask:
    """Read a mask. size: px to crop it to, with a valid pixel left; 0 leaves it uncropped."""
    try:
        mask, _, by_alpha = read_mask(path, hole)
        not_all_hole(fit_mask(mask, size) if size else mask, path, hole)
    except UserError as error:
        return Mask(str(error))
    return Mask(None, hole_ratio(mask), by_alpha)


def _tell(fault: str) -> None:
    tqdm.write(f"broken: {one_line(fault)}", file=sys.stderr)


def _quantile(counts: Counter[int], share: float) -> int:
    """Return the smallest value that at least this share of all values does not exceed."""
    wanted = share * counts.total()
    for value in sorted(counts):
        wanted -= counts[value]
        if wanted <= 0:
            return value
    return max(counts)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
