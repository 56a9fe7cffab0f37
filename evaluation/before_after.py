"""A photograph with its hole, as repaired, and as it was, side by side.

`python -m evaluation.before_after PHOTOGRAPH MASK REPAIRED OUTPUT`, as the end of `make demo` does; holes are black.
docs/demo.png is the picture of such a demo.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.mask_files import read_mask
from data.photo import read_photo
from evaluation.pictures import masked, sheet
from utils.errors import UserError, reports_user_errors
from utils.files import write_atomically


def before_after(photograph: Path, mask: Path, repaired: Path) -> np.ndarray:
    """The sheet, uint8 (H,W,3). UserError where a file can't be read, or where they differ in size."""
    was, valid, now = read_photo(photograph).rgb(), read_mask(mask, "black").valid, read_photo(repaired).rgb()
    if not was.shape[:2] == valid.shape == now.shape[:2]:
        raise UserError(f"{photograph}, {mask} and {repaired} must be of one size")
    return sheet([[masked(was, valid[..., None]), now, was]], ("masked", "repaired", "as it was"))


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    paths = [Path(text) for text in (sys.argv[1:] if argv is None else argv)]
    if len(paths) != 4:
        raise UserError("usage: python -m evaluation.before_after PHOTOGRAPH MASK REPAIRED OUTPUT")
    picture = Image.fromarray(before_after(*paths[:3]))
    write_atomically(paths[3], lambda temporary: picture.save(temporary, format="PNG", optimize=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
