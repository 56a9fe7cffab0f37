"""Images of any height and width through the network, as far as their holes need it, and the composite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from model.network import PConvUNet
from model.octaves import OctaveFiller, trusted_radius, write
from model.regions import Box


def inpaint(model: PConvUNet, image: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Fill the holes of images of any height and width; returns the composite (N,3,H,W) in [0,1].

    image: float (N,3,H,W) in [0,1]; what lies in a hole never matters. mask: float (N,1,H,W), 1 = valid, 0 = hole.
    scale: 1 for a single pass; more: how many times the largest hole of an image is to be reduced for a first fill;
    None: as many times as takes it to the size of the holes that the network was trained on, if that is known.
    Valid pixels come back bit for bit. The model runs on its own device in evaluation mode; the result lies
    on the image's device. Time and memory follow the holes. ValueError where shapes or values do not fit.
    """
    _check(image, mask)
    hole = mask.to(image.device) == 0
    result = image.clone()
    for number, filler in enumerate(_fillers(model, image, mask, hole, scale)):
        write(filler, result[number : number + 1], hole[number : number + 1])
    return result


def predict_whole(model: PConvUNet, image: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """What the network makes of the whole picture, valid part too: (N,3,H,W) in [0,1]. Arguments as of inpaint."""
    _check(image, mask)
    result, everywhere = torch.empty_like(image), torch.ones_like(mask, dtype=torch.bool)
    for number, filler in enumerate(_fillers(model, image, mask, everywhere, scale)):
        write(filler, result[number : number + 1], everywhere[number : number + 1].to(image.device))
    return result


def _fillers(
    model: PConvUNet, image: Tensor, mask: Tensor, wanted: Tensor, scale: float | None
) -> Iterator[OctaveFiller]:
    """One for each image."""
    for picture, valid, place in zip(image.split(1), mask[:, 0].cpu() != 0, wanted[:, 0].cpu(), strict=True):

        def read(box: Box, picture: Tensor = picture) -> Tensor:
            return picture[box.slices]

        yield OctaveFiller(model, read, valid, place, trusted_radius(model, valid, scale))


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
