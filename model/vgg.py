"""First three blocks of VGG-16: features for the perceptual and style losses."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from utils.checkpoint import read_tensors
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
SHIPPED_WEIGHTS = "weights/vgg16_conv1-3.safetensors"

# Output channels of the convolutions of each block; a 2×2 max pool ends the block.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256))

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VGG16Features(nn.Module):
    """Ψ of Eq. 4 and 5: pool1, pool2, pool3 of VGG-16 for an image in [0,1]. Frozen; normalises its input.

    weights: a safetensors file or torch checkpoint with torchvision's keys (`features.0.weight` …), or `torchvision` to
    download torchvision's weights. A relative path is resolved in the current folder, then in the project's. Raises
    UserError if the weights are missing or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path = SHIPPED_WEIGHTS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block in BLOCKS:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            # Pooling before the block's last ReLU saves three quarters of its work: max and ReLU commute.
            layers.insert(-1, nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)  # same indices as torchvision, so its keys match
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self._load(weights)
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return (N,64,H/2,W/2), (N,128,H/4,W/4), (N,256,H/8,W/8) features of image (N,3,H,W) in [0,1]."""
        x = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        pools = []
        pooled = False
        for layer in self.features:
            x = layer(x)
            if pooled:
                pools.append(x)
            pooled = isinstance(layer, nn.MaxPool2d)
        return pools

    def _load(self, weights: str | Path) -> None:
        state = _download() if str(weights) == "torchvision" else read_tensors(_find(Path(weights)))
        wanted = self.state_dict()
        wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
        if wrong:
            raise UserError(
                f"not VGG-16 weights with torchvision's keys: {weights}: {wrong[0]} is missing or of another shape;"
                f" use {SHIPPED_WEIGHTS} or `torchvision`"
            )
        self.load_state_dict({key: state[key].float() for key in wanted})


def _find(path: Path) -> Path:
    for candidate in (path, PROJECT / path):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"no VGG-16 weights at {path}; the project ships {SHIPPED_WEIGHTS} (`git checkout weights` brings it back),"
        " or set loss.vgg16=torchvision to download torchvision's"
    )


def _download() -> dict[str, Tensor]:
    from torchvision.models import VGG16_Weights

    try:
        return VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, disk full, interrupted download
        raise UserError(
            f"torchvision could not download its VGG-16 weights ({error}); set loss.vgg16={SHIPPED_WEIGHTS},"
            " which needs no download"
        ) from None
