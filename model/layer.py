"""The partial convolution: Eq. 1 and 2 of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PartialConv2d(nn.Conv2d):
    """A convolution that sees valid pixels alone and scales by how many it saw.

    x' = Wᵀ(X ⊙ M) · sum(1)/sum(M) + b  where sum(M) > 0, else 0     (Eq. 1)
    m' = 1                              where sum(M) > 0, else 0     (Eq. 2)

    Both sums run over the window and over all input channels. Outside the image counts as hole, so an
    all-valid mask still has the ratio 1.5 on an edge and 2.25 in a corner (3×3, padding 1).
    Parameters and initialisation are those of `torch.nn.Conv2d`: `weight` and `bias`, nothing else.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias)

    def forward(  # type: ignore[override]
        self, x: Tensor | Sequence[Tensor], mask: Tensor | Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return (y, updated_mask): (N,C',H',W') in x's type, (N,1,H',W') in mask arithmetic's type.

        x: features (N,C,H,W). What lies where the mask is 0 never matters, NaN and infinity included.
        mask: 0/1, 1 = valid, (N,1,H,W) or (N,C,H,W).
        Both may be sequences of tensors of the same size: features to be concatenated, each with its mask.
        One-channel masks then say all: each weighs as much as its features have channels.

        ValueError where shapes do not fit.
        """
        parts = [x] if isinstance(x, Tensor) else list(x)
        masks = [mask] if isinstance(mask, Tensor) else list(mask)
        self._check(parts, masks)
        # masked_fill rather than a product: 0 · NaN would be NaN.
        masked = [part.masked_fill(m == 0, 0) for part, m in zip(parts, masks, strict=True)]
        ratio, updated_mask = self._update(parts, masks)
        y = F.conv2d(torch.cat(masked, 1), self.weight, None, self.stride, self.padding, self.dilation)
        scaled = y * ratio  # in float32 where y is a half type: the ratio may be beyond float16
        if self.bias is not None:
            scaled = scaled + self.bias.view(1, -1, 1, 1) * updated_mask
        return scaled.to(y.dtype), updated_mask

    @torch.no_grad()
    def _update(self, parts: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(sum(1)/sum(M) or 0, m'), both (N,1,H',W').

        At least float32 and never autocast: float16 and bfloat16 can't count to 9·1024.
        """
        with torch.autocast(parts[0].device.type, enabled=False):
            dtype = torch.promote_types(parts[0].dtype, torch.float32)
            # A one-channel mask stands for as many copies as its features have channels.
            counts = [
                m.to(dtype).sum(1, keepdim=True) * (part.shape[1] // m.shape[1])
                for part, m in zip(parts, masks, strict=True)
            ]
            valid = torch.stack(counts).sum(0)  # (N,1,H,W): valid channels at each pixel
            window = valid.new_ones(1, 1, *self.kernel_size)
            sum_m = F.conv2d(valid, window, None, self.stride, self.padding, self.dilation)
            sum_1 = self.in_channels * window.numel()
            updated_mask = (sum_m > 0).to(dtype)
            return updated_mask * sum_1 / sum_m.clamp(min=1), updated_mask

    def _check(self, parts: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        if len(parts) != len(masks):
            raise ValueError(f"each x needs its mask, got {len(parts)} of x and {len(masks)} masks")
        for part, m in zip(parts, masks, strict=True):
            if part.ndim != 4 or m.ndim != 4:
                raise ValueError(f"x and mask must be 4-dimensional, got {tuple(part.shape)} and {tuple(m.shape)}")
            n, c, h, w = part.shape
            if m.shape not in ((n, 1, h, w), (n, c, h, w)):
                raise ValueError(
                    f"mask must be {(n, 1, h, w)} or {(n, c, h, w)} for x of {(n, c, h, w)}, got {tuple(m.shape)}"
                )
        channels = sum(part.shape[1] for part in parts)
        if channels != self.in_channels:
            raise ValueError(f"x must have {self.in_channels} channels in all, got {channels}")
