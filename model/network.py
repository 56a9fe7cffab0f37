"""The U-Net of partial convolutions from the table in the paper's appendix."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # base class of BatchNorm2d and SyncBatchNorm
from torch.utils.checkpoint import checkpoint

from model.base import PLATE_LEVELS, contrast, thin_plate
from model.layer import PartialConv2d, UpPartialConv2d, counted

# The encoder's first kernels; every other kernel of the network is 3×3.
ENCODER_KERNELS = (7, 5, 5)
LEAK = 0.2
# What the U-Net's output is added to: nothing, as in the paper, or the fill of model/base.py. The decoder may read it.
BASES = ("none", "push_pull", "thin_plate")
# What may be added to thin_plate, in standard deviations of the image in squares of CONTRAST_SIZE px. It keeps plain
# areas plain. docs/ablations.md shows what it costs.
RESIDUAL_LIMIT, CONTRAST_SIZE = 1.5, 16


def encoder_channels(depth: int, base_channels: int) -> list[int]:
    """Return the channels of PConv1, PConv2, …: doubled at every level, up to 8 · base_channels."""
    return [base_channels * min(2**level, 8) for level in range(depth)]


class Crop(NamedTuple):
    """Rows and columns that a decoder block takes from the features below it and from the skip features."""

    features: tuple[slice, slice]
    skip: tuple[slice, slice]


def _cut(x: Tensor, crop: tuple[slice, slice]) -> Tensor:
    """Return a copy of a part, so that the full tensor can be freed."""
    part = x[..., crop[0], crop[1]]
    return part if part.shape == x.shape else part.clone(memory_format=torch.preserve_format)


class Block(nn.Module):
    """Partial convolution, batch norm, nonlinearity: one row of the paper's table.

    Inputs and outputs are X ⊙ M of Eq. 1, 0 where their mask is 0. So features are masked once, though two layers read
    them.
    """

    def __init__(self, conv: PartialConv2d, batch_norm: bool, slope: float | None) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels) if batch_norm else None
        self.slope = slope  # of LeakyReLU; 0: ReLU, None: no nonlinearity
        # He initialisation. A slope of 1 gives the gain for a layer without nonlinearity.
        nn.init.kaiming_normal_(conv.weight, a=1 if slope is None else slope)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)

    def _finished(self, y: Tensor, ratio: Tensor, mask: Tensor) -> Tensor:
        """Apply Eq. 1's scale, batch norm and nonlinearity. y: Wᵀ(X ⊙ M). ratio, mask: sum(1)/sum(M), m' of Eq. 2."""
        y, _ = self.conv.scaled(y, (ratio, mask))
        if self.bn is not None:
            y = self.bn(y).mul_(mask)  # without batch norm y is already 0 there
        if self.slope is not None:  # both map 0 to 0
            y = F.leaky_relu_(y, self.slope) if self.slope > 0 else F.relu_(y)
        return y


class EncoderBlock(Block):
    """Encoder block: halves height and width."""

    def forward(self, ratio: Tensor, mask: Tensor, x: Tensor) -> Tensor:
        """x: (N,C,H,W). ratio, mask: sum(1)/sum(M) and m' of the convolution, (N,1,H/2,W/2)."""
        return self._finished(self.conv.convolved(x), ratio, mask)


class DecoderBlock(Block):
    """Decoder block: doubles height and width, and joins the encoder's features of that size."""

    conv: UpPartialConv2d

    def forward(self, ratio: Tensor, mask: Tensor, x: Tensor, skip: Tensor) -> Tensor:
        """x: (N,C,H,W), skip: (N,C',2H,2W). ratio, mask: sum(1)/sum(M) and m' of the convolution, (N,1,2H,2W)."""
        return self._finished(self.conv.convolved_upsampled(x, skip), ratio, mask)


class PConvUNet(nn.Module):
    """The network of the paper: `depth` 8 at 512×512, 7 at 256×256.

    Encoder levels halve height and width. Decoder levels double them (nearest neighbour) and join features and masks
    with those of the encoder at that size; the last level joins the image itself.

    base: `none` is the paper's network, whose U-Net predicts the image. With `push_pull` the U-Net predicts a residual
    to `push_pull(image, mask)`. Its last layer starts at zero, so the untrained network returns the base. With
    `thin_plate` the base is `thin_plate(image, mask)`, and each decoder level also reads it, reduced to its size: three
    more channels, all valid. Its residual is limited to RESIDUAL_LIMIT times the contrast of the image around.

    Raises ValueError unless depth and base_channels are at least 1 and base is one of BASES.
    """

    def __init__(self, depth: int = 7, base_channels: int = 64, base: str = "none") -> None:
        super().__init__()
        if depth < 1 or base_channels < 1:
            raise ValueError(f"depth and base_channels must be at least 1, got {depth} and {base_channels}")
        if base not in BASES:
            raise ValueError(f"base must be one of {', '.join(BASES)}, got {base!r}")
        self.depth = depth
        self.base_channels = base_channels
        self.base = base
        self.decoder_reads_base = base == "thin_plate"
        self.plate_levels = min(PLATE_LEVELS, depth) if base == "thin_plate" else 0  # relaxed levels of the base
        of_base = 3 if self.decoder_reads_base else 0  # channels
        widths = [3, *encoder_channels(depth, base_channels)]  # channels of the image, PConv1, PConv2, …
        kernels = [*ENCODER_KERNELS, *[3] * depth][:depth]
        # The first encoder level and the last decoder level have a bias instead of batch norm.
        self.encoder = nn.ModuleList(
            EncoderBlock(
                PartialConv2d(widths[i], widths[i + 1], kernels[i], stride=2, padding=kernels[i] // 2, bias=i == 0),
                batch_norm=i > 0,
                slope=0.0,
            )
            for i in range(depth)
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(
                UpPartialConv2d(widths[i + 1], widths[i] + of_base, widths[i], bias=i == 0, base_channels=of_base),
                batch_norm=i > 0,
                slope=LEAK if i > 0 else None,
            )
            for i in reversed(range(depth))
        )
        # How far from the rim of a hole the network was trained to fill, px: the 99 % quantile of the radii of the
        # largest circles inscribed in the holes of its training masks. 0 if unknown.
        self.hole_radius: Tensor
        self.register_buffer("hole_radius", torch.zeros(()))
        self.checkpoint_activations = False
        self._encoder_batch_norm_frozen = False
        if base != "none":
            last = self.decoder[-1]
            assert isinstance(last, DecoderBlock)
            # The buffer only marks in the state_dict that the weights need the base.
            self.register_buffer(f"{base}_base", torch.ones(()))
            nn.init.zeros_(last.conv.weight)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Predict the full image, (N,3,H,W), not clamped to [0,1].

        image: (N,3,H,W) in [0,1]; values in holes are ignored. mask: (N,1,H,W), 1 = valid, 0 = hole.
        Raises ValueError unless height and width are multiples of 2**depth and the shapes fit.
        """
        self._check(image, mask)
        if self.base == "none":
            return self.unet(image, mask)
        base = thin_plate(image, mask, self.plate_levels)  # without such levels it is push_pull
        return base + self.unet(image, mask, base)

    def unet(
        self, image: Tensor, mask: Tensor, base: Tensor | None = None, crops: Sequence[Crop] | None = None
    ) -> Tensor:
        """Return the output of the U-Net, to which the base is still to be added: (N,3,H,W).

        image, mask: as in forward, unchecked. base: (N,3,H,W), needed if the decoder reads it.
        crops: one per level, the rows and columns that the decoder keeps at that level, so that it computes only part
        of the image.
        """
        ratios_and_masks = iter(self.ratios_and_masks(counted(mask), crops))
        x = image.masked_fill(mask == 0, 0)  # not a product: 0 · NaN is NaN
        skips = []
        for level, block in enumerate(self.encoder):
            skip = x
            if base is not None and self.decoder_reads_base:
                base = base.to(x) if level == 0 else F.avg_pool2d(base, 2)
                skip = torch.cat([x, base], 1)
            skips.append(skip if crops is None else _cut(skip, crops[level].skip))
            x = self._run(block, *next(ratios_and_masks), x)
        for level, block in zip(reversed(range(self.depth)), self.decoder, strict=True):
            x = x if crops is None else _cut(x, crops[level].features)
            x = self._run(block, *next(ratios_and_masks), x, skips.pop())
        if self.decoder_reads_base:
            limit = RESIDUAL_LIMIT * contrast(image, mask, min(CONTRAST_SIZE, 2**self.depth))
            limit = (limit if crops is None else _cut(limit, crops[0].skip)).to(x)
            x = x.clamp(-limit, limit)
        return x

    @torch.no_grad()
    def ratios_and_masks(self, mask: Tensor, crops: Sequence[Crop] | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return (sum(1)/sum(M), m') of every layer, encoder and decoder in order. They depend only on the mask.

        mask: (N,1,H,W), at least float32. crops: see unet.
        """
        found: list[tuple[Tensor, Tensor]] = []
        skips = []
        encoder: list[Any] = [block.conv for block in self.encoder]
        decoder: list[Any] = [block.conv for block in self.decoder]
        for level, conv in enumerate(encoder):
            skips.append(mask if crops is None else _cut(mask, crops[level].skip))
            found.append(conv.ratio(mask * conv.in_channels))
            mask = found[-1][1]
        for level, conv in zip(reversed(range(self.depth)), decoder, strict=True):
            mask = mask if crops is None else _cut(mask, crops[level].features)
            found.append(conv.ratio(conv.valid_upsampled(mask, skips.pop())))
            mask = found[-1][1]
        return found

    def _run(self, block: nn.Module, *features: Tensor) -> Tensor:
        """Return block(*features). With checkpoint_activations, the backward pass recomputes its inner features."""
        if not (self.checkpoint_activations and self.training and torch.is_grad_enabled()):
            return block(*features)
        contexts = lambda: (contextlib.nullcontext(), _untracked_batch_norm(block))  # noqa: E731
        return checkpoint(block, *features, use_reentrant=False, context_fn=contexts)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Overrides nn.Module. Files written before `hole_radius` existed lack it; it is then 0, unknown."""
        state_dict.setdefault(prefix + "hole_radius", torch.zeros(()))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def folded(self) -> PConvUNet:
        """Return a faster copy for inference. Outputs agree to rounding. The copy cannot be trained or saved.

        Batch norm with running statistics turns x' into s·x' + t. A partial convolution with weights s·W and bias t
        gives the same where sum(M) > 0; elsewhere both are 0.
        """
        weights = {id(block.conv.weight): block.conv.weight for block in [*self.encoder, *self.decoder]}
        net = copy.deepcopy(self, weights).eval()  # the weights are not copied here, but in fix()
        for block in [*net.encoder, *net.decoder]:
            conv, bn = block.conv, block.bn
            scale = conv.weight.new_ones(conv.out_channels)
            if bn is not None:
                scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
                conv.bias = nn.Parameter(bn.bias - scale * bn.running_mean)
                block.bn = None
            conv.fix(scale)
        return net.requires_grad_(False)

    def encoder_batch_norms(self) -> Iterator[nn.BatchNorm2d]:
        """Return the batch norms that fine-tuning freezes."""
        return (block.bn for block in self.encoder if isinstance(block, Block) and block.bn is not None)

    def freeze_encoder_batch_norm(self, frozen: bool = True) -> PConvUNet:
        """Freeze or unfreeze statistics and weights of the encoder's batch norms (§4.2). train() keeps that state."""
        self._encoder_batch_norm_frozen = frozen
        for bn in self.encoder_batch_norms():
            bn.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> PConvUNet:
        super().train(mode)
        if self._encoder_batch_norm_frozen:
            for bn in self.encoder_batch_norms():
                bn.eval()
        return self

    def _check(self, image: Tensor, mask: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image must be (N,3,H,W), got {tuple(image.shape)}")
        n, _, h, w = image.shape
        if mask.shape != (n, 1, h, w):
            raise ValueError(f"mask must be {(n, 1, h, w)} for this image, got {tuple(mask.shape)}")
        if h % 2**self.depth or w % 2**self.depth:
            raise ValueError(
                f"height and width must be multiples of {2**self.depth} = 2**depth, got {h}×{w};"
                " model.inpaint pads any size"
            )


def architecture_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the PConvUNet that has this state_dict, inferred from keys and shapes.

    Raises ValueError if it is not from a PConvUNet. Extend this when PConvUNet gets a new argument.
    """
    first = state_dict.get("encoder.0.conv.weight")
    if not isinstance(first, Tensor) or first.ndim != 4:
        raise ValueError("no tensor 'encoder.0.conv.weight'")
    depth = len({key.split(".")[1] for key in state_dict if key.startswith("encoder.")})
    base = next((base for base in BASES if f"{base}_base" in state_dict), "none")
    below, joined = (state_dict.get(f"{name}.conv.weight") for name in (f"encoder.{depth - 1}", "decoder.0"))
    if base == "push_pull" and below is not None and joined is not None and joined.shape[1] > sum(below.shape[:2]):
        raise ValueError("base push_pull_decoder of an earlier version; use that version or train again")
    return {"depth": depth, "base_channels": first.shape[0], "base": base}


@torch.no_grad()
def with_base_in_decoder(net: PConvUNet) -> PConvUNet:
    """Return a network of base `thin_plate` that continues one of base `push_pull`: its new weights are 0.

    Outputs differ a little: the base continues gradients and counts as valid in sum(M), and residuals are limited.
    """
    grown = PConvUNet(net.depth, net.base_channels, "thin_plate").train(net.training)
    state = net.state_dict()
    for key, tensor in grown.state_dict().items():
        known = state.get(key, tensor)  # the base's marker is new
        if known.shape == tensor.shape:
            tensor.copy_(known)
        else:  # a decoder's kernel: the base's channels come last
            tensor.zero_()
            tensor[:, : known.shape[1]] = known
    return grown


@contextlib.contextmanager
def _untracked_batch_norm(block: nn.Module) -> Iterator[None]:
    """Leave a block's batch norm statistics unchanged: the first forward pass has already updated them."""
    norms = [module for module in block.modules() if isinstance(module, BatchNorm) and module.training]
    before = [(norm.momentum, copy.deepcopy(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


@torch.no_grad()
def settle_encoder_batch_norm(net: PConvUNet, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Replace the encoder's running statistics with their plain mean over these batches of (image, mask).

    Running statistics lag behind the weights and weigh the last batches most. Freezing them in that state makes the
    loss jump, so they are recomputed for the current weights.
    """
    before = {bn: bn.momentum for bn in net.encoder_batch_norms()}
    training = net.training
    net.train()
    decoder = [module for module in net.decoder.modules() if isinstance(module, BatchNorm)]
    for bn in before:
        bn.reset_running_stats()
        bn.momentum = None  # None: cumulative mean
    for norm in decoder:
        norm.track_running_stats = False
    for image, mask in batches:
        net(image, mask)
    for norm in decoder:
        norm.track_running_stats = True
    for bn, momentum in before.items():
        bn.momentum = momentum
    net.train(training)
