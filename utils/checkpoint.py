"""Checkpoints and weights files: plain tensors and numbers, written atomically.

A checkpoint is a torch file, hence a zip archive. The archive's comment, which torch ignores, holds the SHA-256 of all
bytes before it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from utils.errors import UserError
from utils.files import write_atomically

# Required keys of a training checkpoint: two state_dicts, completed steps, the resolved config as plain values. Others:
# `best`, the lowest held-out L1 so far; `ema`, the average's state_dict if train.ema_decay is on; `scaler` with fp16.
CHECKPOINT_KEYS = ("model", "optimizer", "step", "config")

# Keys under which checkpoints, ours or other projects', store the network's tensors; averages come first.
NETWORK_KEYS = (
    *("ema", "ema_state_dict", "model_ema", "params_ema", "model", "model_state_dict", "state_dict", "generator"),
    *("net", "network", "params", "weights"),
)

_LAST_RECORD = b"PK\5\6"  # signature of a zip archive's last record; 18 bytes and the comment follow
_MARK = b"sha256:"
_COMMENT_LENGTH = len(_MARK) + hashlib.sha256().digest_size * 2  # in hexadecimal digits


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint (CHECKPOINT_KEYS) with its checksum, atomically. Raises OSError if the disk is full."""

    def write(temporary: Path) -> None:
        with open(temporary, "w+b") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch says only that the archive is too short
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            file.seek(-2, os.SEEK_END)  # the comment's length is the last field of an archive without one
            file.write(struct.pack("<H", _COMMENT_LENGTH))
            file.write(_MARK + _digest(file, file.tell()))

    write_atomically(path, write)


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes of a file, in hex. Leaves the file position there."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (data := file.read(min(size, 1 << 20))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest().encode()


def _is_as_written(path: Path) -> bool:
    """Return whether a file matches its checksum. Files without one, older or of other projects, pass."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_LAST_RECORD) - 18 - _COMMENT_LENGTH))
        tail = file.read()
        _, _, record = tail.rpartition(_LAST_RECORD)
        if record[16:18] != struct.pack("<H", _COMMENT_LENGTH) and _MARK not in tail:
            return True
        comment = record[18:]
        return comment == _MARK + _digest(file, size - len(comment))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a training checkpoint onto the CPU. Raises UserError if it is missing, damaged or of another kind."""
    checkpoint = _load(Path(path))
    missing = [key for key in CHECKPOINT_KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(f"not a training checkpoint: {path}: it lacks {', '.join(missing)}")
    if not _are_named_tensors(checkpoint["model"]) or not isinstance(checkpoint["step"], int):
        raise UserError(f"not a training checkpoint of this project: {path}")
    return checkpoint


def step_of(path: str | Path) -> int | None:
    """Return the step of a training checkpoint; None if it cannot be read. Memory-mapped to skip its tensors."""
    try:
        checkpoint = _load_torch(Path(path), mapped=True)
        return checkpoint["step"] if isinstance(checkpoint["step"], int) else None
    except Exception:  # as in _load
        return None


def save_weights(path: Path, state_dict: dict[str, Tensor]) -> None:
    """Write a network's state_dict as safetensors, atomically."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state_dict.items()}
    # Not save_file, which raises its own error type if the disk is full.
    write_atomically(path, lambda temporary: temporary.write_bytes(safetensors.torch.save(tensors)))


class PickledObjects(UserError):
    """A torch file is damaged, or holds objects that torch's safe loading refuses because unpickling would run code."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Load the tensors of a weights file, or of the network in a checkpoint, by name, on the CPU.

    They may be memory-mapped: copy tensors that must outlive the file. Code in a file is never run.
    Raises UserError if the file is missing, damaged, or holds no named tensors.
    """
    return network_tensors(_load(Path(path), mapped=True), path)


def network_tensors(tensors: Any, path: str | Path) -> dict[str, Tensor]:
    """Return the network's tensors by name from a file's contents. Raises UserError, with `path`, if there are none."""
    while isinstance(tensors, dict) and (inside := [tensors[key] for key in NETWORK_KEYS if _is_dict(tensors, key)]):
        tensors = inside[0]
    if not _are_named_tensors(tensors) or not tensors:
        raise UserError(f"neither a training checkpoint nor a weights file: {path}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex() or tensor.is_quantized:
            kind = "sparse" if tensor.layout != torch.strided else "without values" if tensor.is_meta else tensor.dtype
            raise UserError(f"{path}: the tensor {name} is {kind}; weights must be dense real numbers")
    return tensors


def _is_dict(values: dict[Any, Any], key: str) -> bool:
    return isinstance(values.get(key), dict)


def not_finite(state_dict: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or infinity, or None."""
    return next((name for name, tensor in state_dict.items() if not tensor.isfinite().all()), None)


def _are_named_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items()
    )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError):  # no mmap on some file systems; safetensors opens only UTF-8 names
        return safetensors.torch.load(path.read_bytes())


def _load_torch(path: Path, mapped: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about kinds of tensors that network_tensors refuses
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, RuntimeError, UnicodeEncodeError):
            if not mapped:
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # as above; other errors repeat


def _load(path: Path, mapped: bool = False) -> Any:
    """Load a safetensors or torch file: only tensors and plain values; no code is run. Raises UserError if it fails.

    mapped: map the file into memory, so that only the tensors that are used are read.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}" if not path.is_dir() else f"must be a file, but is a folder: {path}")
    refused = f"damaged, or not a file of tensors that can be loaded safely: {path}"
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        if not _is_as_written(path):
            raise UserError(f"damaged: {path} (its checksum does not match)")
        return _load_torch(path, mapped and zipfile.is_zipfile(path))  # torch can't map its older format
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # raised by torch for objects other than tensors and plain values
        raise PickledObjects(f"{refused} ({type(error).__name__})") from None
    except PermissionError:
        raise UserError(f"no permission to read {path}") from None
    except Exception as error:  # unpickling can raise almost anything
        raise UserError(f"{refused} ({type(error).__name__})") from None
