"""Push-pull hole filling: a pyramid of masked means without learned weights, on which the network can build."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Enough levels to reduce any image of up to 2**16 px per side to one pixel. Further levels would repeat that pixel.
LEVELS = 16


@torch.no_grad()
def push_pull(image: Tensor, mask: Tensor) -> Tensor:
    """Fill the holes of an image smoothly from its valid pixels with a push-pull pyramid.

    Pull: each pixel of the next level is the mean of the valid pixels in a 2×2 window, and valid if any of them is.
    This is Eq. 1 and 2 with constant weight 1/4 and stride 2. The last level has one pixel.
    Push: each hole pixel is interpolated bilinearly from the next coarser level. Valid pixels stay unchanged.

    image: (N,3,H,W); values in holes are ignored. mask: (N,1,H,W), 1 = valid, 0 = hole.
    Returns (N,3,H,W), at least float32: the image with filled holes; 0 everywhere if it has no valid pixel.
    """
    with torch.autocast(image.device.type, enabled=False):
        *finer, (coarsest, _) = pull(image, mask)
        return push(finer, coarsest)


def pull(image: Tensor, mask: Tensor, levels: int = LEVELS) -> list[tuple[Tensor, Tensor]]:
    """Return (image, mask) and up to `levels` coarser pairs, each ⌈H/2⌉×⌈W/2⌉. Stops at 1×1 px, except in an export."""
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
    """Return the first level of a pyramid with its holes filled. below: the filled level after the pyramid's last."""
    for x, mask in reversed(pyramid):
        height, width = x.shape[-2:]
        finer = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        below = torch.where(mask > 0, x, finer[..., :height, :width])
    return below


def _sums_of_2x2(x: Tensor) -> Tensor:
    """Sum 2×2 windows: (N,C,H,W) → (N,C,⌈H/2⌉,⌈W/2⌉), zero-padded at the bottom and right."""
    return 4 * F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2)  # ceil_mode and divisor_override cannot be exported
