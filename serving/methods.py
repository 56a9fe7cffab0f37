"""The methods that the page offers: networks and classical methods."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data.photo import WHOLE, Photo, Place
from evaluation import baselines
from model import load_for_prediction
from repair import Fill, fill_by_network
from utils.arguments import DEFAULT_WEIGHTS
from utils.errors import UserError
from utils.processes import pick_device

# Pixels around a hole's bounding box that a classical method reads. The mean colour reads the full photograph.
_MARGIN = {"telea": 8, "navier-stokes": 8, "biharmonic": 8}


def load_methods(models: Mapping[str, Path], device: str) -> dict[str, Fill]:
    """Return all methods by name, networks first. Without `models` the network is the shipped one.

    Raises UserError if a file cannot be used, or if a network has the name of a classical method.
    """
    methods: dict[str, Fill] = {}
    for name, path in (models or {DEFAULT_WEIGHTS.stem: DEFAULT_WEIGHTS}).items():
        methods[name] = functools.partial(fill_by_network, load_for_prediction(path, pick_device(device)), None)
    for name, fill in baselines.FILLS.items():
        if name in methods:
            raise UserError(f"--model {name}: a classical method has this name; give another: --model NAME=CKPT")
        methods[name] = functools.partial(_near_the_hole, fill, _MARGIN.get(name))
    return methods


def _near_the_hole(
    fill: baselines.Fill, margin: int | None, photo: Photo, mask: np.ndarray, to_fill: np.ndarray
) -> Iterator[tuple[Place, np.ndarray]]:
    """A `Fill` that passes only the hole's bounding box and `margin` px around it to a classical method.

    Passes the full photograph if margin is None or the box has no valid pixel.
    """
    place = WHOLE
    if margin is not None:
        rows, columns = np.nonzero((mask == 0).any(1))[0], np.nonzero((mask == 0).any(0))[0]
        near = tuple(slice(max(0, lines[0] - margin), lines[-1] + 1 + margin) for lines in (rows, columns))
        if mask[near].any():
            place = near[0], near[1]
    yield place, fill(photo.rgb(place), np.ascontiguousarray(mask[place]).astype(np.uint8))
