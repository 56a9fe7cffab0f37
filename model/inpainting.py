"""Inpaint images of any height and width, predicting only what the holes need."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from model.network import PConvUNet
from model.octaves import OctaveFiller, trusted_radius, write
from model.regions import Box


def inpaint(model: PConvUNet, image: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Fill the holes of images of any height and width. Returns the composite (N,3,H,W) in [0,1].

    image: float (N,3,H,W) in [0,1]; values in holes are ignored. mask: float (N,1,H,W), 1 = valid, 0 = hole.
    scale: factor by which the largest hole of an image is reduced for a first fill; 1 means a single pass. With None,
    pixels are filled on a reduced image if they are deep compared with the holes in training; see trusted_radius.
    Valid pixels are bit-identical. The model runs on its own device in evaluation mode; the result is on the image's
    device. Time and memory scale with the holes. Raises ValueError if shapes or values do not fit.
    """
    _check(image, mask)
    hole = mask.to(image.device) == 0
    result = image.clone()
    for number, filler in enumerate(_fillers(model, image, mask, hole, scale)):
        write(filler, result[number : number + 1], hole[number : number + 1])
    return result


def predict_whole(model: PConvUNet, image: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Return the prediction of all pixels, including valid ones: (N,3,H,W) in [0,1]. Arguments: see inpaint."""
    _check(image, mask)
    result, everywhere = torch.empty_like(image), torch.ones_like(mask, dtype=torch.bool)
    for number, filler in enumerate(_fillers(model, image, mask, everywhere, scale)):
        write(filler, result[number : number + 1], everywhere[number : number + 1].to(image.device))
    return result


def _fillers(
    model: PConvUNet, image: Tensor, mask: Tensor, wanted: Tensor, scale: float | None
) -> Iterator[OctaveFiller]:
    """Yield a filler for each image."""
    for picture, valid, place in zip(image.split(1), mask[:, 0].cpu() != 0, wanted[:, 0].cpu(), strict=True):

        def read(box: Box, picture: Tensor = picture) -> Tensor:
            return picture[box.slices]

        yield OctaveFiller(model, read, valid, place, trusted_radius(model, valid, scale))


def predict_padded(model: PConvUNet, image: Tensor, mask: Tensor) -> Tensor:
    """Return model(image, mask) for any height and width: pad to multiples of 2**depth, then crop.

    Padding has mask 0, so it is a hole, like the padding of the layers.
    """
    height, width = image.shape[-2:]
    return model(*padded(2**model.depth, image, mask))[..., :height, :width]


def padded(multiple: int, *tensors: Tensor) -> list[Tensor]:
    """Pad tensors (N,C,H,W) with zeros, at the bottom and right, to multiples of `multiple`."""
    height, width = tensors[0].shape[-2:]
    # This form lets an exporter, for which sizes are symbols, infer that the padded sizes are multiples.
    padded_height = (height + multiple - 1) // multiple * multiple
    padded_width = (width + multiple - 1) // multiple * multiple
    padding = (0, padded_width - width, 0, padded_height - height)
    return [F.pad(tensor, padding) for tensor in tensors]


def _check(image: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless image and mask are valid arguments of inpaint."""
    if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0 or not image.is_floating_point():
        raise ValueError(f"image must be float (N,3,H,W) and not empty, got {tuple(image.shape)} of {image.dtype}")
    n, _, h, w = image.shape
    if mask.shape != (n, 1, h, w) or not mask.is_floating_point():
        raise ValueError(f"mask must be float {(n, 1, h, w)} for this image, got {tuple(mask.shape)} of {mask.dtype}")
    others = mask[(mask != 0) & (mask != 1)]
    if len(others):
        raise ValueError(f"mask must be 1 (valid) or 0 (hole), got {others[0]:g}")
    known = image.masked_fill(mask.to(image.device) == 0, 0)
    if not (known.min() >= 0 and known.max() <= 1):  # also rejects NaN
        raise ValueError(f"image must be in [0,1] where valid, got values from {known.min():g} to {known.max():g}")
