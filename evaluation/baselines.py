"""Classical methods to compare with. Each fills the hole of a picture from what lies around it.

A function with `@baseline` is all that a method needs: predict.py and evaluate.py take their choices from FILLS. Their
libraries are imported when one fills, as --help needs the names alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

# A picture (H,W,3), float32 in [0,1], and its mask (H,W), uint8, 0 = hole; to a picture that is filled there.
Fill: TypeAlias = "Callable[[np.ndarray, np.ndarray], np.ndarray]"

FILLS: dict[str, Fill] = {}  # by the name that the command line has for them

_LIBRARIES: dict[str, tuple[str, str]] = {}  # title and module, by the same name
_RADIUS = 3  # px around a pixel that cv2.inpaint looks at


def baseline(name: str, title: str, module: str) -> Callable[[Fill], Fill]:
    """Make a function the method of this name. title, module: of the library that it is of."""

    def register(fill: Fill) -> Fill:
        FILLS[name] = fill
        _LIBRARIES[name] = title, module
        return fill

    return register


def version_of(name: str) -> str:
    """The library that a baseline is of, and its version: with another, its scores may differ."""
    title, module = _LIBRARIES[name]
    return f"{title} {import_module(module).__version__}"


@baseline("telea", "OpenCV", "cv2")
def telea(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fast marching (Telea 2004), by OpenCV."""
    import cv2

    return _opencv(image, mask, cv2.INPAINT_TELEA)


@baseline("navier-stokes", "OpenCV", "cv2")
def navier_stokes(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fluid dynamics (Bertalmio et al. 2001), by OpenCV."""
    import cv2

    return _opencv(image, mask, cv2.INPAINT_NS)


@baseline("biharmonic", "scikit-image", "skimage")
def biharmonic(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The biharmonic equation (Damelin and Hoang 2018), by scikit-image."""
    import numpy as np
    from skimage.restoration import inpaint_biharmonic  # a second to import, which a prediction need not wait for

    return inpaint_biharmonic(image, mask == 0, channel_axis=2).astype(np.float32)  # stays in the range of what it sees


@baseline("push-pull", "torch", "torch")
def push_pull(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A pyramid of masked means: the base that a network can stand on (model.base)."""
    import torch

    from model.base import push_pull as fill

    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1,3,H,W)
    return fill(tensor, torch.from_numpy(mask)[None, None])[0].permute(1, 2, 0).numpy()


@baseline("mean", "NumPy", "numpy")
def mean_colour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean colour of the valid part."""
    import numpy as np

    return np.where(mask[..., None] > 0, image, image[mask > 0].mean(0, dtype=np.float64).astype(np.float32))


def _opencv(image: np.ndarray, mask: np.ndarray, method: int) -> np.ndarray:
    import cv2
    import numpy as np

    pixels = np.rint(image * 255).astype(np.uint8)  # OpenCV fills colour pictures of 8 bits alone
    return np.divide(cv2.inpaint(pixels, (mask == 0).astype(np.uint8), _RADIUS, method), 255, dtype=np.float32)
