"""Images of any height and width through the network, and the composite with what is known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.composite import composite
from model.network import PConvUNet
from utils.errors import UserError


def inpaint(model: PConvUNet, image: Tensor, mask: Tensor) -> Tensor:
    """Fill the holes of images of any height and width; returns the composite (N,3,H,W) in [0,1].

    image: float (N,3,H,W) in [0,1]; what lies in a hole never matters. mask: float (N,1,H,W), 1 = valid, 0 = hole.
    Valid pixels come back bit for bit. The model runs on its own device in evaluation mode; the result lies
    on the image's device. ValueError where shapes or values do not fit.
    """
    return composite(image, predict_whole(model, image, mask), mask.to(image.device))


def predict_whole(model: PConvUNet, image: Tensor, mask: Tensor) -> Tensor:
    """What the network makes of the whole picture, valid part too: (N,3,H,W) in [0,1]. Arguments as of inpaint."""
    _check(image, mask)
    weight = next(model.parameters())  # it has the type and the device that the model computes with
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = predict_padded(model, image.to(weight), mask.to(weight))
    finally:
        model.train(was_training)
    if not output.isfinite().all():
        raise UserError("the network's output is not finite: its training diverged or its file is damaged; use another")
    return output.clamp(0, 1).to(image)


def predict_padded(model: PConvUNet, image: Tensor, mask: Tensor) -> Tensor:
    """model(image, mask) for any height and width: padded to multiples of 2**depth, then cropped again.

    Padding with mask 0 is simply a hole: outside the image the layer sees nothing either.
    """
    height, width = image.shape[-2:]
    multiple = 2**model.depth
    # In this form an exporter, to which the sizes are symbols, sees that the padded ones are multiples.
    padded_height = (height + multiple - 1) // multiple * multiple
    padded_width = (width + multiple - 1) // multiple * multiple
    padding = (0, padded_width - width, 0, padded_height - height)
    return model(F.pad(image, padding), F.pad(mask, padding))[..., :height, :width]


def _check(image: Tensor, mask: Tensor) -> None:
    """ValueError unless image and mask are as inpaint wants them."""
    if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0 or not image.is_floating_point():
        raise ValueError(f"image must be float (N,3,H,W) and not empty, got {tuple(image.shape)} of {image.dtype}")
    n, _, h, w = image.shape
    if mask.shape != (n, 1, h, w) or not mask.is_floating_point():
        raise ValueError(f"mask must be float {(n, 1, h, w)} for this image, got {tuple(mask.shape)} of {mask.dtype}")
    others = mask[(mask != 0) & (mask != 1)]
    if len(others):
        raise ValueError(f"mask must be 1 (valid) or 0 (hole), got {others[0]:g}")
    known = image.masked_fill(mask.to(image.device) == 0, 0)
    if not (known.min() >= 0 and known.max() <= 1):  # so that NaN fails, too
        raise ValueError(f"image must be in [0,1] where valid, got values from {known.min():g} to {known.max():g}")
