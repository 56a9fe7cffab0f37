"""The two rivals, written plainly from the equations, without optimisation. The tests use them as oracles.

Both share the blocks, and so the parameters, of a PConvUNet; only the computation differs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss import total_variation
from model import PConvUNet, VGG16Features
from model.network import LEAK, Block
from model.vgg import BLOCKS


class Rival(nn.Module):
    """Base class that shares the blocks of a PConvUNet."""

    encoder: Any
    decoder: Any

    def __init__(self, net: PConvUNet) -> None:
        super().__init__()
        self.encoder, self.decoder, self.depth = net.encoder, net.decoder, net.depth


class TextbookUNet(Rival):
    """The network as in most implementations: masks with all channels, convolved with a kernel of ones."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Arguments and result as in PConvUNet, except that holes must not contain NaN."""
        x, m = image, mask.expand_as(image)
        skips = []
        for block in self.encoder:
            skips.append((x, m))
            x, m = partial_conv(x, m, block.conv.weight, block.conv.bias, 2, block.conv.kernel_size[0] // 2)
            x = F.relu(normalised(block, x), inplace=True)
        for block in self.decoder:
            skip, skip_mask = skips.pop()
            x, m = torch.cat([upsampled(x), skip], 1), torch.cat([upsampled(m), skip_mask], 1)
            x, m = partial_conv(x, m, block.conv.weight, block.conv.bias, 1, 1)
            x = normalised(block, x)
            if skips:
                x = F.leaky_relu(x, LEAK, inplace=True)
        return x


class OrdinaryUNet(Rival):
    """The same U-Net with ordinary convolutions, without masks."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Arguments and result as in PConvUNet; holes are set to 0."""
        x = image * mask
        skips = []
        for block in self.encoder:
            skips.append(x)
            x = F.conv2d(x, block.conv.weight, block.conv.bias, 2, block.conv.kernel_size[0] // 2)
            x = F.relu(normalised(block, x), inplace=True)
        for block in self.decoder:
            x = torch.cat([upsampled(x), skips.pop()], 1)
            x = normalised(block, F.conv2d(x, block.conv.weight, block.conv.bias, 1, 1))
            if skips:
                x = F.leaky_relu(x, LEAK, inplace=True)
        return x


def partial_conv(
    x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int = 1
) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 2. x and mask: (N,C,H,W); mask: 1 = valid, 0 = hole. Returns x' and m', both (N,C',H',W')."""
    with torch.no_grad():
        sum_m = F.conv2d(mask, torch.ones_like(weight), None, stride, padding, dilation)
        sum_1 = weight[0].numel()
        valid = (sum_m > 0).to(mask.dtype)
        ratio = valid * sum_1 / sum_m.clamp(min=1)
    y = F.conv2d(x * mask, weight, None, stride, padding, dilation) * ratio
    if bias is not None:
        y = y + bias.view(1, -1, 1, 1) * valid
    return y, valid


def normalised(block: Block, x: Tensor) -> Tensor:
    return x if block.bn is None else block.bn(x)


def upsampled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class TextbookLoss(nn.Module):
    """Eq. 3 to 7, with one VGG-16 pass for each of the three images, in contiguous memory format."""

    def __init__(self, vgg: VGG16Features, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.vgg = copy.deepcopy(vgg).to(memory_format=torch.contiguous_format)
        self.weights = weights

    def forward(self, output: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """Return L_total. Arguments as in InpaintingLoss."""
        comp = mask * image + (1 - mask) * output
        truth = self.pools(image)
        both = [self.pools(output), self.pools(comp)]
        terms = {
            "valid": (mask * (output - image)).abs().mean(),
            "hole": ((1 - mask) * (output - image)).abs().mean(),
            "perceptual": sums([F.l1_loss(p, gt) for psi in both for p, gt in zip(psi, truth, strict=True)]),
            "style": sums([F.l1_loss(gram(p), gram(gt)) for psi in both for p, gt in zip(psi, truth, strict=True)]),
            "tv": total_variation(comp, mask),
        }
        return sums([self.weights[name] * term for name, term in terms.items()])

    def pools(self, image: Tensor) -> list[Tensor]:
        x = (image - self.vgg.mean) / self.vgg.std
        convolutions = (layer for layer in self.vgg.features if isinstance(layer, nn.Conv2d))
        pools = []
        for block in BLOCKS:
            for _ in block:
                x = F.relu(next(convolutions)(x), inplace=True)
            x = F.max_pool2d(x, 2)
            pools.append(x)
        return pools


def sums(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum()


def gram(features: Tensor) -> Tensor:
    n, c, h, w = features.shape
    psi = features.reshape(n, c, h * w)
    return psi @ psi.transpose(1, 2) / (c * h * w)
