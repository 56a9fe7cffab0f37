"""Mistakes that a user can make, and how the scripts report them: one line each, never a traceback."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Sequence
from typing import Protocol


class UserError(ValueError):
    """A mistake that the user can mend. The message says the rule, the actual value, where it came from, what to do."""


def message_of(error: BaseException) -> str:
    """The message of an error, also of one that a data-loading process raised.

    torch's DataLoader re-raises a worker's error with the worker's whole traceback as its message;
    the last line of it is the message that was meant.
    """
    return str(error).rstrip().rsplit("UserError: ", 1)[-1]


def report(error: UserError | OSError | KeyboardInterrupt) -> int:
    """Tell of an error in one line on stderr. Returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
    else:
        print(f"error: {message_of(error)}", file=sys.stderr)
    return 1


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch has had no memory, of a GPU or of the machine: on a CPU it says so in words alone."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


class Script(Protocol):
    """A script's main: from the words of the command line (None: the process's own) to the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def reports_user_errors(main: Callable[[Sequence[str] | None], int]) -> Script:
    """Decorate a script's `main(argv) -> exit code`: what the user can mend becomes one line on stderr and code 1."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        # Names of files need not be valid in any encoding, nor every character in the terminal's.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(argv)
        except MemoryError:
            return report(UserError("not enough memory; close other programs, or use smaller pictures or batches"))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:150]
            return report(UserError(f"not enough memory ({reason}); use smaller pictures or batches"))
        except (UserError, OSError, KeyboardInterrupt) as error:
            return report(error)

    return wrapped
