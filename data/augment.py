"""Random crops of images and random changes of masks, all determined by the given generator."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image, ImageOps

from data.images import Box

# Logarithm of a crop's width over height, from 3:4 to 4:3 as in torchvision's RandomResizedCrop.
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))
_TRIES = 8  # crops of a mask to try before the whole mask is used
_OUTLINE = (1, 4)  # px, smallest and largest width of an outline


def random_part(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator, unit: str = "area", size: int = 0
) -> Box:
    """Return a random crop of an image of this size.

    scale: smallest and largest extent of the crop. unit `area`: share of the image's area, with aspect ratios from 3:4
    to 4:3. `px`: side of a square. `image_size`: that side in multiples of `size` px. Small images limit the crop.
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
    """Return the largest centred crop of an RGB image with this aspect ratio, resized to width×height px."""
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def fit_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Return the largest centred square of a mask (H,W) at size×size px, by nearest neighbour to stay binary."""
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = mask[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST)


def augment_mask(
    mask: np.ndarray,
    size: int,
    dilate: tuple[int, int],
    rng: np.random.Generator,
    own_scale: bool = False,
    outlines: float = 0.0,
) -> np.ndarray:
    """Dilate the holes, then rotate, shift, zoom and mirror a mask at random (§4.1). Returns (size,size), 0 or 1.

    mask: uint8 (H,W), 1 = valid, 0 = hole. dilate: smallest and largest side of the square for the dilation, px of a
    mask of 512 px. own_scale: crop about `size` px, so that holes keep their width; otherwise nearly the full mask is
    resized to `size` px. The mask is mirrored beyond its edge. outlines: probability that holes are reduced to their
    outlines. If no valid pixel would remain, the mask is only fitted.
    """
    short = min(mask.shape)
    side = round(int(rng.integers(dilate[0], dilate[1] + 1)) * short / 512)
    # Eroding the valid part dilates the holes.
    dilated = cv2.erode(mask, np.ones((side, side), np.uint8)) if side > 1 else mask
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    # A crop at the mask's own scale may miss all holes or all valid pixels; then another one is drawn.
    for _ in range(_TRIES if own_scale else 1):
        to_mask = _random_similarity(mask.shape, size, rng, own_scale)
        changed = cv2.warpAffine(dilated, to_mask, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        if changed.any() and not (own_scale and changed.all()):
            if outlines and rng.random() < outlines:
                return outlined(changed, int(rng.integers(_OUTLINE[0], _OUTLINE[1] + 1)))
            return changed
    return fit_mask(mask, size)


def outlined(mask: np.ndarray, width: int) -> np.ndarray:
    """Return a mask whose holes are strips of `width` px around the holes of the given one: uint8, 0 = hole."""
    surrounded = cv2.erode(mask, np.ones((2 * width + 1, 2 * width + 1), np.uint8))  # holes grow by `width` px
    return 1 - mask + surrounded


def _random_similarity(shape: tuple[int, ...], size: int, rng: np.random.Generator, own_scale: bool) -> np.ndarray:
    """Return the matrix (2,3) that maps pixels (x, y, 1) of a size×size crop into a mask of shape (H,W).

    The crop is a randomly rotated square. Its side is 0.7 to 1 times the mask's shorter side or, at the mask's own
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
