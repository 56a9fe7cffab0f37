"""Random parts of images and random changes of masks. All of it a function of the generator given."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image, ImageOps

from data.images import Box

# Width over height of a random part, from 3:4 to 4:3, as torchvision's RandomResizedCrop: its logarithm.
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))
_TRIES = 8  # parts of a mask that are tried before the whole mask is taken


def random_part(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator, unit: str = "area", size: int = 0
) -> Box:
    """A random part of an image of this size.

    scale: the part's smallest and largest extent. unit `area`: its share of the picture's area, in shapes from 3:4 to
    4:3. `px`: the side of a square. `image_size`: that side in multiples of `size` px. A small picture limits the part.
    """
    if unit != "area":
        side = round(rng.uniform(*scale) * (size if unit == "image_size" else 1))
        side = max(1, min(side, width, height))
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        return left, top, left + side, top + side
    area = width * height * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(*_LOG_ASPECT))
    across, down = math.sqrt(area * aspect), math.sqrt(area / aspect)
    fit = min(1.0, width / across, height / down)
    part_width, part_height = max(1, round(across * fit)), max(1, round(down * fit))
    left = int(rng.integers(width - part_width + 1))
    top = int(rng.integers(height - part_height + 1))
    return left, top, left + part_width, top + part_height


def centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest centred part of an RGB image that has this shape, at width×height px."""
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def fit_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square of a mask (H,W) at size×size px, nearest neighbour, so that it stays 0 or 1."""
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = mask[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST)


def augment_mask(
    mask: np.ndarray, size: int, dilate: tuple[int, int], rng: np.random.Generator, own_scale: bool = False
) -> np.ndarray:
    """Dilate the holes, then rotate, shift, zoom and mirror a mask at random (§4.1); returns (size,size), 0 or 1.

    mask: uint8 (H,W), 1 = valid, 0 = hole. dilate: smallest and largest side of the square that holes are
    dilated with, px of a mask of 512 px. own_scale: cut out a part of about `size` px, so that holes stay as wide as
    they are; otherwise nearly the whole mask becomes `size` px. Beyond its edge the mask is mirrored. A mask that this
    would leave without a valid pixel is only fitted.
    """
    short = min(mask.shape)
    side = round(int(rng.integers(dilate[0], dilate[1] + 1)) * short / 512)
    # Eroding what is valid dilates what is not.
    dilated = cv2.erode(mask, np.ones((side, side), np.uint8)) if side > 1 else mask
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    # A part at the mask's own scale may miss all holes, or all that is valid: then another one is drawn.
    for _ in range(_TRIES if own_scale else 1):
        to_mask = _random_similarity(mask.shape, size, rng, own_scale)
        changed = cv2.warpAffine(dilated, to_mask, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        if changed.any() and not (own_scale and changed.all()):
            return changed
    return fit_mask(mask, size)


def _random_similarity(shape: tuple[int, ...], size: int, rng: np.random.Generator, own_scale: bool) -> np.ndarray:
    """Where the pixels (x, y, 1) of a size×size crop lie in a mask of shape (H,W): a matrix (2,3).

    The crop is a square of any direction. Its side is 0.7 to 1 times the mask's shorter one or, at the mask's own
    scale, 0.85 to 1.2 times `size` px.
    """
    angle = rng.uniform(0, 2 * math.pi)
    short = min(shape)
    window = min(short, size * rng.uniform(0.85, 1.2)) if own_scale else short * rng.uniform(0.7, 1.0)  # px of the mask
    extent = np.array(shape[::-1])
    centre = (extent - 1) / 2 + rng.uniform(-0.5, 0.5, 2) * (extent - window)
    mirrored = -1 if rng.random() < 0.5 else 1
    turn = window / size * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn[:, 0] *= mirrored
    return np.column_stack([turn, centre - turn @ np.full(2, (size - 1) / 2)])
