"""TensorBoard events as bytes, which the run folder appends to a file.

SummaryWriter is not used: it buffers events for up to two minutes and writes them in a thread, where a full disk ends
in a traceback.
"""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import image, scalar


def start_event(step: int) -> bytes:
    """Return the start of an event file. Events of earlier files from `step` on are then ignored."""
    version = _record(step=step, file_version="brain.Event:2")
    return version + _record(step=step, session_log=SessionLog(status=SessionLog.START))


def scalar_events(step: int, values: dict[str, float]) -> bytes:
    """Return one point of a curve per name."""
    return b"".join(_record(step=step, summary=scalar(name, value)) for name, value in values.items())


def image_event(step: int, name: str, pixels: np.ndarray) -> bytes:
    """Return an image event. pixels: uint8 (H,W,3)."""
    return _record(step=step, summary=image(name, pixels, dataformats="HWC"))


def _record(**fields: Any) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(Event(wall_time=time.time(), **fields).SerializeToString())
    return buffer.getvalue()
