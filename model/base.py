"""What needs no learned weights: fills on which the network can build, and the contrast that limits what it adds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Enough levels to reduce any image of up to 2**16 px per side to one pixel. Further levels would repeat that pixel.
LEVELS = 16

# Levels of the pyramid that thin_plate relaxes, finest first, and steps at each.
PLATE_LEVELS = 3
PLATE_STEPS = 8


def push_pull(image: Tensor, mask: Tensor) -> Tensor:
    """Fill the holes of an image smoothly from its valid pixels with a push-pull pyramid.

    Pull: each pixel of the next level is the mean of the valid pixels in a 2×2 window, and valid if any of them is.
    This is Eq. 1 and 2 with constant weight 1/4 and stride 2. The last level has one pixel.
    Push: each hole pixel is interpolated bilinearly from the next coarser level. Valid pixels stay unchanged.

    image: (N,3,H,W); values in holes are ignored. mask: (N,1,H,W), 1 = valid, 0 = hole.
    Returns (N,3,H,W), at least float32: the image with filled holes; 0 everywhere if it has no valid pixel.
    """
    return thin_plate(image, mask, levels=0)


@torch.no_grad()
def thin_plate(image: Tensor, mask: Tensor, levels: int = PLATE_LEVELS) -> Tensor:
    """Fill the holes of an image like push_pull, then continue gradients into them: Δ²u = 0, approximately.

    At each of the finest `levels` levels, PLATE_STEPS steps towards the solution of the biharmonic equation, the shape
    of a thin plate that is fixed at the valid pixels, follow the interpolation. They change most near the rim of a
    hole; far from it, where a thin plate would overshoot, the fill stays close to push_pull. Arguments and result: see
    push_pull.
    """
    with torch.autocast(image.device.type, enabled=False):
        *finer, (coarsest, _) = pull(image, mask)
        return push(finer, coarsest, levels)


@torch.no_grad()
def contrast(image: Tensor, mask: Tensor, size: int) -> Tensor:
    """Return the standard deviation of the valid pixels around each pixel, at most 1: (N,3,H,W), at least float32.

    It is computed in squares of `size` px and interpolated bilinearly. Each square's is divided by the square of its
    share of valid pixels, because few pixels say little; it is 1 if there are none. image, mask: as in push_pull, with
    H and W multiples of `size`.
    """
    with torch.autocast(image.device.type, enabled=False):
        dtype = torch.promote_types(image.dtype, torch.float32)
        mask = mask.to(dtype)
        x = image.to(dtype).masked_fill(mask == 0, 0)
        share = F.avg_pool2d(mask, size)
        divisor = share.clamp(min=size**-2)
        mean = F.interpolate(F.avg_pool2d(x, size) / divisor, scale_factor=size)
        variance = F.avg_pool2d(((x - mean) * mask).square(), size) / divisor
        deviation = torch.where(share > 0, (variance.sqrt() / divisor**2).clamp(max=1), 1)
        return F.interpolate(deviation, scale_factor=size, mode="bilinear", align_corners=False)


def plate_reach(levels: int) -> int:
    """Return by how many px relaxing the finest `levels` levels extends what thin_plate reads."""
    return sum(2 * PLATE_STEPS << level for level in range(levels))


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


def push(pyramid: list[tuple[Tensor, Tensor]], below: Tensor, relaxed_levels: int = 0) -> Tensor:
    """Return the first level of a pyramid with its holes filled. below: the filled level after the pyramid's last.

    relaxed_levels: how many of the first levels are relaxed towards a thin plate.
    """
    for level, (x, mask) in reversed(list(enumerate(pyramid))):
        height, width = x.shape[-2:]
        finer = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        below = torch.where(mask > 0, x, finer[..., :height, :width])
        if level < relaxed_levels:
            relax_(below, mask == 0)
    return below


def relax_(u: Tensor, hole: Tensor) -> None:
    """Take PLATE_STEPS Chebyshev steps towards Δ²u = 0 in the holes, in place. u: (N,C,H,W). hole: bool (N,1,H,W)."""
    # The box around the holes saves time. On a GPU the host would have to wait for it.
    if u.device.type == "cpu" and not torch.compiler.is_compiling():
        rows, columns = (hole.any(dim).flatten(0, 1).any(0).nonzero() for dim in (3, 2))  # that contain holes
        if len(rows) == 0:
            return
        # Only the holes change, and Δ² reads pixels up to 2 px away.
        down, across = (slice(max(0, int(found[0]) - 2), int(found[-1]) + 3) for found in (rows, columns))
        u, hole = u[..., down, across], hole[..., down, across]
    valid, direction = ~hole, torch.zeros_like(u)
    for length, memory in CHEBYSHEV_STEPS:
        direction.mul_(memory).sub_(_laplacian(_laplacian(u)).masked_fill_(valid, 0))
        u.add_(direction, alpha=length)


def _laplacian(u: Tensor) -> Tensor:
    """Return the sum of the four neighbours' differences from each pixel of u (N,C,H,W).

    Pixels beyond the edge equal the nearest one inside.
    """
    padded = F.pad(u, (1, 1, 1, 1), mode="replicate")
    total = padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    total += padded[..., :-2, 1:-1]
    total += padded[..., 2:, 1:-1]
    return total.sub_(u, alpha=4)


def _chebyshev(count: int, largest: float, smallest: float) -> list[tuple[float, float]]:
    """Return (length, memory) of `count` steps of the Chebyshev iteration (Saad, Iterative Methods, algorithm 12.1).

    largest, smallest: ends of the range of eigenvalues in which it reduces the residual.
    """
    centre, half = (largest + smallest) / 2, (largest - smallest) / 2
    length, memory, steps = 1 / centre, 0.0, []
    for number in range(count):
        if number:
            memory = (half * length) ** 2 / (2 if number == 1 else 4)
            length = 1 / (centre - memory / length)
        steps.append((length, memory))
    return steps


# 64 is the largest eigenvalue of Δ². Below a 50th of it, errors are so smooth that a coarser level has reduced them.
CHEBYSHEV_STEPS = _chebyshev(PLATE_STEPS, 64, 64 / 50)


def _sums_of_2x2(x: Tensor) -> Tensor:
    """Sum 2×2 windows: (N,C,H,W) → (N,C,⌈H/2⌉,⌈W/2⌉), zero-padded at the bottom and right."""
    return 4 * F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2)  # ceil_mode and divisor_override cannot be exported
