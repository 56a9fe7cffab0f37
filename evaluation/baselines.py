"""Classical methods to compare with. Each fills the hole of a picture from what lies around it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import cv2
import numpy as np
from skimage.restoration import inpaint_biharmonic

# A picture (H,W,3), float32 in [0,1], and its mask (H,W), uint8, 0 = hole; to a picture that is filled there.
Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]

_RADIUS = 3  # px around a pixel that cv2.inpaint looks at


def telea(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fast marching (Telea 2004), by OpenCV."""
    return _opencv(image, mask, cv2.INPAINT_TELEA)


def navier_stokes(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fluid dynamics (Bertalmio et al. 2001), by OpenCV."""
    return _opencv(image, mask, cv2.INPAINT_NS)


def biharmonic(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The biharmonic equation (Damelin and Hoang 2018), by scikit-image."""
    return inpaint_biharmonic(image, mask == 0, channel_axis=2).astype(np.float32)  # stays in the range of what it sees


def mean_colour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean colour of the valid part."""
    return np.where(mask[..., None] > 0, image, image[mask > 0].mean(0, dtype=np.float64).astype(np.float32))


def _opencv(image: np.ndarray, mask: np.ndarray, method: int) -> np.ndarray:
    pixels = np.rint(image * 255).astype(np.uint8)  # OpenCV fills colour pictures of 8 bits alone
    return np.divide(cv2.inpaint(pixels, (mask == 0).astype(np.uint8), _RADIUS, method), 255, dtype=np.float32)


FILLS: dict[str, Fill] = {
    "telea": telea,
    "navier-stokes": navier_stokes,
    "biharmonic": biharmonic,
    "mean": mean_colour,
}


def version_of(name: str) -> str:
    """The library that a baseline is of, and its version: with another, its scores may differ."""
    if name == "mean":
        return f"NumPy {np.__version__}"
    if name == "biharmonic":
        return f"scikit-image {version('scikit-image')}"
    return f"OpenCV {cv2.getVersionString()}"
