"""The schema of the config: type, limits and meaning of each key, and rules between keys.

utils/config_files.py reads configs from YAML and the command line. config.yml is the one place of values.
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
    """Return a validator for strings that match `pattern`; `meaning` describes the pattern in its error."""

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
    """Return the path with `~` and `$VAR` expanded."""
    path = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$(\w+|\{[^}]*\})", path)
    if unset:
        raise ValueError(f"names the environment variable {unset[0]!r}, which is not set")
    if path.startswith("~"):
        raise ValueError(f"starts with {path.split('/')[0]!r}, no user's home; write ./~ for a file of this name")
    return path


def _styles(value: Any) -> Any:
    """Validate a style name, or a dict of the share of each style."""
    shares = isinstance(value, dict) and value and set(value) <= set(MASK_STYLES)
    if shares and all(type(share) in (int, float) and 0 < share < 1e9 for share in value.values()):
        return {name: float(value[name]) for name in MASK_STYLES if name in value}
    if value not in (*MASK_STYLES, "mixed"):
        raise ValueError(f"must be {', '.join(MASK_STYLES)} or mixed, or shares as {{contours: 0.7, strokes: 0.3}}")
    return value


# No control characters and no lone surrogates: file names or YAML cannot contain them.
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
AsTuple = Field(strict=False)  # YAML has no tuples, only lists
Rising = AfterValidator(_rising)
CropScale = Annotated[tuple[Scale, Scale], AsTuple, Rising]


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(Section):
    dir: PathText
    """output folder; must be new or empty unless --resume"""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)]
    """determines the initial weights, the order of images, crops and masks"""
    device: Annotated[str, _text(r"auto|cpu|cuda(:[0-9]{1,2})?", "auto, cpu, cuda or cuda:N")]
    """auto (CUDA if available) | cpu | cuda | cuda:N"""


class DataConfig(Section):
    train: PathText
    """folder (searched recursively), text file with one path per line, or `sample`"""
    val: PathText
    """same forms as train"""
    val_pairs: Positive
    """image-mask pairs per validation; with fewer images, each gets several masks"""
    image_size: ImageSize
    """px, height and width of the training images; a multiple of 2**model.depth (paper: 512)"""
    crop_scale: CropScale
    """range of the random training crop's size, in crop_unit; smaller images limit it"""
    crop_unit: Literal["image_size", "px", "area"]
    """unit of crop_scale: image_size (side, in multiples of it) | px (side) | area (share of the image's area)"""
    workers: Annotated[Whole, Field(ge=0, le=256)]
    """data loader processes; 0 loads in the main process. Does not change the results"""
    max_bad: Annotated[Number, Field(ge=0, le=1)]
    """largest share of broken images, of those read so far or of 1,000; above it the run stops"""


class MasksConfig(Section):
    train_dir: PathText
    """training masks; masks.py fills this folder"""
    val_dir: PathText
    """validation masks; masks.py fills this folder"""
    train_count: Positive
    """number of training masks that masks.py makes (paper: 55,116, §4.1)"""
    val_count: Positive
    """number of validation masks (paper's test set: 12,000, §4.1)"""
    size: Annotated[Whole, Field(ge=0, le=4096)]
    """px, height and width of the masks that masks.py makes; 0 = data.image_size"""
    style: Style
    """shapes (lines, circles, ellipses) | strokes (brush) | contours (as the paper's) | mixed | {contours: 0.7, …}"""
    hole_ratio: Annotated[tuple[Annotated[Number, Field(ge=0.01)], Annotated[Number, Field(le=0.6)]], AsTuple, Rising]
    """hole-to-image area ratios that masks.py draws, uniformly distributed (§4.1: test bins)"""
    hole: Annotated[str, _text("black|white|#[0-9a-fA-F]{6}", "black, white or a colour such as '#ff0000'")]
    """colour of holes in mask files: black | white | '#ff0000'; masks.py writes black, NVIDIA's test set has white"""
    augment: bool
    """dilate, rotate, shift and crop training masks at random (§4.1)"""
    dilate: Annotated[tuple[Count, Annotated[Whole, Field(le=512)]], AsTuple, Rising]
    """px at 512, size of the square kernel of augment's dilation; [9, 49] for the paper's raw masks"""
    crop: Literal["fit", "own_scale"]
    """size of augment's crop: fit (0.7 to 1 times the mask) | own_scale (0.85 to 1.2 times image_size px)"""
    outlines: Share
    """share of masks whose holes augment reduces to their outlines, 1 to 4 px wide, as thin as scratches (paper: 0)"""


class ModelConfig(Section):
    depth: Annotated[Whole, Field(ge=2, le=12)]
    """levels: 7 for 256x256, 8 for the paper's 512x512 (its appendix, table of the network)"""
    base_channels: Annotated[Whole, Field(ge=1, le=1024)]
    """channels of the first level; doubled per level up to 8 times as many (paper: 64)"""
    base: Literal["none", "push_pull", "thin_plate"]
    """added to the output: none (paper) | push_pull (smooth fill) | thin_plate (smoother; the decoder reads it)"""


class LossWeights(Section):
    valid: NotNegative
    """L_valid"""
    hole: NotNegative
    """L_hole"""
    hole_l2: NotNegative
    """L_hole with squared instead of absolute differences (paper: 0)"""
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
    """weights of the terms of Eq. 7, as in the paper. VGG-16 does not run if its terms have weight 0"""


class OptimConfig(Section):
    name: Literal["Adam", "AdamW", "Muon", "SGD"]
    """Adam | AdamW | Muon (AdamW, but orthogonalised momentum for kernels) | SGD (paper: Adam, §4.2)"""
    momentum: Share
    """momentum of SGD and Muon, first beta of Adam and AdamW"""
    weight_decay: NotNegative
    """L2 penalty (Adam, SGD) or decoupled decay (AdamW, Muon), per step and learning rate"""


class TrainConfig(Section):
    batch_size: BatchSize
    """images per step, summed over all ranks (paper: 6 at 512x512)"""
    accumulate: Positive
    """micro-batches per step: 2 needs half the memory. Batch norm uses the statistics of a micro-batch"""
    amp: Amp
    """dtype of the convolutions under autocast: auto (bf16 on CUDA, none on a CPU) | none | bf16 | fp16"""
    channels_last: bool
    """memory format of the features: faster on a CPU, and on a GPU with amp"""
    checkpoint_activations: bool
    """recompute the features in the backward pass: less memory, a third more time"""
    compile: Annotated[Literal["none", "default", "reduce-overhead"], BeforeValidator(_compile_mode)]
    """torch.compile mode: none | default | reduce-overhead (CUDA graphs); compiling takes minutes"""
    fused: bool
    """use the fused implementation of the optimizer, except Muon: one pass over the weights"""
    ema_decay: Share
    """decay of a moving average of the weights, used for validation and prediction: 0.999, for example; 0 = none"""
    log_every: Positive
    """steps between loss records"""
    eval_every: Positive
    """steps between validations"""
    save_every: Positive
    """steps between checkpoints"""
    export: Literal["best", "last"]
    """weights that weights.safetensors gets at the end: best (by validation L1) | last"""
    keep_checkpoints: Positive
    """number of newest step_*.pt to keep; best.pt (lowest validation L1) is kept as well"""


class PhaseConfig(Section):
    """A part of the training. Values that it does not set come from the sections above."""

    steps: Count
    """number of steps"""
    lr: Rate
    """learning rate; its maximum if there is a schedule"""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant | cosine (half a period from lr to end_lr)"""
    end_lr: NotNegative = 0.0
    """learning rate at the end of a cosine schedule"""
    warmup: Count = 0
    """steps of linear warm-up from 0 at the start of the phase"""
    freeze_encoder_batch_norm: bool = False
    """freeze statistics and affine weights of the encoder's batch norm (§4.2)"""
    settle_batches: Count = 0
    """batches to recompute these statistics from before freezing; 0 = keep the running statistics"""
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
    """run in order; each may override `image_size`, `batch_size`, `crop_scale`, `amp` and `loss_weights`"""


def _types(model: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, field in model.model_fields.items():
        kind: Any = field.annotation
        yield prefix + key, kind
        if hasattr(kind, "model_fields"):  # a section
            yield from _types(kind, f"{prefix}{key}.")


# The type of each dotted path. phases.0 stands for every phase.
TYPES = {
    **dict(_types(Config)),
    **dict(_types(PhaseConfig, "phases.0.")),
    **dict(_types(LossWeights, "phases.0.loss_weights.")),
}


def loss_weights_of(config: Config, phase: PhaseConfig) -> dict[str, float]:
    """Return the weight of each loss term in a phase."""
    return {**config.loss.weights.model_dump(), **(phase.loss_weights or {})}


# --- rules between keys ------------------------------------------------------------------------------------------


def conflicts(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield conflicts between values: the path at fault with those it conflicts with, and value and rule as text."""
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
