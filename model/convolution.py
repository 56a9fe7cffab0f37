"""Faster forms of the decoder's convolution and of convolutions with constant weights.

The layers use `conv2d_of_upsampled` and, for inference, `FixedConvolution` and `FixedUpConvolution`. Each docstring
names the plain operation that it equals to rounding. These forms only save time; `python -m benchmarks.forms` measures
how much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Private torch ops for oneDNN's packed weights, used by torch.compile. Not all builds have them.
_PACKING = (
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
    "_convolution_pointwise",
    "_convolution_transpose_pointwise",
)


def conv2d_of_upsampled(x: Tensor, skip: Tensor, weight: Tensor) -> Tensor:
    """Return conv2d(concat(upsample(x), skip), weight, padding=1), without concat and upsampled map where faster.

    x: (N,C,H,W), skip: (N,S,2H,2W), weight: (C',C+S,3,3). Returns (N,C',2H,2W).

    Wᵀ is linear: Wᵀ[up(X), S] = W_upᵀ up(X) + W_skipᵀ S. The first term becomes a transposed convolution of x.
    """
    if fastest_form(x) == "plain":
        return F.conv2d(torch.cat([upsample(x), skip], 1), weight, padding=1)
    up_weight, skip_weight = weight.split([x.shape[1], skip.shape[1]], 1)
    y = F.conv_transpose2d(x, upsampling_kernel(up_weight), stride=2, padding=1)
    return y.add_(F.conv2d(skip, skip_weight, padding=1))


def fastest_form(x: Tensor) -> str:
    """Return the form of conv2d_of_upsampled for x (N,C,H,W): "transposed", or "plain" for few pixels.

    For few pixels, building the transposed kernel costs more than it saves.
    """
    return "transposed" if x.shape[0] * x.shape[2] * x.shape[3] >= 256 else "plain"


def upsample(x: Tensor) -> Tensor:
    """Upsample features or masks ×2, nearest neighbour."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Return K (C,C',4,4): conv_transpose2d(x, K, stride=2, padding=1) = conv2d(upsample(x), weight, padding=1).

    weight: (C',C,3,3). For each pair of channels, 2×2 output pixels need 16 products instead of 36.

    In one dimension, with weight (a, b, c): a pixel of upsample(x) adds c times itself to the pixel before it, b times
    to its own position, a times to the one after it. A pixel of x appears there twice in a row, so it adds (c, b+c,
    a+b, a) times itself to four pixels. The next pixel of x does so two pixels further. That is a transposed
    convolution of stride 2. In two dimensions the same holds along both axes.
    """
    taps = weight.permute(1, 2, 3, 0).contiguous()  # (C,3,3,C')
    for axis in (1, 2):
        a, b, c = taps.unbind(axis)
        taps = torch.stack([c, b + c, a + b, a], axis)
    return taps.permute(0, 3, 1, 2)  # channels-last in memory, as the convolution prefers


# --- inference: constant weights -------------------------------------------------------------------------------------


class FixedConvolution(nn.Module):
    """conv2d(x, weight) or conv_transpose2d without bias, with a constant weight and no gradient.

    On a CPU, torch reorders a weight into oneDNN's layout on every call, which takes longer than the convolution of a
    small map. This module reorders it once, on the first call.
    """

    weight: Tensor

    def __init__(
        self,
        weight: Tensor,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (1, 1),
        dilation: tuple[int, ...] = (1, 1),
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation, self.transposed = stride, padding, dilation, transposed
        weight = weight.detach().clone(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not _can_pack(x) or torch.compiler.is_compiling():
            if self.transposed:
                return F.conv_transpose2d(x, self.weight, None, self.stride, self.padding, 0, 1, self.dilation)
            return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation)
        onednn: Any = torch.ops.mkldnn
        between = ([0, 0],) if self.transposed else ()  # no output padding
        if self._packed is None:
            pack = (
                onednn._reorder_convolution_transpose_weight if self.transposed else onednn._reorder_convolution_weight
            )
            self._packed = pack(self.weight, self.padding, *between, self.stride, self.dilation, 1)
        run = onednn._convolution_transpose_pointwise if self.transposed else onednn._convolution_pointwise
        # "none": no fused operation on the result; 1: groups.
        return run(x, self._packed, None, self.padding, *between, self.stride, self.dilation, 1, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # packed weights cannot be copied; the copy packs its own

    def _apply(self, *arguments: Any, **options: Any) -> FixedConvolution:
        self._packed = None  # packed from the old weight
        return super()._apply(*arguments, **options)


class FixedUpConvolution(nn.Module):
    """conv2d_of_upsampled(x, skip, weight) with a constant weight (C',C+S,3,3), where x has C channels."""

    def __init__(self, weight: Tensor, channels: int) -> None:
        super().__init__()
        up_weight, skip_weight = weight.split([channels, weight.shape[1] - channels], 1)
        self.of_x = FixedConvolution(upsampling_kernel(up_weight), stride=(2, 2), transposed=True)
        self.of_skip = FixedConvolution(skip_weight)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y: Tensor = self.of_x(x)
        return y.add_(self.of_skip(skip))


def _can_pack(x: Tensor) -> bool:
    onednn = torch.ops.mkldnn
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not (torch.is_grad_enabled() and x.requires_grad)  # the packed ops have no gradient
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and all(hasattr(onednn, name) for name in _PACKING)
    )
