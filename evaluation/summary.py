"""Means over images with 95 % bootstrap intervals, per method, metric, hole bin and border."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.mask_files import BORDERS, HOLE_BINS, bin_name

ALL = "all"  # all bins, or all borders
BINS = tuple(bin_name(index) for index in range(len(HOLE_BINS)))

RESAMPLES = 2000
_SEED = 2018  # of the resampling: the same rows always give the same intervals
_CHUNK = 100  # resamples at a time, to limit memory
_INTERVAL = (2.5, 97.5)  # percentiles


class Row(NamedTuple):
    """The scores of one method for one pair: a row of results.csv."""

    pair: int
    image: str
    mask: str
    bin: str  # one of BINS, or "" if the hole ratio is in none
    border: str  # one of BORDERS
    ratio: float  # share of hole
    method: str
    scores: dict[str, float]  # by names of METRICS


class Key(NamedTuple):
    """Identifies an estimate."""

    method: str
    metric: str
    bin: str  # one of BINS, or ALL
    border: str  # one of BORDERS, or ALL


class Estimate(NamedTuple):
    """A mean and its 95 % interval. Values of a single image and scores of sets (FID) have no interval."""

    mean: float
    low: float | None
    high: float | None
    count: int  # type: ignore[assignment] # pairs; shadows tuple.count


Summary = Mapping[Key, Estimate]


def summarise(rows: Iterable[Row]) -> dict[Key, Estimate]:
    """Return the mean of every metric by method, bin and border, and over all of either. Empty groups are left out.

    Intervals are percentiles of RESAMPLES bootstrap means. Resampling draws images with all their pairs, because pairs
    of one image are not independent. The order of the rows does not matter.
    """
    scored = sorted((row for row in rows if row.scores), key=lambda row: (row.pair, row.method))
    estimates: dict[Key, Estimate] = {}
    for bin_, border, members in groups(scored):
        columns = sorted({(row.method, metric) for row in members for metric in row.scores})
        for column, estimate in zip(columns, _bootstrap(members, columns), strict=True):
            estimates[Key(*column, bin_, border)] = estimate
    return estimates


def differences(rows: Sequence[Row], first: str) -> dict[Key, Estimate]:
    """Return every other method minus `first`, pair by pair. The method of a Key is the other one."""
    of_first = {row.pair: row.scores for row in rows if row.method == first}
    return summarise(
        row._replace(scores={m: row.scores[m] - of_first[row.pair][m] for m in row.scores if m in of_first[row.pair]})
        for row in rows
        if row.method != first and row.pair in of_first
    )


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield (bin, border, its rows) for BINS and ALL, BORDERS and ALL. Groups without rows are skipped."""
    for bin_ in (*BINS, ALL):
        of_bin = [row for row in rows if bin_ in (row.bin, ALL)]
        for border in (*BORDERS, ALL):
            members = [row for row in of_bin if border in (row.border, ALL)]
            if members:
                yield bin_, border, members


def _bootstrap(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> Iterator[Estimate]:
    """Yield the mean and interval of each column (method, metric) of these rows."""
    image = {name: i for i, name in enumerate(dict.fromkeys(row.image for row in rows))}
    place = {column: c for c, column in enumerate(columns)}
    shape = len(image), len(columns)
    cells = np.fromiter(
        (image[row.image] * shape[1] + place[row.method, metric] for row in rows for metric in row.scores), np.int64
    )
    values = np.fromiter((value for row in rows for value in row.scores.values()), np.float64)
    sums = np.bincount(cells, values, shape[0] * shape[1]).reshape(shape)  # (images, columns)
    counts = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    low, high = _intervals(sums, counts)
    for c, count in enumerate(counts.sum(0)):
        # No interval from a single image, or if a value is not finite.
        several = np.isfinite(sums[:, c]).all() and np.count_nonzero(counts[:, c]) > 1
        mean = float(sums[:, c].sum() / count)
        yield Estimate(mean, float(low[c]) if several else None, float(high[c]) if several else None, int(count))


def _intervals(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return intervals (2, columns), low and high, from sums over pairs and counts of pairs, both (images, columns)."""
    images = len(sums)
    rng = np.random.default_rng([_SEED, images])
    rows = np.arange(_CHUNK)[:, None] * images
    means = []
    for _ in range(RESAMPLES // _CHUNK):
        chosen = rng.integers(images, size=(_CHUNK, images)) + rows
        drawn = np.bincount(chosen.ravel(), minlength=_CHUNK * images).reshape(_CHUNK, images).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a resample without a pair of a column has no mean
            means.append((drawn @ sums) / (drawn @ counts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # columns whose scores are all NaN have NaN intervals
        return np.nanpercentile(np.concatenate(means), _INTERVAL, axis=0)
