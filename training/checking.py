"""Check that the parts of a checkpoint match each other, and that numbers are finite.

torch's optimizers do not check: a moment whose shape differs from its weight's ends in a segmentation fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import PConvUNet, network_of
from training.muon import is_hidden_kernel
from utils.config import Config
from utils.config_files import config_of_run
from utils.errors import UserError

# The state that an optimizer keeps per weight.
_OF_ADAM, _OF_SGD = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}


def check_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError if the values of a checkpoint do not allow a resume. Does not look at its checksum."""
    config = config_of_run(checkpoint["config"], str(path))
    net = network_of(checkpoint["model"], path)
    for fault in _faults(checkpoint, config, net):
        raise UserError(f"damaged: {path}: {fault}")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all floating-point values are finite. Synchronises with the device once."""
    flags = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not flags or bool(torch.stack(flags).all())


def _faults(checkpoint: dict[str, Any], config: Config, net: PConvUNet) -> Iterator[str]:
    step, best = checkpoint["step"], checkpoint.get("best", math.inf)
    if type(step) is not int or step < 0:
        yield f"step is {step!r}"
    if type(best) not in (int, float) or math.isnan(best):
        yield f"best is {best!r}"
    for name, value in config.model.model_dump().items():
        if getattr(net, name) != value:
            yield f"model.{name} is {getattr(net, name)}, its config says {value}"
    if not all_finite(checkpoint["model"].values()):
        yield "a weight is not finite"
    if "ema" in checkpoint:
        yield from _faults_of_average(checkpoint["ema"], checkpoint["model"])
    yield from _faults_of_optimizer(checkpoint["optimizer"], config.optim.name, list(net.parameters()))
    if "scaler" in checkpoint:
        scaler = checkpoint["scaler"]
        keys = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
        if not isinstance(scaler, dict) or not all(_is_number(scaler.get(key)) for key in keys):
            yield "scaler holds no numbers"


def _faults_of_average(average: Any, weights: dict[str, Tensor]) -> Iterator[str]:
    if not isinstance(average, dict) or average.keys() != weights.keys():
        yield "ema and model have different names"
    elif not all(isinstance(value, Tensor) and value.shape == weights[name].shape for name, value in average.items()):
        yield "ema and model have different shapes"
    elif not all_finite(average.values()):
        yield "a weight of ema is not finite"


def _faults_of_optimizer(optimizer: Any, kind: str, weights: list[Tensor]) -> Iterator[str]:
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("state"), dict):
        yield "optimizer holds no state"
        return
    groups = optimizer.get("param_groups")
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        yield "optimizer does not have exactly one parameter group"
        return
    if groups[0].get("params") != list(range(len(weights))):
        yield "optimizer belongs to other weights"
        return
    for number, moments in optimizer["state"].items():
        if number not in groups[0]["params"] or not isinstance(moments, dict):
            yield "optimizer belongs to other weights"
        elif not _fits(moments, kind, weights[number]):
            yield f"the optimizer's state of weight {number} does not fit {kind}"


def _fits(moments: dict[str, Any], kind: str, weight: Tensor) -> bool:
    names = _OF_SGD if kind == "SGD" or (kind == "Muon" and is_hidden_kernel(weight)) else _OF_ADAM
    if kind == "SGD":
        moments = {name: value for name, value in moments.items() if value is not None}  # momentum 0 saves None
    elif moments.keys() != names:
        return False
    for name, value in moments.items():
        shape = torch.Size() if name == "step" else weight.shape
        if name not in names or not isinstance(value, Tensor) or value.shape != shape:
            return False
        if value.layout != torch.strided or not value.is_floating_point() or not all_finite([value]):
            return False
    return "step" not in moments or bool(moments["step"] >= 0)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
