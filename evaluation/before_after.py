"""Draw a masked photograph, its repair and the original side by side.

`python -m evaluation.before_after PHOTOGRAPH MASK REPAIRED OUTPUT`; holes are black. `make demo` calls it at the end.
docs/demo.png was made this way.
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
    """Return the sheet, uint8 (H,W,3). Raises UserError if a file cannot be read or the sizes differ."""
    was, valid, now = read_photo(photograph).rgb(), read_mask(mask, "black").valid, read_photo(repaired).rgb()
    if not was.shape[:2] == valid.shape == now.shape[:2]:
        raise UserError(f"{photograph}, {mask} and {repaired} must have the same size")
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
