"""From a file to a network."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.foreign import in_our_form, network_for
from model.network import PConvUNet
from utils.checkpoint import read_tensors
from utils.errors import UserError


def load_model(path: str | Path, device: str | torch.device = "cpu") -> PConvUNet:
    """The network of a training checkpoint or of a weights file, in evaluation mode, on `device`.

    The architecture comes from the file. Files of the projects that model/foreign.py knows will do as well; a line
    on stderr says so. UserError where the file is missing, damaged, or not one of a PConvUNet, or where a key is
    missing, unexpected or of another shape.
    """
    return network_of(read_tensors(path), path).to(device)


def network_of(tensors: Mapping[str, Tensor], path: str | Path) -> PConvUNet:
    """The network of these tensors by name, in evaluation mode, on the CPU. Errors as of load_model, naming `path`."""
    try:
        state, project = in_our_form(tensors)
        net = network_for(state)
        net.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise UserError(f"not the weights of a PConvUNet: {path}: {reason[:300]}") from None
    if project:
        print(f"{path}: weights of {project}, converted on load", file=sys.stderr)
    return net.eval()
