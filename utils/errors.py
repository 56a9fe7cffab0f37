"""Mistakes that a user can make, and how the scripts report them: one line each, never a traceback."""

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
    """A mistake that the user can mend. The message says the rule, the actual value, where it came from, what to do."""


def message_of(error: BaseException) -> str:
    """The message of an error, also of one that a data-loading process raised.

    torch's DataLoader re-raises a worker's error with its whole traceback as the message: the last line is meant.
    """
    return str(error).rstrip().rsplit("UserError: ", 1)[-1]


# What a machine can lack, as torch, Python and the system say it, and what helps. The first that fits counts.
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
        "memory is short: smaller pictures or batches need less, in training also train.accumulate=2",
    ),
)


def shortage_of(error: BaseException) -> UserError | None:
    """What the machine lacks, where that is what an error of torch, Python or the system means."""
    if isinstance(error, (UserError, KeyboardInterrupt)):
        return None
    text = f"{type(error).__name__}: {error}"
    for pattern, advice in _SHORTAGES:
        if re.search(pattern, text):
            reason = (str(error).strip() or text).splitlines()[-1].strip()
            return UserError(f"{advice} ({reason[:160]})")
    return None


def report(error: UserError | OSError | KeyboardInterrupt) -> int:
    """Tell of an error in one line on stderr. Returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    error = shortage_of(error) or error
    text = message_of(error)
    if isinstance(error, OSError):
        reason = error.strerror or (text.strip() or type(error).__name__).splitlines()[-1]  # of a worker
        text = f"{reason}: {error.filename}" if error.filename else reason
    print(f"error: {text}", file=sys.stderr)
    return 1


class Script(Protocol):
    """A script's main: from the words of the command line (None: the process's own) to the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def reports_user_errors(main: Callable[[Sequence[str] | None], int]) -> Script:
    """Decorate a script's `main(argv) -> exit code`: what the user can mend becomes one line on stderr and code 1."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        prepare_output()
        try:
            return main(argv)
        except (UserError, OSError, KeyboardInterrupt) as error:
            if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
                time.sleep(10)  # rank 0 has met the same mistake, most likely, and once it has told, torchrun ends all
            return report(error)
        except (RuntimeError, MemoryError) as error:
            if (shortage := shortage_of(error)) is None:
                raise
            return report(shortage)

    return wrapped
