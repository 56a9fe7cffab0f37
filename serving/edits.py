"""What a fill changed of a photograph, as a small file: the page keeps these and sends them back.

So the server keeps nothing. The file is an image of the hole's box with an alpha channel: opaque in the hole, where it
holds the new pixels in the photograph's depth, transparent elsewhere. A browser can draw it over the photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.photo import Photo, encode_photo, read_photo
from utils.errors import UserError


def edit_of(photo: Photo, valid: np.ndarray) -> tuple[bytes, int, int]:
    """The edit that makes `photo` from what it was before its hole was filled, and its left and top in px.

    valid: the mask (H,W), 0 = hole, of the photograph as shown; it has a hole.
    """
    rows, columns = np.nonzero((valid == 0).any(1))[0], np.nonzero((valid == 0).any(0))[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    hole = (valid[box] == 0)[..., None]
    colour = photo.shown_colour()[box]
    white = np.iinfo(colour.dtype).max
    pixels = np.concatenate([np.where(hole, colour, 0), np.where(hole, white, 0)], axis=-1).astype(colour.dtype)
    return encode_photo(Photo(pixels, photo.icc_profile), ".png"), int(columns[0]), int(rows[0])


def apply_edits(photo: Photo, edits: Sequence[bytes], places: Sequence[tuple[int, int]]) -> Photo:
    """The photograph after these edits, in order. places: left and top of each, px. UserError where one can't fit."""
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
