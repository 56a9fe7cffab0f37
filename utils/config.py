"""The config: its schema. Field, type, limits and meaning of a key stand together here.

utils/config_files.py reads it from YAML and from the command line; config.yml is the one place of values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MASK_STYLES = ("shapes", "strokes", "contours")  # data/holes.py draws them


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 2e5 is a whole number


def _compile_mode(value: Any) -> Any:
    return {False: "none", True: "default"}[value] if isinstance(value, bool) else value  # as in older configs


def _text(pattern: str, meaning: str) -> BeforeValidator:
    """What a text must be, in words that a pattern has not."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {meaning}")
        return value

    return BeforeValidator(check)


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first number must be no larger than the second")
    return pair


def _expanded(path: str) -> str:
    """The path with `~` and `$VAR` expanded."""
    path = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$(\w+|\{[^}]*\})", path)
    if unset:
        raise ValueError(f"names the environment variable {unset[0]!r}, which is not set")
    if path.startswith("~"):
        raise ValueError(f"starts with {path.split('/')[0]!r}, no user's home; write ./~ for a file of this name")
    return path


def _styles(value: Any) -> Any:
    """A style's name, or the share of each style."""
    shares = isinstance(value, dict) and value and set(value) <= set(MASK_STYLES)
    if shares and all(type(share) in (int, float) and 0 < share < 1e9 for share in value.values()):
        return {name: float(value[name]) for name in MASK_STYLES if name in value}
    if value not in (*MASK_STYLES, "mixed"):
        raise ValueError(f"must be {', '.join(MASK_STYLES)} or mixed, or shares as {{contours: 0.7, strokes: 0.3}}")
    return value


# Neither control characters nor halves of surrogate pairs: no file can have them in its name, or no YAML can hold it.
_NAME = r"(?!\s)[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+(?<!\s)"

PathText = Annotated[str, _text(_NAME, "a file's name, of UTF-8 without control characters"), AfterValidator(_expanded)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=0, le=10**12)]
Positive = Annotated[Whole, Field(ge=1, le=10**12)]
Number = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[Number, Field(ge=0)]
Rate = Annotated[Number, Field(gt=0, le=1e30)]  # an optimizer computes with it in float32
Share = Annotated[Number, Field(ge=0, lt=1)]
ImageSize = Annotated[Whole, Field(ge=16, le=4096)]
BatchSize = Annotated[Whole, Field(ge=1, le=65536)]
Amp = Literal["auto", "none", "bf16", "fp16"]
Scale = Annotated[Number, Field(ge=0.01, le=4096)]
Style = Annotated[Any, AfterValidator(_styles)]
AsTuple = Field(strict=False)  # YAML has lists alone
Rising = AfterValidator(_rising)
CropScale = Annotated[tuple[Scale, Scale], AsTuple, Rising]


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(Section):
    dir: PathText
    """everything that the run writes lies here; must be new or empty unless --resume"""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)]
    """weights, order of the images, crops and masks are functions of it"""
    device: Annotated[str, _text(r"auto|cpu|cuda(:[0-9]{1,2})?", "auto, cpu, cuda or cuda:N")]
    """auto (CUDA where there is one) | cpu | cuda | cuda:N"""


class DataConfig(Section):
    train: PathText
    """folder (searched to any depth), text file with one path a line, or `sample`"""
    val: PathText
    """likewise"""
    val_pairs: Positive
    """pairs of a picture and a mask in an evaluation; fewer pictures are met by several masks each"""
    image_size: ImageSize
    """px, height and width of the training images; a multiple of 2**model.depth (paper: 512)"""
    crop_scale: CropScale
    """how large a random training crop is, in crop_unit; less where the picture is smaller"""
    crop_unit: Literal["image_size", "px", "area"]
    """image_size: its side in multiples of image_size; px: its side; area: its share of the picture's area"""
    workers: Annotated[Whole, Field(ge=0, le=256)]
    """processes that load data; 0 loads in the main one. Does not change what is computed"""
    max_bad: Annotated[Number, Field(ge=0, le=1)]
    """share of the pictures met so far, or of 1,000, that may be broken; with more the run stops"""


class MasksConfig(Section):
    train_dir: PathText
    """masks for training; masks.py fills this folder"""
    val_dir: PathText
    """masks for validation, likewise"""
    train_count: Positive
    """masks that masks.py makes (paper: 55,116, §4.1)"""
    val_count: Positive
    """likewise (paper's test set: 12,000, §4.1)"""
    size: Annotated[Whole, Field(ge=0, le=4096)]
    """px, height and width of the masks that masks.py makes; 0 = data.image_size"""
    style: Style
    """shapes (lines, circles, ellipses) | strokes (brush) | contours (as the paper's) | mixed | {contours: 0.7, …}"""
    hole_ratio: Annotated[tuple[Annotated[Number, Field(ge=0.01)], Annotated[Number, Field(le=0.6)]], AsTuple, Rising]
    """share of the image that the holes of masks.py take, spread evenly (§4.1: test bins)"""
    hole: Annotated[str, _text("black|white|#[0-9a-fA-F]{6}", "black, white or a colour such as '#ff0000'")]
    """colour of the hole in the mask files, also '#ff0000'; masks.py writes black, NVIDIA's test set has white"""
    augment: bool
    """training masks are dilated, rotated, shifted, cropped at random (§4.1)"""
    dilate: Annotated[tuple[Count, Annotated[Whole, Field(le=512)]], AsTuple, Rising]
    """px at 512, side of the square that augment dilates holes with; [9, 49] for the paper's raw masks"""
    crop: Literal["fit", "own_scale"]
    """what augment cuts out: fit = 0.7 to 1 times the mask, own_scale = 0.85 to 1.2 times image_size px of it"""


class ModelConfig(Section):
    depth: Annotated[Whole, Field(ge=2, le=12)]
    """levels: 7 for 256x256, 8 for the paper's 512x512 (its appendix, table of the network)"""
    base_channels: Annotated[Whole, Field(ge=1, le=1024)]
    """channels of the first level; they double up to 8 times as many (paper: 64)"""
    base: Literal["none", "push_pull"]
    """what the U-Net's output is added to: none (paper) | push_pull (a smooth fill without weights)"""


class LossWeights(Section):
    valid: NotNegative
    """L_valid"""
    hole: NotNegative
    """L_hole"""
    hole_l2: NotNegative
    """L_hole with the square of the difference instead of its absolute value (paper: none)"""
    perceptual: NotNegative
    """L_perceptual (VGG-16)"""
    style: NotNegative
    """L_style_out + L_style_comp (VGG-16)"""
    tv: NotNegative
    """L_tv"""


if TYPE_CHECKING:
    LossTerm = str
else:
    LossTerm = Literal[tuple(LossWeights.model_fields)]


class LossConfig(Section):
    vgg16: PathText
    """this file, another with torchvision's keys, or `torchvision` (downloads its own)"""
    weights: LossWeights
    """of the terms of Eq. 7; the values are the paper's. A term of weight 0 is not computed"""


class OptimConfig(Section):
    name: Literal["Adam", "AdamW", "SGD"]
    """Adam | AdamW | SGD (paper: Adam, §4.2)"""
    momentum: Share
    """of SGD; Adam's first beta"""
    weight_decay: NotNegative
    """L2 penalty (Adam, SGD) or decoupled decay (AdamW), per step and learning rate"""


class TrainConfig(Section):
    batch_size: BatchSize
    """images a step, of all processes together (paper: 6 at 512x512)"""
    accumulate: Positive
    """micro-batches that a step's batch is computed in: 2 needs half the memory. Batch norm sees a micro-batch"""
    amp: Amp
    """dtype of the convolutions under autocast: auto (bf16 on CUDA, none on a CPU) | none | bf16 | fp16"""
    channels_last: bool
    """memory format of the features: faster on a CPU, and on a GPU with amp"""
    checkpoint_activations: bool
    """compute the features of a level again in the backward pass: less memory, a third more time"""
    compile: Annotated[Literal["none", "default", "reduce-overhead"], BeforeValidator(_compile_mode)]
    """torch.compile's mode: none | default | reduce-overhead (CUDA graphs); takes minutes at the start"""
    fused: bool
    """the optimizer's fused form: one pass over the weights"""
    ema_decay: Share
    """of a moving average of the weights, which validation and prediction then use: 0.999, say; 0 = none"""
    log_every: Positive
    """steps between two records of the loss"""
    eval_every: Positive
    """steps between two evaluations on data.val"""
    save_every: Positive
    """steps between two checkpoints"""
    export: Literal["best", "last"]
    """what weights.safetensors holds at the end: best (by held-out L1) | last"""
    keep_checkpoints: Positive
    """newest step_*.pt that stay; best.pt, of the lowest held-out L1, stays besides"""


class PhaseConfig(Section):
    """A part of the training. A value that it does not give is that of the sections above."""

    steps: Count
    """how many"""
    lr: Rate
    """learning rate; with a schedule its highest value"""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: from lr to end_lr along half a period"""
    end_lr: NotNegative = 0.0
    """learning rate at the end of a cosine"""
    warmup: Count = 0
    """first steps of the phase, over which the learning rate rises from 0"""
    freeze_encoder_batch_norm: bool = False
    """statistics and affine weights of the encoder's batch norm stay as they are (§4.2)"""
    settle_batches: Count = 0
    """batches over which these statistics are averaged anew before they are frozen; 0 = keep them as they are"""
    image_size: ImageSize | None = None
    batch_size: BatchSize | None = None
    crop_scale: CropScale | None = None
    amp: Amp | None = None
    loss_weights: dict[LossTerm, NotNegative] | None = None


class Config(Section):
    run: RunConfig
    data: DataConfig
    masks: MasksConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    phases: Annotated[tuple[PhaseConfig, ...], AsTuple]
    """one after another; each may give `image_size`, `batch_size`, `crop_scale`, `amp` and `loss_weights` of its own"""


def _types(model: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, field in model.model_fields.items():
        kind: Any = field.annotation
        yield prefix + key, kind
        if hasattr(kind, "model_fields"):  # a section
            yield from _types(kind, f"{prefix}{key}.")


# Each dotted path and its type; those of the first phase stand for every one.
TYPES = {
    **dict(_types(Config)),
    **dict(_types(PhaseConfig, "phases.0.")),
    **dict(_types(LossWeights, "phases.0.loss_weights.")),
}


def loss_weights_of(config: Config, phase: PhaseConfig) -> dict[str, float]:
    """The weight of each term of the loss in a phase."""
    return {**config.loss.weights.model_dump(), **(phase.loss_weights or {})}


# --- values that are each possible, but not together -----------------------------------------------------------


def conflicts(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path at fault with those that it does not go together with, and its value with what is wrong with it."""
    if not sum(phase.steps for phase in config.phases):
        steps = [f"phases.{number}.steps" for number in range(len(config.phases))]
        yield ("phases", *steps), "has no steps at all; `steps` of one must be at least 1"
    crop_scales = {f"phases.{number}.crop_scale": phase.crop_scale for number, phase in enumerate(config.phases)}
    for key, scale in {"data.crop_scale": config.data.crop_scale, **crop_scales}.items():
        if config.data.crop_unit == "area" and scale and scale[1] > 1:
            yield (key, "data.crop_unit"), f"{list(scale)} must be at most 1 with data.crop_unit: area"
    for number in range(len(config.phases)):
        yield from _conflicts_of_phase(config, number)
    if os.path.realpath(config.masks.val_dir) == os.path.realpath(config.masks.train_dir):
        rule = "must be another folder than masks.train_dir: masks for training are not for validation"
        yield ("masks.val_dir", "masks.train_dir"), f"{config.masks.val_dir!r} {rule}"


def _conflicts_of_phase(config: Config, number: int) -> Iterator[tuple[tuple[str, ...], str]]:
    phase, own, depth, parts = config.phases[number], f"phases.{number}.", config.model.depth, config.train.accumulate
    size_key = own + "image_size" if phase.image_size else "data.image_size"
    batch_key = own + "batch_size" if phase.batch_size else "train.batch_size"
    size, batch = phase.image_size or config.data.image_size, phase.batch_size or config.train.batch_size
    multiple = 2**depth
    if size % multiple:
        nearest = max(multiple, round(size / multiple) * multiple)
        yield (size_key, "model.depth"), f"{size} must be a multiple of {multiple} = 2**model.depth; try {nearest}"
    if batch % parts:
        yield (batch_key, "train.accumulate"), f"{batch} must be a multiple of train.accumulate = {parts}"
    elif batch // parts == 1 and size <= multiple:
        yield (
            (batch_key, "model.depth", size_key),
            f"{batch} leaves batch norm one value a channel to average at the deepest of model.depth = {depth} levels;"
            f" it must be at least {2 * parts}, or {size_key} above {multiple}, or model.depth smaller",
        )
    if not any(loss_weights_of(config, phase).values()):
        key = own + "loss_weights" if phase.loss_weights else "loss.weights"
        terms = [f"{key}.{term}" for term in LossWeights.model_fields]
        yield (key, *terms), "are all 0, so nothing is learnt; one must be above 0"
    if phase.end_lr > phase.lr:
        yield (own + "end_lr", own + "lr"), f"{phase.end_lr} must be at most lr = {phase.lr:g}"
