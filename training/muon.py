"""Muon for convolutions: orthogonalised momentum for their kernels, AdamW for all other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.AdamW):
    """torch.optim.Muon (https://kellerjordan.github.io/posts/muon) for a network of convolutions.

    torch's Muon takes matrices: a kernel (C',C,h,w) is one of C' rows. Updates have the RMS of AdamW's, so one learning
    rate suits both. As Muon's authors advise, AdamW updates the weights that are no matrices, the layers that read or
    predict an image, and so all kernels of three or fewer channels.

    All weights are in one parameter group. A kernel's state is `momentum_buffer`, in its shape; others have AdamW's.
    Several ranks compute the same update from the same gradients.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(weights, lr, betas=(momentum, 0.999), weight_decay=weight_decay)
        self.kernels = [weight for weight in self.param_groups[0]["params"] if is_hidden_kernel(weight)]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Overrides AdamW."""
        assert closure is None
        group = self.param_groups[0]
        kernels = [kernel for kernel in self.kernels if kernel.grad is not None]
        matrices = [nn.Parameter(_in_memory_order(kernel, kernel).view(len(kernel), -1)) for kernel in kernels]
        options = {"weight_decay": group["weight_decay"], "momentum": group["betas"][0]}
        muon = torch.optim.Muon(matrices, float(group["lr"]), adjust_lr_fn="match_rms_adamw", **options)
        for kernel, matrix in zip(kernels, matrices, strict=True):
            state = self.state[kernel]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(kernel, requires_grad=False)
            # The matrices share the memory of kernel and buffer.
            muon.state[matrix]["momentum_buffer"] = _in_memory_order(state["momentum_buffer"], kernel).view_as(matrix)
            matrix.grad = _in_memory_order(kernel.grad, kernel).reshape_as(matrix)
            kernel.grad = None  # AdamW skips weights without a gradient
        muon.step()
        super().step()


def is_hidden_kernel(weight: Tensor) -> bool:
    """Return whether Muon updates this weight: a kernel (C',C,h,w) between layers of features."""
    return weight.ndim == 4 and min(weight.shape[:2]) > 3


def _in_memory_order(tensor: Tensor, kernel: Tensor) -> Tensor:
    """Permute the axes of a tensor (C',C,h,w) into the order in which `kernel` lies in memory."""
    channels_last = kernel.is_contiguous(memory_format=torch.channels_last)
    return tensor.detach().permute(0, 2, 3, 1) if channels_last else tensor.detach()
