"""Which device to compute on."""

from __future__ import annotations

import torch

from utils.errors import UserError


def pick_device(name: str) -> torch.device:
    """auto (CUDA where there is one, else CPU), cpu, cuda or cuda:N. UserError where there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"no device {name}: torch finds {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device
