"""The worker process, which reads, fills and encodes photographs for the server, one request at a time.

A separate process can be killed to cancel a fill, and the server survives if it runs out of memory. Photographs stay in
memory; nothing is written to disk.
"""

from __future__ import annotations

import contextlib
import io
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from serving.message import MalformedMessage, pack, unpack
from utils.errors import UserError
from utils.startup import import_torch


@dataclass(frozen=True)
class Settings:
    """Settings of the worker. models: checkpoints by the names that the page shows."""

    models: Mapping[str, Path]
    device: str = "auto"


def work(connection: Connection, settings: Settings) -> None:
    """Answer requests until the connection is closed. First sends one message: the methods and formats, or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C and stops this process
    try:
        desk = _desk(settings)
    except UserError as error:
        connection.send_bytes(pack({"error": str(error)}))
        return
    connection.send_bytes(pack({"methods": list(desk.methods), "formats": list(desk.formats)}))
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send_bytes(answer(desk, connection.recv_bytes()))


def answer(desk: Any, request: bytes) -> bytes:
    """Return the answer to a request. If the task fails, its key `error` holds one line."""
    began = time.perf_counter()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for programmers; lines on stderr become notes
            header, parts = unpack(request)
            result, files = _task(desk, header)(header, parts)
    except UserError as error:
        return pack({"error": str(error)})
    except MalformedMessage as error:
        return pack({"error": f"malformed request: {error}"})
    except MemoryError:
        return pack({"error": "not enough memory for this picture; make it smaller"})
    except Exception:
        traceback.print_exc()
        return pack({"error": "an unforeseen error; the terminal of app.py shows it"})
    # The page shows what was written to stderr, except progress bars: it has its own.
    notes = [line for line in said.getvalue().splitlines() if line.strip() and "%|" not in line]
    return pack({**result, "notes": notes, "seconds": time.perf_counter() - began}, files)


Answer = tuple[dict[str, Any], list[bytes]]


def _task(desk: Any, header: Mapping[str, Any]) -> Callable[[Mapping[str, Any], list[bytes]], Answer]:
    tasks = {"open": desk.open, "mask": desk.mask, "fill": desk.fill, "save": desk.save}
    name = header.get("task")
    if not isinstance(name, str) or name not in tasks:
        raise MalformedMessage(f"task must be one of {', '.join(tasks)}")
    return tasks[name]


def _desk(settings: Settings) -> Any:
    """Create the Desk. Its module imports torch, which takes seconds, so it is imported here."""
    import_torch()
    from serving.desk import Desk

    tqdm.set_lock(threading.RLock())  # tqdm's default is a system semaphore, which leaks when the process is killed
    return Desk(settings.models, settings.device)
