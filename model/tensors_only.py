"""Read only the tensors of files that torch's safe loading refuses for pickled objects, without running their code."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first value of torch files older than the zip format
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def load_tensors_only(path: Path) -> Any:
    """Load a torch file of either format on the CPU. Inert objects replace all but tensors and plain values.

    No code of the file is run and nothing that it names is imported. A damaged file raises nearly any exception.
    """
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            return _load_zip(file)
        file.seek(0)
        return _load_legacy(file)


class _Inert:
    """Placeholder for any object that a file names: accepts whatever unpickling passes to it and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


class _Dict(dict[Any, Any]):
    """Replacement for OrderedDict that ignores the attributes that a file sets."""

    def __setstate__(self, _: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Unpickler for tensors and plain values only. storage: maps (key, dtype, count) to a flat tensor."""

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # strings of Python 2 may hold any byte
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        # Unpickling can call only what this returns: two classes and two methods. Methods, not functions, as a file may
        # set a function's attributes.
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return self._parameter
        return _Dict if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] != "storage" or not isinstance(pid[1], torch.dtype) or self._storage is None:
            return _Inert()
        _, dtype, key, _, count, *view = pid
        flat = self._storage(key, dtype, count)
        if view and view[0] is not None:  # old files: a view of another storage
            _, offset, size = view[0]
            flat = flat[offset : offset + size]
        return flat

    def _tensor(self, flat: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
        if not isinstance(flat, Tensor):
            return _Inert()
        return flat.as_strided(size, stride, flat.storage_offset() + offset)  # raises beyond the storage's end

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data


def _load_zip(file: IO[bytes]) -> Any:
    """Load a zip archive: FOLDER/data.pkl, and the bytes of each storage in FOLDER/data/KEY."""
    with zipfile.ZipFile(file) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            _check_byte_order(archive.read(f"{folder}byteorder").decode())
        storages: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in storages:
                storages[key] = _flat(archive.read(f"{folder}data/{key}"), dtype, count)
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), storage).load()


def _load_legacy(file: IO[bytes]) -> Any:
    """Load pickles of magic number, version, system, object and storage keys, then the bytes of the storages."""
    if _Unpickler(file).load() != LEGACY_MAGIC:
        raise pickle.UnpicklingError("not a torch file")
    _, system = _Unpickler(file).load(), _Unpickler(file).load()
    _check_byte_order("little" if system["little_endian"] else "big")
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        return storages.setdefault(key, torch.zeros(count, dtype=dtype))

    result = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        flat = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        flat.copy_(_flat(file.read(count * flat.itemsize), flat.dtype, count))
    return result


def _flat(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    """Return a storage's bytes as a tensor of `count` values, possibly 0."""
    return torch.frombuffer(bytearray(data), dtype=dtype, count=count) if count else torch.zeros(0, dtype=dtype)


def _check_byte_order(order: str) -> None:
    if order != sys.byteorder:
        raise pickle.UnpicklingError(f"written on a {order}-endian machine")
