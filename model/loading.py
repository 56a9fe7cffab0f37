"""From a file to a network."""

from __future__ import annotations

from pathlib import Path

import torch

from model.network import PConvUNet, architecture_of
from utils.checkpoint import read_tensors
from utils.errors import UserError


def load_model(path: str | Path, device: str | torch.device = "cpu") -> PConvUNet:
    """The network of a training checkpoint or of a weights file, in evaluation mode, on `device`.

    The architecture comes from the file. UserError where the file is missing, damaged, or not one of a
    PConvUNet, or where a key is missing, unexpected or of another shape.
    """
    state = read_tensors(path)
    try:
        net = PConvUNet(**architecture_of(state))
        net.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise UserError(f"not the weights of a PConvUNet: {path}: {reason[:300]}") from None
    return net.to(device).eval()
