"""Entry points of torch.hub: `torch.hub.load(FOLDER, "pconv_unet", source="local")`, from any folder.

As with every local torch.hub project, its packages are then imported under their own names, `model` and `utils`.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch.hub lists every public callable as an entry point
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    import torch
    from torch import Tensor

    from model import PConvUNet

dependencies = ["torch", "safetensors"]

_HERE = os.path.dirname(os.path.abspath(__file__))


def pconv_unet(
    weights: str | Path | None = None,
    pretrained: bool = True,
    depth: int | None = None,
    base_channels: int | None = None,
    base: str | None = None,
    device: str | torch.device = "cpu",
) -> PConvUNet:
    """Return the network. net(image, mask) predicts all pixels (N,3,H,W); H and W must be multiples of 2**net.depth.

    image: float32 (N,3,H,W), RGB in [0,1]; values in holes are ignored. mask: float32 (N,1,H,W), 1 = valid, 0 = hole.
    For images of any size use the entry point `inpainter`.

    >>> net = torch.hub.load(FOLDER, "pconv_unet", source="local")                     # with the shipped weights
    >>> net = torch.hub.load(FOLDER, "pconv_unet", source="local", weights="last.pt")  # with your own
    >>> net = torch.hub.load(FOLDER, "pconv_unet", source="local", pretrained=False)   # untrained

    weights: a checkpoint or weights file, as for predict.py; default: the shipped weights. The file determines the
    architecture. The network is in evaluation mode.
    pretrained: False for an untrained network in training mode, with `depth` levels (7), `base_channels` (64) and
    `base` (none).
    Raises ValueError if the file cannot be used, or if the arguments contradict each other.
    """
    model = _model()
    given = {"depth": depth, "base_channels": base_channels, "base": base}
    architecture = {name: value for name, value in given.items() if value is not None}
    if pretrained and architecture:
        raise ValueError(f"{' and '.join(architecture)} can't be chosen: weights bring theirs; or add pretrained=False")
    if not pretrained and weights is not None:
        raise ValueError(f"weights and pretrained=False contradict each other; leave one out, got {weights}")
    if pretrained:
        return model.load_model(model.DEFAULT_WEIGHTS if weights is None else weights, device)
    return model.PConvUNet(**architecture).to(device)


def inpainter(
    weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function (image, mask) -> composite (N,3,H,W) in [0,1], for any height and width.

    >>> inpaint = torch.hub.load(FOLDER, "inpainter", source="local")
    >>> repaired = inpaint(image, mask)

    image: float (N,3,H,W), RGB in [0,1]; values in holes are ignored. mask: float (N,1,H,W), 1 = valid, 0 = hole.
    Valid pixels are returned bit for bit. weights, device: as in `pconv_unet`.
    """
    net = pconv_unet(weights, device=device).folded()
    return functools.partial(_model().inpaint, net)


def _model() -> ModuleType:
    """Import the package `model`. Raises ImportError if another `model` or `utils` is already loaded."""
    for name in ("model", "utils"):
        if name in sys.modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file is None or os.path.dirname(os.path.dirname(os.path.abspath(file))) != _HERE:
                raise ImportError(f"another `{name}` is loaded, from {file}; load this project before it, or rename it")
    import model

    return model
