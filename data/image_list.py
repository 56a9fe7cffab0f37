"""Compact lists of millions of paths: a packed file that is memory-mapped instead of parsed."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, overload

from utils.files import write_atomically

# A file consists of a header, its CRC-32, blocks of names, a table of offsets (uint64: the start of each block and the
# end of the last), and metadata (deflated JSON). The header holds the kind and version of the file, the number of
# names, the offsets of the table and the metadata, and the CRC-32 of everything after the header.
_HEAD = struct.Struct("<16s3QI")
_KIND = b"image list 1\0\0\0\0"
_CHECKSUM = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size + _CHECKSUM.size

# Names per block. Sorted names are similar: deflated together, each takes three bytes instead of thirty.
_BLOCK = 64


class ImageList(Sequence[str]):
    """A packed list of image paths. A lookup takes about 10 µs.

    A saved list is memory-mapped: only pages that were read use memory, and all processes share them. Its pickle
    contains only the path of its file.
    """

    def __init__(self, data: bytes | mmap.mmap, path: str | None = None) -> None:
        """data: bytes packed by `of`, or the mapped file at `path`."""
        self._data = data
        self._path = path
        _, self._count, self._places, facts, _ = _HEAD.unpack_from(data)
        self.source: str  # the listed folder or text file, as named in the config
        self.root: str  # the folder that names are relative to
        self.stamps: dict[str, Any]  # stamps of folders and files when listed, by path below the root
        self.source, self.root, self.stamps = json.loads(zlib.decompress(data[facts:]))

    @classmethod
    def of(cls, names: Iterable[str], source: str, root: str, stamps: Mapping[str, Any]) -> ImageList:
        """Pack names, relative to the root, in their given order."""
        blocks, places, count = bytearray(), [_HEAD_BYTES], 0
        coming = iter(names)
        while block := list(itertools.islice(coming, _BLOCK)):
            # surrogatepass: Python represents bytes that are not UTF-8 as surrogates.
            blocks += zlib.compress("\0".join(block).encode("utf-8", "surrogatepass"), level=1)
            places.append(_HEAD_BYTES + len(blocks))
            count += len(block)
        facts = zlib.compress(json.dumps([source, root, stamps]).encode())
        body = b"".join([blocks, struct.pack(f"<{len(places)}Q", *places), facts])
        head = _HEAD.pack(_KIND, count, places[-1], _HEAD_BYTES + len(body) - len(facts), zlib.crc32(body))
        return cls(head + _CHECKSUM.pack(zlib.crc32(head)) + body)

    @classmethod
    def open(cls, path: str | Path) -> ImageList:
        """Map a file. Raises ValueError if it is damaged or not an image list."""
        return cls(_mapped(path), os.path.abspath(path))

    def save(self, path: str | Path) -> None:
        """Write the list to a file atomically and map that file. Does nothing if the list already maps it."""
        if self._path != os.path.abspath(path):
            write_atomically(Path(path), lambda temporary: temporary.write_bytes(self._data))
            self._data, self._path = _mapped(path), os.path.abspath(path)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        position = range(self._count)[index]  # handles negative numbers and raises IndexError
        return os.path.join(self.root, self._names(position // _BLOCK)[position % _BLOCK])

    def __iter__(self) -> Iterator[str]:
        for block in range(-(-self._count // _BLOCK)):
            for name in self._names(block):
                yield os.path.join(self.root, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ImageList.open, (self._path,)) if self._path else (ImageList, (self._data,))

    def _names(self, block: int) -> list[str]:
        start, end = struct.unpack_from("<2Q", self._data, self._places + 8 * block)
        return zlib.decompress(self._data[start:end]).decode("utf-8", "surrogatepass").split("\0")


def _mapped(path: str | Path) -> bytes | mmap.mmap:
    """Return the bytes of a file, mapped if possible. Raises ValueError if it is not a complete list."""
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or file.read(_CHECKSUM.size) != _CHECKSUM.pack(zlib.crc32(head)):
            raise ValueError(f"not a list of images, or damaged: {path}")
        kind, _, _, _, checksum = _HEAD.unpack(head)
        if kind != _KIND or _crc32(file) != checksum:
            raise ValueError(f"damaged, or a list of another version: {path}")
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:  # some network and FUSE file systems do not support mmap
            file.seek(0)
            return file.read()


def _crc32(file: IO[bytes]) -> int:
    """Return the checksum of the rest of a file. It is read, not mapped: mapped pages count as the process's memory."""
    checksum = 0
    while piece := file.read(1 << 20):
        checksum = zlib.crc32(piece, checksum)
    return checksum
