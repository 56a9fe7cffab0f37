"""Random crops of images and random changes of masks. All of it a function of the generator given."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image, ImageOps

# Width over height of a random crop, as torchvision's RandomResizedCrop.
_ASPECT = (3 / 4, 4 / 3)


def random_crop(image: Image.Image, size: int, scale: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    """A random part of an RGB image at size×size px, mirrored half of the time.

    scale: share of the picture's area that the part takes, from lowest to highest.
    """
    width, height = image.size
    area = width * height * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(*np.log(_ASPECT)))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    left = int(rng.integers(width - crop_width + 1))
    top = int(rng.integers(height - crop_height + 1))
    box = (left, top, left + crop_width, top + crop_height)
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square of an RGB image at size×size px."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def fit_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square of a mask (H,W) at size×size px, nearest neighbour, so that it stays 0 or 1."""
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = mask[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST)


def augment_mask(mask: np.ndarray, size: int, dilate: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Dilate, rotate, shift, crop a mask at random (§4.1); returns (size,size), 0 or 1.

    mask: uint8 (H,W), 1 = valid, 0 = hole. dilate: smallest and largest side of the square that holes are
    dilated with, px of a mask of 512 px. What comes from outside the mask is its mirror image. A mask that
    this would leave without a valid pixel is only fitted.
    """
    short = min(mask.shape)
    side = round(int(rng.integers(dilate[0], dilate[1] + 1)) * short / 512)
    # Eroding what is valid dilates what is not.
    eroded = cv2.erode(mask, np.ones((side, side), np.uint8)) if side > 1 else mask
    angle = rng.uniform(0, 2 * math.pi)
    window = short * rng.uniform(0.7, 1.0)  # px of the mask that the side of the crop takes
    centre = (np.array(mask.shape[::-1]) - 1) / 2 + rng.uniform(-0.5, 0.5, 2) * (np.array(mask.shape[::-1]) - window)
    mirrored = -1 if rng.random() < 0.5 else 1
    step = window / size
    turn = step * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn[:, 0] *= mirrored
    to_mask = np.column_stack([turn, centre - turn @ np.full(2, (size - 1) / 2)])  # from output px to mask px
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    changed = cv2.warpAffine(eroded, to_mask, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return changed if changed.any() else fit_mask(mask, size)
