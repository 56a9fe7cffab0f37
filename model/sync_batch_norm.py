"""Batch norm with statistics over the batches of all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.network import PConvUNet
from utils.processes import all_reduce_mean, rank_and_world_size


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with training statistics over the inputs of all ranks.

    Parameters, buffers, keys and evaluation mode are the same. Unlike torch's SyncBatchNorm it supports CPU tensors.
    All ranks must call it with inputs of the same shape. The result has the input's dtype; statistics use at least
    float32, as half types cannot sum so many values.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        normal, mean, variance = _Normalise.apply(values, self.eps)
        if self.track_running_stats:
            self._track(mean, variance, x.numel() // x.shape[1] * rank_and_world_size()[1])
        return torch.addcmul(self.bias.view(1, -1, 1, 1), normal, self.weight.view(1, -1, 1, 1)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics like nn.BatchNorm2d, with the unbiased variance of `count` values."""
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)


class _Normalise(torch.autograd.Function):
    """Return (x − mean) / sqrt(variance + eps), mean and variance over all ranks. x: (N,C,H,W), statistics: (C,).

    Gradients pass through mean and variance, too, and include the losses of all ranks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = all_reduce_mean(x.mean((0, 2, 3)))
        centred = x - mean.view(1, -1, 1, 1)
        # Mean of centred squares: E[x²] − E[x]² would lose precision.
        variance = all_reduce_mean(centred.square().mean((0, 2, 3)))
        scale = (variance + eps).rsqrt().view(1, -1, 1, 1)
        normal = centred.mul_(scale)
        ctx.save_for_backward(normal, scale)
        ctx.mark_non_differentiable(mean, variance)
        return normal, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        normal, scale = ctx.saved_tensors
        grad = grads[0]
        both = torch.stack([grad.mean((0, 2, 3)), (grad * normal).mean((0, 2, 3))])
        of_mean, of_variance = all_reduce_mean(both).view(2, 1, -1, 1, 1)
        return (grad - of_mean - normal * of_variance) * scale, None


def synchronise_batch_norm(net: PConvUNet, device: torch.device) -> PConvUNet:
    """Return the network with batch norm statistics over all ranks: torch's module on CUDA, ours on a CPU."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # keeps its tensors, mode and name
    return net
