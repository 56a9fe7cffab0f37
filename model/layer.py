"""The partial convolution, Eq. 1 and 2 of the paper, and the decoder's layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.convolution import FixedConvolution, FixedUpConvolution, conv2d_of_upsampled, upsample


class PartialConv2d(nn.Conv2d):
    """Convolution over valid pixels only, rescaled by the number of valid pixels in the window.

    x' = Wᵀ(X ⊙ M) · sum(1)/sum(M) + b  where sum(M) > 0, else 0     (Eq. 1)
    m' = 1                              where sum(M) > 0, else 0     (Eq. 2)

    Both sums run over the window and over all input channels. Padding counts as hole: with an all-valid mask the ratio
    is 1.5 at an edge and 2.25 in a corner (3×3, padding 1).
    Parameters and initialisation match `torch.nn.Conv2d`: `weight` and `bias`, nothing else.
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
        self.fixed: FixedConvolution | None = None

    def forward(  # type: ignore[override]
        self, x: Tensor | Sequence[Tensor], mask: Tensor | Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return (y, updated_mask): (N,C',H',W') in x's dtype, (N,1,H',W') in at least float32.

        x: features (N,C,H,W). Values where the mask is 0 are ignored, including NaN and infinity.
        mask: 0/1, 1 = valid, (N,1,H,W) or (N,C,H,W).
        Both may be sequences of tensors of the same N, H, W: features to concatenate, each with its mask. A one-channel
        mask counts once for each channel of its features.

        Raises ValueError if shapes do not fit.
        """
        parts = [x] if isinstance(x, Tensor) else list(x)
        masks = [mask] if isinstance(mask, Tensor) else list(mask)
        self._check(parts, masks)
        # masked_fill, not a product: 0 · NaN is NaN.
        masked = [part.masked_fill(m == 0, 0) for part, m in zip(parts, masks, strict=True)]
        # A one-channel mask counts once for each channel of its features.
        counts = [
            counted(m).sum(1, keepdim=True) * (part.shape[1] // m.shape[1])
            for part, m in zip(parts, masks, strict=True)
        ]
        return self.forward_masked(torch.cat(masked, 1), torch.stack(counts).sum(0))

    def forward_masked(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` for X ⊙ M: features (N,C,H,W) that are already 0 where their mask is 0.

        valid: number of valid channels at each pixel, (N,1,H,W), at least float32.
        """
        return self.scaled(self.convolved(x), self.ratio(valid))

    def convolved(self, x: Tensor) -> Tensor:
        """Return Wᵀ(X ⊙ M), (N,C',H',W'), for features X ⊙ M, (N,C,H,W)."""
        if self.fixed is not None:
            return self.fixed(x)
        assert not isinstance(self.padding, str)  # nn.Conv2d allows strings
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation)

    def fix(self, scale: Tensor) -> None:
        """Multiply the weight by `scale` (C',) and make it constant, for faster inference with `forward_masked`.

        The layer can no longer be trained or saved.
        """
        weight = self.weight.detach() * scale.view(-1, 1, 1, 1)
        assert not isinstance(self.padding, str)  # nn.Conv2d allows strings
        self.fixed = FixedConvolution(weight, self.stride, self.padding, self.dilation)
        self.register_parameter("weight", None)

    def scaled(self, y: Tensor, ratio_and_mask: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Apply Eq. 1 and 2 to y = Wᵀ(X ⊙ M), which is overwritten, and the result of `ratio`."""
        ratio, updated_mask = ratio_and_mask
        y = y.mul_(ratio)  # computed in float32 if y is a half type: the ratio may exceed float16
        if self.bias is not None:
            y = y.addcmul_(self.bias.view(1, -1, 1, 1).to(y), updated_mask.to(y))
        return y, updated_mask

    @torch.no_grad()
    def ratio(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sum(1)/sum(M) or 0, m'), both (N,1,H',W'). valid: see forward_masked.

        sum(M) is the same for all features, so a one-channel window of ones is enough. Autocast is off: float16 and
        bfloat16 cannot count to 9·1024.
        """
        with torch.autocast(valid.device.type, enabled=False):
            window = valid.new_ones(1, 1, *self.kernel_size)
            sum_m = F.conv2d(valid, window, None, self.stride, self.padding, self.dilation)
            sum_1 = self.in_channels * window.numel()
            updated_mask = (sum_m > 0).to(valid.dtype)
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


class UpPartialConv2d(PartialConv2d):
    """The decoder's layer: 3×3 partial convolution of ×2 upsampled features and skip features of that size.

    Parameters, arguments and results match PartialConv2d. `forward_upsampled` takes features before upsampling.
    base_channels: how many of the skip features' channels, the last ones, are valid everywhere.
    """

    def __init__(
        self, up_channels: int, skip_channels: int, out_channels: int, bias: bool = True, base_channels: int = 0
    ) -> None:
        super().__init__(up_channels + skip_channels, out_channels, 3, padding=1, bias=bias)
        self.part_channels = [up_channels, skip_channels]
        self.base_channels = base_channels
        self.fixed_up: FixedUpConvolution | None = None

    def forward_upsampled(self, x: Tensor, mask: Tensor, skip: Tensor, skip_mask: Tensor) -> tuple[Tensor, Tensor]:
        """forward([upsample(x), skip], [upsample(mask), skip_mask]) for features that are 0 where their masks are.

        x: (N,C,H,W), mask: (N,1,H,W), at least float32. skip, skip_mask: the same at 2H×2W.
        sum(M) is a one-channel box filter.
        """
        return self.scaled(self.convolved_upsampled(x, skip), self.ratio(self.valid_upsampled(mask, skip_mask)))

    def valid_upsampled(self, mask: Tensor, skip_mask: Tensor) -> Tensor:
        """Return the number of valid channels at each pixel, (N,1,2H,2W). Arguments: see forward_upsampled."""
        up_channels, skip_channels = self.part_channels
        valid = upsample(mask) * up_channels + skip_mask * (skip_channels - self.base_channels)
        return valid + self.base_channels if self.base_channels else valid

    def convolved_upsampled(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return Wᵀ of the concat, (N,C',2H,2W). Arguments: see forward_upsampled."""
        return conv2d_of_upsampled(x, skip, self.weight) if self.fixed_up is None else self.fixed_up(x, skip)

    def fix(self, scale: Tensor) -> None:
        """Overrides PartialConv2d, only for `forward_upsampled`."""
        weight = self.weight.detach() * scale.view(-1, 1, 1, 1)
        self.fixed_up = FixedUpConvolution(weight, self.part_channels[0])
        self.register_parameter("weight", None)


def counted(mask: Tensor) -> Tensor:
    """Convert a mask to a dtype that can count its pixels: float32, or float64 if it has that."""
    return mask.to(torch.promote_types(mask.dtype, torch.float32))
