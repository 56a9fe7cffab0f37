"""stdout and stderr of the scripts: names in any encoding, and runs that survive when neither can be written."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


def prepare_output() -> None:
    """Make stdout and stderr accept any text: characters outside their encoding are written as \\xNN.

    A missing standard stream is replaced by /dev/null. Otherwise the next file that is opened would get its descriptor,
    and libraries would write into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def optional_output() -> Iterator[None]:
    """Context manager in which failed writes to stdout and stderr are ignored."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Optional(sys.stdout), _Optional(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Optional:
    """A text stream that is redirected to /dev/null after a failed write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._giving_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._giving_up():
            self._stream.flush()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nothing:
                # Also catches what the stream still buffers and flushes when the process ends.
                os.dup2(nothing.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
