"""Muon: orthogonalised momentum for the kernels of convolutions, AdamW for all other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# The quintic polynomial of Muon's Newton-Schulz iteration, and how often it is applied.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Muon (https://kellerjordan.github.io/posts/muon) for a network of convolutions.

    A kernel (C',C,h,w) is updated as a matrix (C',C·h·w), with Nesterov momentum. Its update is scaled to the RMS of
    AdamW's (arXiv 2502.16982), so that one learning rate suits both. AdamW updates weights that are no matrices and, as
    Muon's author advises, the layers that read or predict an image.

    `torch.optim.Muon` takes matrices only, and iterates on their large side.
    All weights are in one parameter group. A kernel's state is `momentum_buffer`; other weights have AdamW's.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(weights, lr, betas=(momentum, 0.999), weight_decay=weight_decay)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Overrides AdamW, which expects its own state for every weight."""
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Overrides AdamW."""
        assert closure is None
        group = self.param_groups[0]
        kernels = [weight for weight in group["params"] if is_hidden_kernel(weight) and weight.grad is not None]
        gradients = [kernel.grad for kernel in kernels]
        for kernel, gradient in zip(kernels, gradients, strict=True):
            self._update(kernel, gradient, group)
            kernel.grad = None  # AdamW skips weights without a gradient
        super().step()
        for kernel, gradient in zip(kernels, gradients, strict=True):
            kernel.grad = gradient

    def _update(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(kernel, requires_grad=False)
        lr, momentum = group["lr"], group["betas"][0]
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = orthogonalised(gradient.lerp(average, momentum).flatten(1))
        kernel.mul_(1 - lr * group["weight_decay"])
        kernel.sub_(lr * 0.2 * max(update.shape) ** 0.5 * update.reshape(kernel.shape))


def is_hidden_kernel(weight: Tensor) -> bool:
    """Return whether Muon updates this weight: a kernel (C',C,h,w) between layers of features."""
    return weight.ndim == 4 and min(weight.shape[:2]) > 3


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix of the same singular vectors whose singular values are about 1, between 0.7 and 1.2.

    Newton-Schulz: X ← aX + b(XXᵀ)X + c(XXᵀ)²X. Each X is QX₀ with a polynomial Q of X₀X₀ᵀ, so the iteration needs only
    products of Q and X₀X₀ᵀ. For a kernel they are much smaller than X₀.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    first = matrix / matrix.norm().clamp(min=1e-7)  # singular values at most 1
    gram = first @ first.T
    a, b, c = COEFFICIENTS
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    q = identity
    for _ in range(ITERATIONS):
        square = q @ gram @ q  # XXᵀ: q is symmetric and commutes with gram
        q = (a * identity + b * square + c * square @ square) @ q
    return q @ first
