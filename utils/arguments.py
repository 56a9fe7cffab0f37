"""Types of command-line arguments for argparse, and the default weights."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

# The default of predict.py, app.py and hubconf.py, and `shipped` of evaluate.py.
DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "pconv_photos.safetensors"


def path_argument(text: str) -> Path:
    """Parse a path and expand `~`. An empty one is an error."""
    if not text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError("an empty name")
    return Path(os.path.expanduser(text))


def colour(text: str) -> str:
    """Parse a colour #RRGGBB. Returns it in lower case."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a colour such as '#ff0000', in quotes")
    return text.lower()


def add_hole(parser: argparse.ArgumentParser) -> None:
    """Add the options --hole and --hole-colour. Both set `hole`; at most one may be given."""
    options = parser.add_mutually_exclusive_group()
    options.add_argument(
        "--hole",
        choices=("black", "white"),
        default="black",
        help="colour of the holes in the masks (default: black); in a mask with alpha, black means transparent",
    )
    options.add_argument(
        "--hole-colour",
        type=colour,
        dest="hole",
        metavar="#RRGGBB",
        help="another colour of the holes, such as '#ff0000'",
    )


def whole_number(low: int) -> Callable[[str], int]:
    """Return a parser of integers >= `low`."""

    def number(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least {low}")
        return int(text)

    return number
