"""Load networks from files."""

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
    """Load the network of a training checkpoint or a weights file, in evaluation mode, on `device`.

    The architecture comes from the file. Files of the projects in model/foreign.py are converted, with a line on
    stderr. Raises UserError if the file is missing, damaged or not from a PConvUNet, if a key is missing, unexpected or
    of another shape, or if weights are not finite.
    """
    return network_of(read_network(Path(path)), path).to(device)


def load_for_prediction(path: str | Path, device: str | torch.device = "cpu") -> PConvUNet:
    """Return `load_model(path, device).folded()` without an intermediate copy of the weights. Same errors."""
    return network_of(read_network(Path(path)), path, copies=False).to(device).folded()


def read_network(path: Path) -> Mapping[str, Tensor]:
    """Like read_tensors; from files with pickled objects, as other projects' checkpoints, read only the tensors."""
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(f"{path} is an export for other tools; name the .safetensors or .pt file that it was made from")
    try:
        return read_tensors(path)
    except PickledObjects as error:
        try:
            return network_tensors(load_tensors_only(path), path)
        except UserError:
            raise
        except Exception:  # unpickling can raise nearly any exception
            raise error from None


def network_of(tensors: Mapping[str, Tensor], path: str | Path, copies: bool = True) -> PConvUNet:
    """Build the network from named tensors, in evaluation mode on the CPU. Errors: see load_model; they name `path`.

    copies: False makes the network use the tensors themselves. If they are mapped from a file, later writes to the file
    change the network.
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
