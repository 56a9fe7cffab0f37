"""The composite: valid pixels from the input, hole pixels from the network."""

from __future__ import annotations

import torch
from torch import Tensor


def composite(image: Tensor, output: Tensor, mask: Tensor) -> Tensor:
    """Return I_comp = M ⊙ I_gt + (1 − M) ⊙ I_out by selection, not products: valid pixels are bit-identical.

    image, output: (N,3,H,W); mask: (N,1,H,W), 1 = valid, 0 = hole. Values that are not selected are ignored.
    """
    return torch.where(mask > 0, image, output)
