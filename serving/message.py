"""The format of messages between page and server, in both directions: a header and concatenated files.

    4 bytes, big-endian: length of the header | header: JSON, UTF-8 | the files, one after another

The header's key `parts` lists the files' lengths in bytes. app/message.js is the counterpart in the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

LARGEST_HEADER = 2**16  # bytes
_LENGTH = 4


class MalformedMessage(ValueError):
    """The bytes are not a valid message, or a task's header or files are not valid."""


def pack(header: dict[str, Any], parts: Sequence[bytes] = ()) -> bytes:
    """Return the message with this header and these files."""
    text = json.dumps({**header, "parts": [len(part) for part in parts]}).encode()
    return b"".join([len(text).to_bytes(_LENGTH, "big"), text, *parts])


def unpack(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return the header without `parts`, and the files. Raises MalformedMessage if the message is not valid."""
    start = _LENGTH + int.from_bytes(message[:_LENGTH], "big")
    if len(message) < start or start > _LENGTH + LARGEST_HEADER:
        raise MalformedMessage(f"a header of {start - _LENGTH} bytes in a message of {len(message)} bytes")
    try:
        header = json.loads(message[_LENGTH:start])
    except (ValueError, RecursionError):  # ValueError: not JSON, or not UTF-8
        raise MalformedMessage("the header is not JSON") from None
    lengths = header.pop("parts", None) if isinstance(header, dict) else None
    if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
        raise MalformedMessage("the header has no list of lengths")
    if sum(lengths) != len(message) - start:
        raise MalformedMessage(f"lengths of {sum(lengths)} bytes in all, and {len(message) - start} bytes follow")
    parts = []
    for length in lengths:
        parts.append(message[start : start + length])
        start += length
    return header, parts
