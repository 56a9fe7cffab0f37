"""Weights of other projects: recognise them by key, convert them, and compute as their networks do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.layer import UpPartialConv2d
from model.network import Block, Crop, PConvUNet, architecture_of
from model.vgg import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Project:
    """Names of a project's tensors, and how its network differs from the paper."""

    name: str
    conv: str  # key of a convolution's tensor: side is enc or dec, level 1 has the highest resolution
    norm: str | None  # key of a batch norm's tensor; None if its network never applies batch norm
    unused: str  # pattern of keys that its network does not use
    levels: int  # maximum number of levels
    mean: tuple[float, float, float] = (0, 0, 0)  # its network's input and output are (image − mean)/std
    std: tuple[float, float, float] = (1, 1, 1)
    one_bias: bool = False  # only dec_1 has a bias
    no_sum_1: bool = False  # Eq. 1 without the factor sum(1)
    ratio_twice: bool = False  # dec_1 multiplies its result, bias included, by sum(1)/sum(M) a second time

    def key(self, side: str, level: int, part: str, name: str) -> str:
        """Return the project's key of a tensor. part: conv or bn; name: weight, bias, …"""
        form = self.conv if part == "conv" or self.norm is None else self.norm
        return form.format(side=side, level=level, name=name)

    def depth(self, state_dict: Mapping[str, Tensor]) -> int:
        """Return the number of levels of a state_dict; 0 if it is not from this project."""
        levels = range(1, self.levels + 1)
        return max((level for level in levels if self.key("enc", level, "conv", "weight") in state_dict), default=0)


# levels=32: no limit, as no image allows for more.
PROJECTS = (
    Project(
        "naoto0804/pytorch-inpainting-with-partial-conv",
        conv="{side}_{level}.conv.input_conv.{name}",
        norm="{side}_{level}.bn.{name}",
        unused=r"\.mask_conv\.",
        levels=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        one_bias=True,
        no_sum_1=True,
    ),
    Project(
        "yashk2000/SneakySketchers or tanimutomo/partialconv",
        conv="{side}_{level}.conv.{name}",
        norm=None,
        unused=r"^(enc|dec)_8\.",  # always in the file, but its network for 256×256 px uses seven levels
        levels=7,
        one_bias=True,
        ratio_twice=True,
    ),
    Project(
        "open-mmlab/mmagic",
        conv="{side}oder.{side}{level}.conv.{name}",
        norm="{side}oder.{side}{level}.bn.{name}",
        unused=r"\.weight_mask_updater$|^(?!encoder\.|decoder\.)",  # second pattern: parts of its losses
        levels=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
)


class RatioTwiceConv2d(UpPartialConv2d):
    """Partial convolution whose result, bias included, is multiplied by sum(1)/sum(M) a second time."""

    def scaled(self, y: Tensor, ratio_and_mask: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Overrides UpPartialConv2d."""
        y, updated_mask = super().scaled(y, ratio_and_mask)
        return y.mul_(ratio_and_mask[0]), updated_mask


class ForeignUNet(PConvUNet):
    """A PConvUNet that computes like another project's network.

    Its state_dict records the differences: `mean` and `std` of input and output, `ratio_twice`, and no batch norm keys
    if the network has none. So a checkpoint of a run that started from foreign weights loads as such a network, too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int, base_channels: int, batch_norm: bool, ratio_twice: bool) -> None:
        super().__init__(depth, base_channels)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))
        self.register_buffer("ratio_twice", torch.tensor(ratio_twice))
        if ratio_twice:
            self.decoder[-1].conv = RatioTwiceConv2d(base_channels, 3, 3)
        for block in [*self.encoder, *self.decoder]:
            if isinstance(block, Block) and block.bn is not None and not batch_norm:
                block.bn = None
                block.conv.bias = nn.Parameter(torch.zeros(block.conv.out_channels))

    def unet(
        self, image: Tensor, mask: Tensor, base: Tensor | None = None, crops: Sequence[Crop] | None = None
    ) -> Tensor:
        """Overrides PConvUNet. Image and result are on the scale of [0,1]; only the layers use normalised values."""
        return super().unet((image - self.mean) / self.std, mask, base, crops) * self.std + self.mean


def network_for(state_dict: Mapping[str, Tensor]) -> PConvUNet:
    """Return a randomly initialised network that can load this state_dict. Raises ValueError if there is none."""
    size = architecture_of(state_dict)
    if "ratio_twice" not in state_dict:
        return PConvUNet(**size)
    batch_norm, ratio_twice = any(".bn." in key for key in state_dict), bool(state_dict["ratio_twice"])
    return ForeignUNet(size["depth"], size["base_channels"], batch_norm, ratio_twice)


def in_our_form(state_dict: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str | None]:
    """Return the state_dict as network_for takes it, and the name of the project that it comes from.

    A state_dict of no known project is only unwrapped and returned with None.
    Raises ValueError if a key of the project is missing or unexpected, or if a tensor has another shape.
    """
    theirs = dict(_unwrapped(state_dict))
    project = next((project for project in PROJECTS if project.depth(theirs)), None)
    if project is None:
        return theirs, None
    try:
        return _convert(theirs, project), project.name
    except ValueError as error:
        raise ValueError(f"its keys are those of {project.name}, but {error}") from None


def _unwrapped(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return only the tensors of the network, with prefixes removed from their names.

    DataParallel and AveragedModel add `module.`, torch.compile `_orig_mod.`, mmagic `generator.`, Lightning the name of
    the attribute. Of several networks, the average (`…ema.`) is used; ValueError unless there is exactly one average.
    """
    firsts = ["encoder.0.conv.weight", *(project.key("enc", 1, "conv", "weight") for project in PROJECTS)]
    prefixes = {key.removesuffix(first) for key in state_dict for first in firsts if f".{key}".endswith(f".{first}")}
    if "" in prefixes:
        return state_dict
    if not prefixes:  # no network, or a damaged one: strip common prefixes, so that messages name plain keys
        return {key.removeprefix("module.").removeprefix("generator."): state_dict[key] for key in state_dict}
    chosen = sorted(prefix for prefix in prefixes if "ema" in prefix or len(prefixes) == 1)
    if len(chosen) != 1:
        raise ValueError(f"it holds several networks, {', '.join(sorted(prefixes))}; save only one of them")
    return {key.removeprefix(chosen[0]): state_dict[key] for key in state_dict if key.startswith(chosen[0])}


def _convert(theirs: dict[str, Tensor], project: Project) -> dict[str, Tensor]:
    """Convert a project's tensors to our form, removing each used tensor from `theirs`."""
    depth = project.depth(theirs)
    first_key = project.key("enc", 1, "conv", "weight")
    first = theirs.get(first_key)
    if first is None or first.ndim != 4:
        raise ValueError(f"{first_key} is missing or of another shape")
    wanted = ForeignUNet(depth, first.shape[0], project.norm is not None, project.ratio_twice).state_dict()

    mean, std = (torch.tensor(values).float().view(1, 3, 1, 1) for values in (project.mean, project.std))
    ours = {"mean": mean, "std": std, "ratio_twice": torch.tensor(project.ratio_twice)}
    ours["hole_radius"] = torch.zeros(())
    for key in [key for key in wanted if key not in ours]:
        side, index, part, name = key.split(".")
        level = int(index) + 1 if side == "encoder" else depth - int(index)
        their_key = project.key(side[:3], level, part, name)
        tensor = theirs.pop(their_key, None)
        no_bias = project.one_bias and (part, name) == ("conv", "bias") and (side, level) != ("decoder", 1)
        if tensor is None and (no_bias or name == "num_batches_tracked"):  # old torch versions lack it
            tensor = torch.zeros_like(wanted[key])
        if tensor is None:
            raise ValueError(f"{their_key} is missing")
        if tensor.shape != wanted[key].shape:
            raise ValueError(f"{their_key} is {tuple(tensor.shape)}, not {tuple(wanted[key].shape)}")
        if project.no_sum_1 and (part, name) == ("conv", "weight"):
            tensor = tensor.float() / tensor[0].numel()  # our layer multiplies by sum(1)
        ours[key] = tensor
    unexpected = [key for key in theirs if not re.search(project.unused, key)]
    if unexpected:
        raise ValueError(f"{unexpected[0]} is unexpected")
    return ours
