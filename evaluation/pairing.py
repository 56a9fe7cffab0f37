"""Pairs of image and mask in an evaluation: a function of (seed, image number, bin, border), kept in a file."""

from __future__ import annotations

import csv
import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.augment import centre_crop, fit_mask
from data.images import open_image, to_rgb
from data.mask_files import (
    BORDERS,
    HOLE_BINS,
    INDEX,
    alpha_note,
    bin_name,
    hole_bin,
    hole_ratio,
    keeps_border,
    read_mask,
)
from data.names import list_images
from data.order import EVALUATION_MASKS, shuffled
from utils.errors import UserError

RATIO_TOLERANCE = 0.01
SMALLEST = 16  # px: SSIM needs at least its window of 11 px


class MaskFile(NamedTuple):
    """A mask of a test set, fitted to the size of the evaluation."""

    name: str  # file name
    ratio: float  # share of hole
    border: str  # one of BORDERS


class EvaluationPair(NamedTuple):
    """An image and its mask: a row of pairs.csv."""

    pair: int
    image: str  # relative to --images, or to the folder of that list
    mask: str  # file name in --masks
    bin: str  # name of one of HOLE_BINS, or "" if the ratio is in none
    border: str  # one of BORDERS
    ratio: float  # share of hole


def survey_masks(
    folder: Path, hole: str, size: int | None, quiet: bool = False, names: Set[str] | None = None
) -> list[MaskFile]:
    """Read all masks of a folder, sorted by name. Raises UserError if there are none or one is unusable.

    The border comes from the folder's index.csv, which `masks.py --benchmark` writes, or else from the mask itself.
    size: as in read_pair. names: read only these (all).
    """
    paths = list_images(folder)
    if not paths:
        raise UserError(f"--masks: no masks in the folder {folder}; `python masks.py --benchmark DIR` makes a test set")
    borders = _indexed_borders(folder / INDEX)
    found, by_alpha = [], 0
    if names is not None:
        paths = [path for path in paths if path.name in names]
    for path in tqdm(paths, desc="masks", unit="mask", leave=False, disable=quiet):
        mask, of_alpha = _read_fitted(path, hole, size)
        by_alpha += of_alpha
        border = borders.get(path.name) or ("free" if keeps_border(mask) else "any")
        found.append(MaskFile(path.name, hole_ratio(mask), border))
    if by_alpha:
        print(f"{folder}: {by_alpha} of {len(found)} masks have an alpha channel; {alpha_note(hole)}", file=sys.stderr)
    return found


def check_pairs(pairs: Sequence[EvaluationPair], masks: Sequence[MaskFile], source: Path) -> None:
    """Raise UserError if a pair's ratio, bin or border differs from its mask's. source: the file of the pairs.

    Ratios may differ by RATIO_TOLERANCE, because resizing changes them slightly.
    """
    by_name = {mask.name: mask for mask in masks}
    for pair in pairs:
        mask = by_name.get(pair.mask)
        if mask is None:
            raise UserError(f"--pairs: {source} names the mask {pair.mask}, which --masks lacks")
        index = hole_bin(pair.ratio)
        said = pair.ratio, pair.bin, pair.border
        its_own = mask.ratio, "" if index is None else bin_name(index), mask.border
        if not abs(pair.ratio - mask.ratio) <= RATIO_TOLERANCE or said[1:] != its_own[1:]:  # NaN must fail
            raise UserError(
                f"--pairs: {source} says of {pair.mask} ratio, bin, border {said[0]:.4f}, {said[1]}, {said[2]}; the"
                f" mask has {mask.ratio:.4f}, {_bin_of(mask.ratio)}, {mask.border}: other masks, --hole or --size?"
            )


def _bin_of(ratio: float) -> str:
    index = hole_bin(ratio)
    return "no bin" if index is None else bin_name(index)


def _indexed_borders(path: Path) -> dict[str, str]:
    """Read the border of each mask by file name from an index.csv; {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["file"]: "any" if int(row["border"]) == 0 else "free" for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"not an index of masks with the columns file and border: {path}; fix or remove it") from None


def make_pairs(images: Sequence[str], masks: Sequence[MaskFile], seed: int) -> list[EvaluationPair]:
    """Pair each image with one mask of every bin and border that occurs. Masks outside all bins are left out.

    The mask of image number i is a function of (seed, i, bin, border) and of the masks. Every mask of a bin and border
    is used once before any is used twice. Raises UserError if no mask is in a bin.
    """
    cells: dict[tuple[int, int], list[MaskFile]] = {}  # by index in HOLE_BINS and in BORDERS
    for mask in masks:
        index = hole_bin(mask.ratio)
        if index is not None:
            cells.setdefault((index, BORDERS.index(mask.border)), []).append(mask)
    if not cells:
        ratios = sorted(mask.ratio for mask in masks)
        raise UserError(
            f"--masks: none of the {len(masks)} masks has a hole ratio above {HOLE_BINS[0][0]} and up to"
            f" {HOLE_BINS[-1][1]}; theirs go from {ratios[0]:.3f} to {ratios[-1]:.3f}; is --hole the right colour?"
        )
    pairs: list[EvaluationPair] = []
    for i, image in enumerate(images):
        for (index, border), members in sorted(cells.items()):
            turn, position = divmod(i, len(members))
            mask = members[shuffled(position, len(members), (EVALUATION_MASKS, seed, index, border, turn))]
            pairs.append(EvaluationPair(len(pairs), image, mask.name, bin_name(index), mask.border, mask.ratio))
    return pairs


def format_pairs(pairs: Sequence[EvaluationPair]) -> str:
    """Return the pairs as the text of pairs.csv. Ratios have enough digits to be read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EvaluationPair._fields)
    writer.writerows(pairs)
    return text.getvalue()


def read_pairs(path: Path) -> list[EvaluationPair]:
    """Read the pairs of a file in the format of format_pairs. Raises UserError if it is missing or invalid."""
    bins = {"", *(bin_name(index) for index in range(len(HOLE_BINS)))}
    pairs = []
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            if list(reader.fieldnames or ()) != list(EvaluationPair._fields):
                raise ValueError(f"its first line must be {','.join(EvaluationPair._fields)}")
            for number, row in enumerate(reader):
                pair = EvaluationPair(
                    int(row["pair"]), row["image"], row["mask"], row["bin"], row["border"], float(row["ratio"])
                )
                if pair.pair != number or pair.bin not in bins or pair.border not in BORDERS:
                    raise ValueError(f"line {number + 2}: {','.join(map(str, row.values()))}")
                pairs.append(pair)
    except FileNotFoundError:
        raise UserError(f"--pairs: no such file: {path}") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"--pairs: not the pairs of an evaluation: {path}: {error}") from None
    if not pairs:
        raise UserError(f"--pairs: no pairs in {path}")
    return pairs


def as_listed(pairs: Iterable[EvaluationPair], images: Iterable[str], masks: Iterable[str]) -> list[EvaluationPair]:
    """Return the pairs with names spelt as in `images` and `masks`: é may be one character or two."""
    image_names, mask_names = (
        {unicodedata.normalize("NFC", name): name for name in names} for names in (images, masks)
    )

    def listed(name: str, names: dict[str, str]) -> str:
        return names.get(unicodedata.normalize("NFC", name), name)

    return [pair._replace(image=listed(pair.image, image_names), mask=listed(pair.mask, mask_names)) for pair in pairs]


def names_of(images: Sequence[str], root: Path) -> dict[str, str]:
    """Return paths of images by their names in pairs.csv: relative to `root` if they are inside it."""
    names = {}
    for path in images:
        name = os.path.relpath(path, root)
        names[path if name.startswith(os.pardir) else name] = path
    return names


def read_pair(image: str, mask: Path, hole: str, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Read an image (H,W,3), float32 in [0,1], and a mask (H,W), uint8, 1 = valid, 0 = hole, of the same size.

    Both are centre-cropped and resized to size×size px. If `size` is None, the mask keeps its size and the image is
    fitted to it. Raises UserError if a file cannot be read or the mask has no hole.
    """
    valid, _ = _read_fitted(mask, hole, size)
    if valid.all():
        raise UserError(f"mask {mask} has no {hole} pixel, so no hole to measure; is --hole the right colour?")
    height, width = valid.shape
    pixels = np.asarray(centre_crop(to_rgb(open_image(image)), width, height))
    return np.divide(pixels, 255, dtype=np.float32), valid


def _read_fitted(path: Path, hole: str, size: int | None) -> tuple[np.ndarray, bool]:
    """Return the mask as in read_pair, and whether it comes from the alpha channel."""
    mask, _, by_alpha = read_mask(path, hole)
    if size:
        mask = fit_mask(mask, size)
    if min(mask.shape) < SMALLEST:
        raise UserError(
            f"mask {path} has {mask.shape[1]}×{mask.shape[0]} px; at least {SMALLEST} are needed: see --size"
        )
    return mask, by_alpha
