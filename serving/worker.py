"""The process that reads, fills and writes photographs for the server, one after another.

It is a process of its own so that a fill can be cancelled, and so that one that runs out of memory does not take the
server with it. Photographs are in memory alone: nothing is written to disk.
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
    """models: checkpoints by the names that the page shows."""

    models: Mapping[str, Path]
    device: str = "auto"


def work(connection: Connection, settings: Settings) -> None:
    """Answer messages until the other end is closed. The first message goes out: the methods, or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle; it closes the connection
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
    """The message that answers a message. What goes wrong becomes its `error`, one line."""
    began = time.perf_counter()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for programmers; what is said becomes notes on the page
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
    # Of what was said on stderr progress bars are left out, which the page has its own of.
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
    """A Desk, whose module imports torch and so takes its time."""
    import_torch()
    from serving.desk import Desk

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which outlives a process that is killed
    return Desk(settings.models, settings.device)
