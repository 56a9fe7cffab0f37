"""The training loss of the paper, Eq. 3 to 7, and an additional squared hole term."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.composite import composite
from utils.config import LossWeights

TERMS = tuple(LossWeights.model_fields)


class InpaintingLoss(nn.Module):
    """L_total of Eq. 7, the weighted sum of its terms. Terms of weight 0 are left out.

    features: Ψ, a callable from images (N,3,H,W) in [0,1] to a sequence of feature maps, independent for each image.
    May be None if perceptual and style have weight 0.
    weights: by name in TERMS; missing ones are 0. Raises ValueError for any other name, or if features are needed and
    None.
    """

    def __init__(self, features: Callable[[Tensor], Sequence[Tensor]] | None, weights: Mapping[str, float]) -> None:
        super().__init__()
        if unknown := set(weights) - set(TERMS):
            raise ValueError(f"weights may name {', '.join(TERMS)}, got {', '.join(map(str, unknown))}")
        self.features = features
        self.weights = {name: weights[name] for name in TERMS if weights.get(name)}
        if features is None and needs_features(weights):
            raise ValueError("features must be given where perceptual or style has a weight")

    def forward(self, output: Tensor, image: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (L_total, unweighted terms), all scalars. Terms of weight 0 are left out.

        output: I_out (N,3,H,W). image: I_gt (N,3,H,W) in [0,1], ground truth. mask: M (N,1,H,W), 1 = valid, 0 = hole.
        """
        comp = composite(image, output, mask)
        difference = (output - image).abs()
        terms = {
            "valid": (mask * difference).mean(),  # Eq. 3: over all N = C·H·W, not only the valid part
            "hole": ((1 - mask) * difference).mean(),
        }
        if "hole_l2" in self.weights:
            terms["hole_l2"] = ((1 - mask) * (output - image).square()).mean()
        if self.features is not None and needs_features(self.weights):
            with torch.no_grad():
                psi_gt = self.features(image)
            psi = self.features(torch.cat([output, comp]))  # one pass for both inputs with a gradient: (2N,…)
            terms["perceptual"] = perceptual(psi, psi_gt)
            terms["style"] = style(psi, psi_gt)
        if "tv" in self.weights:
            terms["tv"] = total_variation(comp, mask)
        terms = {name: terms[name] for name in self.weights}
        total = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()  # Eq. 7
        return total, terms


def needs_features(weights: Mapping[str, float]) -> bool:
    """Return whether the loss with these weights uses Ψ."""
    return bool(weights.get("perceptual") or weights.get("style"))


def perceptual(psi: Sequence[Tensor], psi_gt: Sequence[Tensor]) -> Tensor:
    """Eq. 4: Σ_p ‖Ψ_p(I_out) − Ψ_p(I_gt)‖₁ / N_Ψp plus the same for I_comp.

    psi: Ψ of I_out and I_comp, concatenated to (2N,C,H,W) each; with Ψ of one of them only, returns its half of Eq. 4.
    psi_gt: Ψ of I_gt, (N,C,H,W) each.
    """
    return torch.stack([_sum_of_means(p, gt) for p, gt in zip(psi, psi_gt, strict=True)]).sum()


def style(psi: Sequence[Tensor], psi_gt: Sequence[Tensor]) -> Tensor:
    """Eq. 5 + Eq. 6: Σ_p 1/C_p² ‖K_p (ΨᵀΨ − ΨᵀΨ(I_gt))‖₁ of I_out and of I_comp, averaged over the batch.

    Arguments: see perceptual.
    """
    grams = zip(map(gram_matrix, psi), map(gram_matrix, psi_gt), strict=True)
    return torch.stack([_sum_of_means(gram, gram_gt) for gram, gram_gt in grams]).sum()


def _sum_of_means(batches: Tensor, truth: Tensor) -> Tensor:
    """Return the sum, over concatenated batches, of each batch's mean |difference| from the truth."""
    count = len(batches) // len(truth)
    difference = (batches.unflatten(0, (count, -1)) - truth).abs()
    return count * difference.mean(dtype=torch.promote_types(difference.dtype, torch.float32))  # no half-precision sum


def gram_matrix(features: Tensor) -> Tensor:
    """Return K_p ΨᵀΨ of Eq. 5: (N,C,C) for features (N,C,H,W), K_p = 1/(C·H·W). At least float32.

    Autocast is off: the sums would overflow a half type.
    """
    _n, c, h, w = features.shape
    with torch.autocast(features.device.type, enabled=False):
        psi = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)  # (N,C,H·W)
        return psi @ psi.transpose(1, 2) / (c * h * w)


def total_variation(image: Tensor, mask: Tensor) -> Tensor:
    """L_tv: mean |difference| of neighbours that are both in R, the hole dilated by one pixel.

    image: I_comp (N,C,H,W). mask: (N,1,H,W), 0 = hole. The mean is over all elements of the image, not only R.
    """
    region = F.max_pool2d(1 - mask, 3, stride=1, padding=1)  # R, (N,1,H,W)
    across = (image[..., :, 1:] - image[..., :, :-1]).abs() * (region[..., :, 1:] * region[..., :, :-1])
    down = (image[..., 1:, :] - image[..., :-1, :]).abs() * (region[..., 1:, :] * region[..., :-1, :])
    return (across.sum() + down.sum()) / image.numel()
