"""Checkpoints and weights files: plain tensors and numbers, written so that no half of one has a final name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import write_atomically
from utils.tensors_only import load_tensors_only

# Keys of a training checkpoint: state_dict, state_dict, completed steps, the resolved config as plain values.
CHECKPOINT_KEYS = ("model", "optimizer", "step", "config")

# Where a checkpoint, ours or another project's, keeps the tensors of its network.
NETWORK_KEYS = ("model", "state_dict", "generator")


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint (CHECKPOINT_KEYS) atomically."""
    write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU. UserError where it is missing, damaged or no training checkpoint."""
    checkpoint = _load(Path(path))
    missing = [key for key in CHECKPOINT_KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(f"not a training checkpoint: {path}: without {', '.join(missing)}")
    return checkpoint


def save_weights(path: Path, state_dict: dict[str, Tensor]) -> None:
    """Write a network's weights alone as safetensors, atomically."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state_dict.items()}
    write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name of a weights file or, of a checkpoint, those of its network. On the CPU.

    Also of files with pickled objects beside the tensors, which are passed over; no code of a file is run.
    UserError where the file is missing, damaged, or holds no tensors by name.
    """
    tensors = _load(Path(path), pass_over_objects=True)
    for key in NETWORK_KEYS:
        if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    if not isinstance(tensors, dict) or not tensors or not all(map(_is_named_tensor, tensors.items())):
        raise UserError(f"neither a training checkpoint nor a weights file: {path}")
    return tensors


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _load(path: Path, pass_over_objects: bool = False) -> Any:
    """Whatever a safetensors or torch file holds; tensors and plain values alone, no code is run.

    A file with other objects is refused, or they become something inert.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}" if not path.is_dir() else f"a folder, where a file is needed: {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # torch's word for objects that it would have to make
            if not pass_over_objects:
                raise
            return load_tensors_only(path)
    except PermissionError:
        raise UserError(f"no permission to read {path}") from None
    except Exception as error:  # unpickling raises nearly anything
        raise UserError(
            f"damaged, or no file of tensors that can be loaded safely: {path} ({type(error).__name__})"
        ) from None
