"""User errors, and how the scripts report them: one line each, never a traceback."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from utils.output import prepare_output


class UserError(ValueError):
    """An error that the user can fix. The message gives the rule, the actual value, its source, and what to do."""


def message_of(error: BaseException) -> str:
    """Return the message of an error, including one from a DataLoader worker.

    DataLoader re-raises a worker's error with the full traceback as its message; only its end is returned.
    """
    return str(error).rstrip().rsplit("UserError: ", 1)[-1]


# Resources that can run out: the wording of torch, Python and the system, and advice. The first match counts.
_SHORTAGES = (
    (
        r"[Ss]hared memory|shm|</?torch_\d+",
        "shared memory (/dev/shm) is too small: make it larger (`docker run --shm-size=1g`), or set data.workers=0",
    ),
    (
        r"Too many open files|received \d+ items of ancdata",
        "too many files are open: allow more (`ulimit -n 4096`), or use fewer data.workers",
    ),
    (
        r"MemoryError|[Oo]ut of memory|[Nn]ot enough memory|[Cc]an(no|')t allocate memory",
        "not enough memory: use smaller pictures or batches, or in training set train.accumulate=2",
    ),
)


def shortage_of(error: BaseException) -> UserError | None:
    """Return a UserError with advice if an error of torch, Python or the system means a lack of resources."""
    if isinstance(error, (UserError, KeyboardInterrupt)):
        return None
    text = f"{type(error).__name__}: {error}"
    for pattern, advice in _SHORTAGES:
        if re.search(pattern, text):
            reason = (str(error).strip() or text).splitlines()[-1].strip()
            return UserError(f"{advice} ({reason[:160]})")
    return None


def report(error: UserError | OSError | KeyboardInterrupt) -> int:
    """Print an error to stderr in one line. Returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    error = shortage_of(error) or error
    text = message_of(error)
    if isinstance(error, OSError):
        reason = error.strerror or (text.strip() or type(error).__name__).splitlines()[-1]  # from a worker
        text = f"{reason}: {error.filename}" if error.filename else reason
    print(f"error: {text}", file=sys.stderr)
    return 1


class Script(Protocol):
    """A script's main: takes the command-line arguments (None: sys.argv) and returns the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def reports_user_errors(main: Callable[[Sequence[str] | None], int]) -> Script:
    """Decorator for a script's `main(argv) -> exit code`. Errors that the user can fix become one line and code 1."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        prepare_output()
        try:
            return main(argv)
        except (UserError, OSError, KeyboardInterrupt) as error:
            if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
                time.sleep(10)  # rank 0 most likely reports the same error, and torchrun then ends all processes
            return report(error)
        except (RuntimeError, MemoryError) as error:
            if (shortage := shortage_of(error)) is None:
                raise
            return report(shortage)

    return wrapped
