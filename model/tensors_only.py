"""Files that torch's safe loading refuses, as they hold pickled objects: their tensors alone, without their code."""

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

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # opens torch files from before the zip format
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
    """What a torch file of either format holds, on the CPU, with something inert for all but tensors and plain values.

    No code of the file is run and nothing that it names is imported. Nearly any exception where it is damaged.
    """
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            return _load_zip(file)
        file.seek(0)
        return _load_legacy(file)


class _Inert:
    """Stands in for any object that a file names: accepts what unpickling passes to it, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


class _Dict(dict[Any, Any]):
    """Stands in for OrderedDict, without the attributes that a file sets."""

    def __setstate__(self, _: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain values. storage: (key, type, count) -> flat tensor."""

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's strings may hold any byte
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        # All that unpickling can call comes from here: two classes and two methods. Methods and not functions, as
        # a file may set a function's attributes.
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
        if view and view[0] is not None:  # old files: a part of another storage
            _, offset, size = view[0]
            flat = flat[offset : offset + size]
        return flat

    def _tensor(self, flat: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
        if not isinstance(flat, Tensor):
            return _Inert()
        return flat.as_strided(size, stride, flat.storage_offset() + offset)  # refuses to leave the storage

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data


def _load_zip(file: IO[bytes]) -> Any:
    """A zip archive of FOLDER/data.pkl and FOLDER/data/KEY, the bytes of a storage each."""
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
    """Pickles of a magic number, a version, the system, the object, the storages' keys; then the storages' bytes."""
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
    """A storage's bytes as a tensor of `count` values, which may be none."""
    return torch.frombuffer(bytearray(data), dtype=dtype, count=count) if count else torch.zeros(0, dtype=dtype)


def _check_byte_order(order: str) -> None:
    if order != sys.byteorder:
        raise pickle.UnpicklingError(f"written on a {order}-endian machine")
