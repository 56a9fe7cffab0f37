"""The methods that the page offers: networks and the classical ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from evaluation.baselines import FILLS, Fill
from model import load_for_prediction
from repair import predict_pixels
from utils.arguments import DEFAULT_WEIGHTS
from utils.errors import UserError
from utils.processes import pick_device

# Pixels around a hole that a classical method may look at; the mean colour is of the whole picture.
_MARGIN = {"telea": 8, "navier-stokes": 8, "biharmonic": 8}


def load_methods(models: Mapping[str, Path], device: str) -> dict[str, Fill]:
    """Every method by its name: the networks first, the shipped one where none is named. UserError as load_model."""
    methods: dict[str, Fill] = {}
    for name, path in (models or {DEFAULT_WEIGHTS.stem: DEFAULT_WEIGHTS}).items():
        methods[name] = functools.partial(predict_pixels, load_for_prediction(path, pick_device(device)))
    for name, fill in FILLS.items():
        if name in methods:
            raise UserError(f"--model {name}: a classical method has this name; give another: --model NAME=CKPT")
        methods[name] = functools.partial(_near_the_hole, fill, _MARGIN[name]) if name in _MARGIN else fill
    return methods


def _near_the_hole(fill: Fill, margin: int, rgb: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`fill` of the hole's box and a margin alone; the rest is as it is."""
    rows, columns = np.nonzero((valid == 0).any(1))[0], np.nonzero((valid == 0).any(0))[0]
    box = tuple(slice(max(0, lines[0] - margin), lines[-1] + 1 + margin) for lines in (rows, columns))
    if not valid[box].any():
        return fill(rgb, valid)
    result = rgb.copy()
    result[box] = fill(np.ascontiguousarray(rgb[box]), np.ascontiguousarray(valid[box]).astype(np.uint8))
    return result
