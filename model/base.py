"""The base that the network can stand on: a fill of the holes by a pyramid of masked means, without a weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Levels that reach one pixel for any image up to 2**16 px a side. Further levels would repeat that pixel.
LEVELS = 16


@torch.no_grad()
def push_pull(image: Tensor, mask: Tensor) -> Tensor:
    """Fill the holes of an image smoothly from its valid pixels, by pull and push along a pyramid.

    Pull: a pixel of the next level is the mean of the valid ones among 2×2 pixels, and valid where there is one. That
    is Eq. 1 and 2 with the constant weight 1/4 and stride 2. The last level has one pixel.
    Push: a hole's pixel takes the value of the level below, interpolated bilinearly. Valid pixels stay as they are.

    image: (N,3,H,W); values in a hole never matter. mask: (N,1,H,W), 1 = valid, 0 = hole.
    Returns (N,3,H,W), at least float32: the image where valid. 0 everywhere for an image without a valid pixel.
    """
    with torch.autocast(image.device.type, enabled=False):
        *finer, (coarsest, _) = pull(image, mask)
        return push(finer, coarsest)


def pull(image: Tensor, mask: Tensor, levels: int = LEVELS) -> list[tuple[Tensor, Tensor]]:
    """Image, mask and the levels below them, at most `levels`: each level is ⌈H/2⌉×⌈W/2⌉. The last may be one pixel."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    mask = mask.to(dtype)
    x = image.to(dtype).masked_fill(mask == 0, 0)
    pyramid = [(x, mask)]
    while len(pyramid) <= levels and (torch.compiler.is_exporting() or x.shape[-2:] != (1, 1)):
        total, count = _sums_of_2x2(x), _sums_of_2x2(mask)
        mask = (count > 0).to(dtype)
        x = total / count.clamp(min=1)
        pyramid.append((x, mask))
    return pyramid


def push(pyramid: list[tuple[Tensor, Tensor]], below: Tensor) -> Tensor:
    """The first level of a pyramid, its holes filled. below: the filled level that comes after the pyramid's last."""
    for x, mask in reversed(pyramid):
        height, width = x.shape[-2:]
        finer = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        below = torch.where(mask > 0, x, finer[..., :height, :width])
    return below


def _sums_of_2x2(x: Tensor) -> Tensor:
    """(N,C,H,W) → (N,C,⌈H/2⌉,⌈W/2⌉). Beyond the edge lies nothing."""
    return 4 * F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2)  # neither ceil_mode nor divisor_override can be exported
