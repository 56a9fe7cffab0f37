"""The layers' convolutions in forms that take less time. Each equals torch's own to rounding.

The layers use four names of this file: `conv2d`, `conv2d_of_upsampled`, and for prediction `FixedConvolution` and
`FixedUpConvolution`. Each says what it equals; without the faster forms behind them the network is right, and slower.

Thresholds were measured on a CPU, forward and backward, for batches of 1 to 8 and 16 to 64 base channels.
`python -m benchmarks.forms` measures what each form gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# torch's own names for oneDNN's packed weights, which torch.compile uses; not all builds have them.
_PACKING = (
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
    "_convolution_pointwise",
    "_convolution_transpose_pointwise",
)


def conv2d(
    x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...] = (1, 1)
) -> Tensor:
    """F.conv2d(x, weight, None, stride, padding, dilation); by patches where the map is small and the weight large."""
    if patches_are_faster(x, weight, stride, padding, dilation):
        return conv2d_by_patches(x, weight, stride, padding)
    return F.conv2d(x, weight, None, stride, padding, dilation)


def conv2d_of_upsampled(x: Tensor, skip: Tensor, weight: Tensor) -> Tensor:
    """conv2d(concat(upsample(x), skip), weight, padding=1), in the form that is the fastest for this size.

    x: (N,C,H,W), skip: (N,S,2H,2W), weight: (C',C+S,3,3). Returns (N,C',2H,2W).
    Wᵀ is linear: Wᵀ[up(X), S] = W_upᵀ up(X) + W_skipᵀ S. So the concat need not be made, and the first term has two
    faster forms.
    """
    channels = x.shape[1]
    form = fastest_form(x, weight.shape[0])
    if form == "plain":
        return conv2d(torch.cat([upsample(x), skip], 1), weight, (1, 1), (1, 1))
    if form == "nine products":
        skip_weight, *factors = FactorsAndRest.apply(weight, channels)
        y = conv2d_by_nine_products(x, factors)
    else:
        up_weight, skip_weight = weight.split([channels, skip.shape[1]], 1)
        y = F.conv_transpose2d(x, upsampling_kernel(up_weight), stride=2, padding=1)
    return y.add_(F.conv2d(skip, skip_weight, padding=1))


def patches_are_faster(
    x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> bool:
    """Whether to take conv2d_by_patches, which has no dilation and would copy a weight that is not channels-last."""
    if not _measured(x) or weight.numel() < 2_000_000 or any(step > 1 for step in dilation):
        return False
    if not weight.is_contiguous(memory_format=torch.channels_last):
        return False
    height, width = size_after(x, weight, stride, padding)
    return 8 <= x.shape[0] * height * width <= 64


def conv2d_by_patches(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """conv2d as the product of the weight, (C', 9·C) for 3×3, and the map's patches, (P, 9·C) for P pixels.

    With few pixels nearly all time goes into reading the weight. oneDNN reorders a weight into a layout of its own at
    every call, and its gradient back, but takes a channels-last image as it is. So the two swap roles: the weight is
    an image of C' pixels and 9·C channels, the patches are the weight of a 1×1 convolution with P output channels.
    """
    height, width = size_after(x, weight, stride, padding)
    patches: Tensor = Patches.apply(x, weight.shape[2:], stride, padding)  # (N·H'·W', 9·C)
    picture = weight.permute(0, 2, 3, 1).flatten(1)[None, :, None]  # (1, C', 1, 9·C), no copy if channels-last
    y = F.conv2d(picture.permute(0, 3, 1, 2), patches[:, :, None, None])  # (1, N·H'·W', C', 1)
    y = y.view(x.shape[0], height, width, weight.shape[0])
    return y.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class Patches(torch.autograd.Function):
    """What each pixel of a convolution's result sees of x, (N,C,H,W): (N·H'·W', kh·kw·C).

    An autograd Function: the backward of torch's unfold takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: Any) -> Tensor:
        ctx.shape, ctx.kernel, ctx.stride, ctx.padding = x.shape, kernel, stride, padding
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
        windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # (N,H',W',C,kh,kw)
        ctx.size = windows.shape[1:3]
        return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)

    @staticmethod
    def backward(ctx: Any, patches: Tensor) -> tuple[Tensor, None, None, None]:
        n, c, h, w = ctx.shape
        (height, width), (down, across), (top, left) = ctx.size, ctx.stride, ctx.padding
        windows = patches.view(n, height, width, *ctx.kernel, c)
        padded = patches.new_zeros(n, h + 2 * top, w + 2 * left, c)
        for i in range(ctx.kernel[0]):
            for j in range(ctx.kernel[1]):
                rows = slice(i, i + down * (height - 1) + 1, down)
                columns = slice(j, j + across * (width - 1) + 1, across)
                padded[:, rows, columns] += windows[:, :, :, i, j]
        return padded[:, top : top + h, left : left + w].permute(0, 3, 1, 2), None, None, None


def size_after(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a convolution's result."""
    height, width = ((x.shape[i + 2] + 2 * padding[i] - weight.shape[i + 2]) // stride[i] + 1 for i in (0, 1))
    return height, width


def fastest_form(x: Tensor, out_channels: int) -> str:
    """The form for the upsampled x, (N,C,H,W): "nine products", "transposed" or "plain".

    The nine products need sums before and after, which pay with many channels. The transposed convolution has a larger
    weight. With few pixels it costs more to make these weights than they save.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if _measured(x) and min(x.shape[1], out_channels) >= 256:
        return "nine products" if pixels >= 64 else "plain"
    return "transposed" if pixels >= 256 else "plain"


def upsample(x: Tensor) -> Tensor:
    """Nearest-neighbour ×2, of features and masks."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def upsampling_kernel(weight: Tensor) -> Tensor:
    """K (C,C',4,4) with conv_transpose2d(x, K, stride=2, padding=1) = conv2d(upsample(x), weight, padding=1).

    weight: (C',C,3,3). Of the 36 products that 2×2 pixels of the result cost for each pair of channels, 16 are left.

    In one dimension, with the weight (a, b, c): a pixel of upsample(x) adds c times itself to the pixel before it, b
    times to its own place, a times to the one behind. A pixel of x is two of those side by side, so it adds
    (c, b+c, a+b, a) times itself to four pixels; and the next pixel of x does so two pixels further. That is a
    transposed convolution of stride 2. In two dimensions it is the same along both.
    """
    taps = weight.permute(1, 2, 3, 0).contiguous()  # (C,3,3,C')
    for axis in (1, 2):
        a, b, c = taps.unbind(axis)
        taps = torch.stack([c, b + c, a + b, a], axis)
    return taps.permute(0, 3, 1, 2)  # in memory it is channels-last, as the convolution wants it


def conv2d_by_nine_products(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """conv2d(upsample(x), weight, padding=1) by 9 products, not 36, for 2×2 pixels and a pair of channels.

    x: (N,C,H,W). factors: nine, (C',C,1,1) each, of FactorsAndRest. Returns (N,C',2H,2W).

    In one dimension, with the weight (a, b, c): the pixel x of the small map, between `before` and `behind`, becomes
    two, of which the convolution makes
        a·before + (b+c)·x = (a+b+c)·x − a·(x − before)
        (a+b)·x + c·behind = (a+b+c)·x + c·(behind − x)
    Three products, of x and of its differences from its neighbours. In two dimensions it is the same along both: nine
    maps, each with a matrix (C',C) of its own, and sums of the nine results.
    """
    maps = [m for row in _three(x, 2) for m in _three(row, 3)]
    products = [F.conv2d(m, factor) for m, factor in zip(maps, factors, strict=True)]
    y: Tensor = Sums.apply(*products)
    return y


def _three(x: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """x − before, x, behind − x."""
    first, last = Differences.apply(x, axis)
    return first, x, last


class Differences(torch.autograd.Function):
    """x − before and behind − x along an axis of x; outside of it are zeros.

    An autograd Function: torch would pad, and its backward would fill with zeros once for each difference.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        ctx.axis = axis
        rest = x.shape[axis] - 1
        first, last = x.clone(), x.neg()
        first.narrow(axis, 1, rest).sub_(x.narrow(axis, 0, rest))
        last.narrow(axis, 0, rest).add_(x.narrow(axis, 1, rest))
        return first, last

    @staticmethod
    def backward(ctx: Any, first: Tensor, last: Tensor) -> tuple[Tensor, None]:
        gradient = first - last
        rest = gradient.shape[ctx.axis] - 1
        gradient.narrow(ctx.axis, 0, rest).sub_(first.narrow(ctx.axis, 1, rest))
        gradient.narrow(ctx.axis, 1, rest).add_(last.narrow(ctx.axis, 0, rest))
        return gradient, None


class Sums(torch.autograd.Function):
    """The map (N,C',2H,2W) that the nine products, (N,C',H,W) each, add up to: along both axes `middle − before` and
    `middle + behind`. An autograd Function: torch would pass over each product several times more."""

    @staticmethod
    def forward(ctx: Any, *products: Tensor) -> Tensor:
        n, c, h, w = products[0].shape
        p = [product.permute(0, 2, 3, 1) for product in products]
        y = torch.empty((n, c, 2 * h, 2 * w), dtype=p[0].dtype, device=p[0].device, memory_format=torch.channels_last)
        pixels = y.permute(0, 2, 3, 1).view(n, h, 2, w, 2, c)
        rows = [p[3 + j] - p[j] for j in range(3)], [p[3 + j] + p[6 + j] for j in range(3)]
        for row, (before, middle, behind) in enumerate(rows):
            torch.sub(middle, before, out=pixels[:, :, row, :, 0])
            torch.add(middle, behind, out=pixels[:, :, row, :, 1])
        return y

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor, ...]:
        n, c, h, w = y.shape
        pixels = y.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
        left, right = pixels[:, :, :, :, 0], pixels[:, :, :, :, 1]  # (N,H,2,W,C') each
        columns = [-left, left + right, right]
        before = [-column[:, :, 0] for column in columns]
        middle = [column[:, :, 0] + column[:, :, 1] for column in columns]
        behind = [column[:, :, 1].contiguous() for column in columns]
        return tuple(gradient.permute(0, 3, 1, 2) for gradient in (*before, *middle, *behind))


class FactorsAndRest(torch.autograd.Function):
    """The weight (C',C+S,3,3) as its parts for the other S channels and for the first C: (C',S,3,3), and the nine
    factors (C',C,1,1) of conv2d_by_nine_products, row by row.

    An autograd Function: the deep layers' weights are larger than their features, and this passes over them only once
    or twice each way.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, channels: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weight)
        ctx.channels = channels
        factors = weight[:, :channels].permute(2, 3, 0, 1).contiguous()  # (3,3,C',C)
        for taps in (factors, factors.transpose(0, 1)):
            taps[1].add_(taps[0]).add_(taps[2])  # b becomes a+b+c
        rest = weight[:, channels:].contiguous(memory_format=torch.channels_last)
        return rest, *factors.flatten(0, 1)[..., None, None].unbind()

    @staticmethod
    def backward(ctx: Any, rest: Tensor, *factors: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        gradient = torch.empty_like(weight)
        up = gradient[:, : ctx.channels].permute(2, 3, 0, 1)  # (3,3,C',C)
        for number, factor in enumerate(factors):
            up[number // 3, number % 3] = factor[..., 0, 0]
        for taps in (up, up.transpose(0, 1)):
            taps[0] += taps[1]  # what changes a+b+c changes a and c as it does b
            taps[2] += taps[1]
        gradient[:, ctx.channels :] = rest
        return gradient, None


def _measured(x: Tensor) -> bool:
    """Whether x is on a CPU and of a dtype for which the forms were measured."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


# --- for prediction: weights that stay as they are -------------------------------------------------------------------


class FixedConvolution(nn.Module):
    """conv2d(x, weight) without bias, or conv_transpose2d, with a constant weight and no gradient.

    On a CPU torch reorders a weight into oneDNN's layout at every call, which for a small map takes longer than the
    convolution. Here it is reordered once, at the first call.
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
        between = ([0, 0],) if self.transposed else ()  # no padding of the output
        if self._packed is None:
            pack = (
                onednn._reorder_convolution_transpose_weight if self.transposed else onednn._reorder_convolution_weight
            )
            self._packed = pack(self.weight, self.padding, *between, self.stride, self.dilation, 1)
        run = onednn._convolution_transpose_pointwise if self.transposed else onednn._convolution_pointwise
        # "none": nothing is done to the result; 1: groups.
        return run(x, self._packed, None, self.padding, *between, self.stride, self.dilation, 1, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # it can't be copied; the copy makes its own

    def _apply(self, *arguments: Any, **options: Any) -> FixedConvolution:
        self._packed = None  # of the weight as it was
        return super()._apply(*arguments, **options)


class FixedUpConvolution(nn.Module):
    """conv2d_of_upsampled(x, skip, weight) of a constant weight (C',C+S,3,3), where x has C channels."""

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
        and not (torch.is_grad_enabled() and x.requires_grad)  # the packed forms know of no gradient
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and all(hasattr(onednn, name) for name in _PACKING)
    )
