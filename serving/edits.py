"""Edits: small files that hold what a fill changed.

The page keeps them and sends them back, so the server is stateless. An edit is a PNG of the hole's bounding box with an
alpha channel: opaque in the hole, with the new pixels in the photograph's bit depth, and transparent elsewhere. A
browser can draw it over the photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.photo import Photo, encode_photo, read_photo
from utils.errors import UserError


def edit_of(photo: Photo, valid: np.ndarray) -> tuple[bytes, int, int]:
    """Return the edit that holds the filled hole of `photo`, and the left and top of its box in px.

    valid: mask (H,W), 1 = valid, 0 = hole, of the photograph as shown. It must have a hole.
    """
    rows, columns = np.nonzero((valid == 0).any(1))[0], np.nonzero((valid == 0).any(0))[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    hole = (valid[box] == 0)[..., None]
    colour = photo.shown_colour()[box]
    white = np.iinfo(colour.dtype).max
    pixels = np.concatenate([np.where(hole, colour, 0), np.where(hole, white, 0)], axis=-1).astype(colour.dtype)
    return encode_photo(Photo(pixels, photo.icc_profile), ".png"), int(columns[0]), int(rows[0])


def apply_edits(photo: Photo, edits: Sequence[bytes], places: Sequence[tuple[int, int]]) -> Photo:
    """Return the photograph with the edits applied in order; `photo` itself is unchanged.

    places: left and top of each edit in px. Raises UserError if an edit does not fit the photograph.
    """
    if not edits:
        return photo
    edited = replace(photo, pixels=photo.pixels.copy())
    shown = edited.shown_colour()  # a view
    for data, (left, top) in zip(edits, places, strict=True):
        edit = read_photo(Path("an earlier fill"), data)
        height, width, channels = edit.pixels.shape
        target = shown[top : top + height, left : left + width]
        if target.shape != (height, width, channels - 1) or target.dtype != edit.pixels.dtype:
            raise UserError("an earlier fill does not fit the photograph; open it again")
        hole = edit.pixels[..., -1] > 0
        target[hole] = edit.pixels[hole][:, :-1]
    return edited
