"""Sheets of pictures: one row per image, columns such as masked, mask, output, composite, truth."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

COLUMNS = ("masked", "mask", "output", "composite", "truth")

_GAP = 4  # px between pictures
_TITLE = 16  # px for the titles above


def masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image (H,W,3) in [0,1] with white holes, as in the paper. mask: (H,W,1), 0 = hole."""
    return np.where(mask > 0, image, np.float32(1))


def to_8_bit_pixels(image: np.ndarray) -> np.ndarray:
    """Convert an image in [0,1] to uint8, rounded; other values are clipped."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def sheet(rows: list[list[np.ndarray]], titles: tuple[str, ...] = COLUMNS) -> np.ndarray:
    """Draw rows of equally sized images (H,W,1 or 3) in [0,1] with column titles. Returns uint8 (H',W',3)."""
    height, width = rows[0][0].shape[:2]
    canvas = Image.new("RGB", (len(titles) * (width + _GAP) - _GAP, _TITLE + len(rows) * (height + _GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        left = column * (width + _GAP)
        draw.text((left + width // 2, _TITLE // 2), title, fill="black", anchor="mm")
        for row, images in enumerate(rows):
            pixels = np.broadcast_to(to_8_bit_pixels(images[column]), (height, width, 3))
            canvas.paste(Image.fromarray(np.ascontiguousarray(pixels)), (left, _TITLE + row * (height + _GAP)))
    return np.asarray(canvas)
