"""The composite: what is known from the input, the rest from the network."""

from __future__ import annotations

import torch
from torch import Tensor


def composite(image: Tensor, output: Tensor, mask: Tensor) -> Tensor:
    """I_comp = M ⊙ I_gt + (1 − M) ⊙ I_out, by choice instead of products: valid pixels stay bit for bit.

    image, output: (N,3,H,W); mask: (N,1,H,W), 1 = valid, 0 = hole. What either holds in the other's part never matters.
    """
    return torch.where(mask > 0, image, output)
