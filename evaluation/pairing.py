"""Which image meets which mask in an evaluation: a function of (seed, image, bin), kept in a file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.augment import centre_crop, fit_mask
from data.images import open_image, to_rgb
from data.mask_files import BORDERS, HOLE_BINS, INDEX, bin_name, hole_bin, hole_ratio, keeps_border, read_mask
from data.names import list_images
from data.order import EVALUATION_MASKS, shuffled
from utils.errors import UserError

SMALLEST = 16  # px: below, SSIM's window of 11 px finds no place to stand


class MaskFile(NamedTuple):
    """A mask of a test set, as it is met: fitted to the evaluation's size."""

    name: str  # within its folder
    ratio: float  # share of hole
    border: str  # one of BORDERS


class EvaluationPair(NamedTuple):
    """An image and the mask that it meets: a row of pairs.csv."""

    pair: int
    image: str  # relative to the folder or list that --images names
    mask: str  # within the folder that --masks names
    bin: str  # a name of HOLE_BINS; empty where the ratio lies in none of them
    border: str  # one of BORDERS
    ratio: float  # share of hole


def survey_masks(folder: Path, hole: str, size: int | None, quiet: bool = False) -> list[MaskFile]:
    """All masks of a folder, in order of their names. UserError where there are none, or one can't be used.

    Whether a mask is border-free, the folder's index.csv says, as a benchmark of masks.py has one; without it, the
    mask itself. size: as of read_pair.
    """
    paths = list_images(folder)
    if not paths:
        raise UserError(f"--masks: no masks in the folder {folder}; `python masks.py --benchmark DIR` makes a test set")
    borders = _indexed_borders(folder / INDEX)
    found = []
    for path in tqdm(paths, desc="masks", unit="mask", leave=False, disable=quiet):
        mask = _read_fitted(path, hole, size)
        border = borders.get(path.name) or ("free" if keeps_border(mask) else "any")
        found.append(MaskFile(path.name, hole_ratio(mask), border))
    return found


def _indexed_borders(path: Path) -> dict[str, str]:
    """The border of each mask by its name, as an index.csv says; none where there is no such file."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["file"]: "any" if int(row["border"]) == 0 else "free" for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"not an index of masks with the columns file and border: {path}; mend or remove it") from None


def make_pairs(images: Sequence[str], masks: Sequence[MaskFile], seed: int) -> list[EvaluationPair]:
    """Each image with one mask of every bin and border there is; masks outside of all bins are left out.

    Image number i meets a mask that is a function of (seed, i, bin and border) and of the masks there are. Every mask
    of a bin comes once before one comes twice. UserError where no mask lies in a bin.
    """
    cells: dict[tuple[int, int], list[MaskFile]] = {}  # by place in HOLE_BINS and in BORDERS
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
    """The pairs as the text of pairs.csv. A ratio has as many digits as give it back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EvaluationPair._fields)
    writer.writerows(pairs)
    return text.getvalue()


def read_pairs(path: Path) -> list[EvaluationPair]:
    """The pairs of a file as format_pairs writes it. UserError where it is missing or something else."""
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


def names_of(images: Sequence[str], root: Path) -> dict[str, str]:
    """Paths of images by the names that pairs.csv gives them: relative to a folder where they lie below it."""
    names = {}
    for path in images:
        name = os.path.relpath(path, root)
        names[path if name.startswith(os.pardir) else name] = path
    return names


def read_pair(image: str, mask: Path, hole: str, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The image (H,W,3), float32 in [0,1], and the mask (H,W), uint8, 1 = valid, 0 = hole, of one height and width.

    Both are resized and cropped about their centres to size×size px; without a size the mask stays as it is and
    the image is made as large. UserError where a file can't be read.
    """
    valid = _read_fitted(mask, hole, size)
    if valid.all():
        raise UserError(f"mask {mask} has no {hole} pixel, so no hole to measure; is --hole the right colour?")
    height, width = valid.shape
    pixels = np.asarray(centre_crop(to_rgb(open_image(image)), width, height))
    return np.divide(pixels, 255, dtype=np.float32), valid


def _read_fitted(path: Path, hole: str, size: int | None) -> np.ndarray:
    mask = read_mask(path, hole).valid
    if size:
        mask = fit_mask(mask, size)
    if min(mask.shape) < SMALLEST:
        raise UserError(
            f"mask {path} has {mask.shape[1]}×{mask.shape[0]} px; at least {SMALLEST} are needed: see --size"
        )
    return mask
