"""Classical methods for comparison. Each fills the hole of an image from its surroundings.

To add one, decorate a function with `@baseline`: predict.py and evaluate.py read their choices from FILLS. The first
argument is its library, imported on the first fill, because --help needs only the names.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

# (image (H,W,3), float32 in [0,1]; mask (H,W), uint8, 0 = hole) -> filled image.
Fill: TypeAlias = "Callable[[np.ndarray, np.ndarray], np.ndarray]"
FillWith: TypeAlias = "Callable[[Any, np.ndarray, np.ndarray], np.ndarray]"  # (library, image, mask) -> filled image

FILLS: dict[str, Fill] = {}  # by name on the command line

_LIBRARIES: dict[str, tuple[str, str]] = {}  # title and module, by the same names
_RADIUS = 3  # px, the neighbourhood that cv2.inpaint reads


def baseline(name: str, title: str, module: str) -> Callable[[FillWith], Fill]:
    """Register a function of (library, image, mask) under `name`. title, module: of its library."""

    def register(function: FillWith) -> Fill:
        def fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
            return function(import_module(module), image, mask)

        FILLS[name] = fill
        _LIBRARIES[name] = title, module.partition(".")[0]
        return fill

    return register


def version_of(name: str) -> str:
    """Return the title and version of a baseline's library: scores may depend on them."""
    title, package = _LIBRARIES[name]
    return f"{title} {import_module(package).__version__}"


@baseline("telea", "OpenCV", "cv2")
def telea(cv2: Any, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fast marching (Telea 2004), by OpenCV."""
    return _opencv(cv2, image, mask, cv2.INPAINT_TELEA)


@baseline("navier-stokes", "OpenCV", "cv2")
def navier_stokes(cv2: Any, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fluid dynamics (Bertalmio et al. 2001), by OpenCV."""
    return _opencv(cv2, image, mask, cv2.INPAINT_NS)


@baseline("biharmonic", "scikit-image", "skimage.restoration")
def biharmonic(restoration: Any, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The biharmonic equation (Damelin and Hoang 2018), by scikit-image."""
    # No clamp: scikit-image clips the result to the range of the valid pixels.
    return restoration.inpaint_biharmonic(image, mask == 0, channel_axis=2).astype("float32")


@baseline("push-pull", "torch", "torch")
def push_pull(torch: Any, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A pyramid of masked means, as in the config's model.base: push_pull."""
    from model.base import push_pull as fill

    return _by_torch(torch, image, mask, fill)


@baseline("thin-plate", "torch", "torch")
def thin_plate(torch: Any, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Push-pull, relaxed towards the biharmonic equation, as in the config's model.base: thin_plate."""
    from model.base import thin_plate as fill

    return _by_torch(torch, image, mask, fill).clip(0, 1)


@baseline("mean", "NumPy", "numpy")
def mean_colour(np: Any, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean colour of the valid pixels."""
    return np.where(mask[..., None] > 0, image, image[mask > 0].mean(0, dtype=np.float64).astype(np.float32))


def _opencv(cv2: Any, image: np.ndarray, mask: np.ndarray, method: int) -> np.ndarray:
    pixels = (image * 255).round().astype("uint8")  # OpenCV fills colour images only at 8 bits
    return cv2.inpaint(pixels, (mask == 0).astype("uint8"), _RADIUS, method).astype("float32") / 255


def _by_torch(torch: Any, image: np.ndarray, mask: np.ndarray, fill: Callable[[Any, Any], Any]) -> np.ndarray:
    """Return fill(image, mask) of tensors (1,3,H,W) and (1,1,H,W) as an array."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    filled: np.ndarray = fill(tensor, torch.from_numpy(mask)[None, None])[0].permute(1, 2, 0).numpy()
    return filled
