"""A convolution whose weight stays as it is: for prediction."""

from __future__ import annotations

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


class FixedConvolution(nn.Module):
    """conv2d(x, weight) without bias, or conv_transpose2d: with arguments as there, and no gradient.

    On a CPU oneDNN wants weights in a layout of its own, and torch brings them into it at every call: for a small map
    that takes longer than the convolution. Here it is done once, at the first call.
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
        return {**self.__dict__, "_packed": None}  # it can't be copied, but made again

    def _apply(self, *arguments: Any, **options: Any) -> FixedConvolution:
        self._packed = None  # of the weight as it was
        return super()._apply(*arguments, **options)


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
