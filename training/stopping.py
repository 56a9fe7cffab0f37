"""Ctrl-C and SIGTERM as a request that the training loop reads between steps."""

from __future__ import annotations

import os
import signal
from types import FrameType


class StopRequest:
    """Context manager: the first SIGINT or SIGTERM sets `signum`; a second one has its usual effect.

    Under torchrun a second one only sets `signum` again: torchrun forwards signals that the processes may already
    have received, and kills them itself after a while.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, signum: int, _: FrameType | None) -> None:
        self.signum = signum
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        self._before.clear()
