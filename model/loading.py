"""From a file to a network."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.foreign import in_our_form, network_for
from model.network import PConvUNet
from model.tensors_only import load_tensors_only
from utils.checkpoint import PickledObjects, network_tensors, not_finite, read_tensors
from utils.errors import UserError


def load_model(path: str | Path, device: str | torch.device = "cpu") -> PConvUNet:
    """The network of a training checkpoint or of a weights file, in evaluation mode, on `device`.

    The architecture comes from the file. Files of the projects that model/foreign.py knows will do as well; a line
    on stderr says so. UserError where the file is missing, damaged, or not one of a PConvUNet, or where a key is
    missing, unexpected or of another shape.
    """
    return network_of(read_network(Path(path)), path).to(device)


def load_for_prediction(path: str | Path, device: str | torch.device = "cpu") -> PConvUNet:
    """`load_model(path, device).folded()`, without a copy of the weights in between. Errors as of load_model."""
    return network_of(read_network(Path(path)), path, copies=False).to(device).folded()


def read_network(path: Path) -> Mapping[str, Tensor]:
    """As read_tensors; of a file that holds pickled objects, as others' checkpoints do, the tensors alone."""
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(f"{path} is an export for other tools; name the .safetensors or .pt file that it was made from")
    try:
        return read_tensors(path)
    except PickledObjects as error:
        try:
            return network_tensors(load_tensors_only(path), path)
        except UserError:
            raise
        except Exception:  # unpickling raises nearly anything
            raise error from None


def network_of(tensors: Mapping[str, Tensor], path: str | Path, copies: bool = True) -> PConvUNet:
    """The network of these tensors by name, in evaluation mode, on the CPU. Errors as of load_model, naming `path`.

    copies: False lets the network consist of the tensors themselves. If these are mapped from a file, later writes to
    the file change the network.
    """
    try:
        state, project = in_our_form(tensors)
        net = network_for(state)
        net.load_state_dict(state, assign=not copies)
    except (ValueError, RuntimeError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise UserError(f"not the weights of a PConvUNet: {path}: {reason[:300]}") from None
    broken = not_finite(state)
    if broken:
        raise UserError(f"{path}: the weights {broken} are not finite: their training diverged; use others")
    if project:
        print(f"{path}: weights of {project}, converted on load", file=sys.stderr)
    return net.float().eval()  # assigned tensors keep their dtype
