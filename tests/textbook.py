"""Oracles written straight from the paper, as slow and as plain as can be."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def textbook_partial_conv(
    x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int = 1
) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 2 with a mask of as many channels as x and a full kernel of ones."""
    assert mask.shape == x.shape
    sum_m = F.conv2d(mask, torch.ones_like(weight[:1]), None, stride, padding, dilation)
    sum_1 = weight[0].numel()
    y = F.conv2d(x * mask, weight, None, stride, padding, dilation)
    y = y * torch.where(sum_m > 0, sum_1 / sum_m, torch.zeros_like(sum_m))
    if bias is not None:
        y = y + bias.view(1, -1, 1, 1)
    valid = sum_m > 0
    return torch.where(valid, y, torch.zeros_like(y)), valid.to(x.dtype)


def textbook_unet(net: torch.nn.Module, image: Tensor, mask: Tensor) -> Tensor:
    """The forward of a PConvUNet with its own weights, masks carried with full channels."""

    def block(block: torch.nn.Module, x: Tensor, m: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        conv = block.conv
        y, m = textbook_partial_conv(x, m, conv.weight, conv.bias, stride, conv.kernel_size[0] // 2)
        if block.bn is not None:
            y = block.bn(y)
        return y, m.expand(-1, y.shape[1], -1, -1)

    x, m = image, mask.expand_as(image)
    skips = []
    for level in net.encoder:
        skips.append((x, m))
        x, m = block(level, x, m, 2)
        x = x.clamp(min=0)
    for level in net.decoder:
        skip, skip_mask = skips.pop()
        up, up_mask = (t.repeat_interleave(2, 2).repeat_interleave(2, 3) for t in (x, m))
        x, m = block(level, torch.cat([up, skip], 1), torch.cat([up_mask, skip_mask], 1), 1)
        if level is not net.decoder[-1]:
            x = torch.where(x > 0, x, 0.2 * x)
    return x
