"""The config: its schema, and how it is read from YAML and from `section.key=value` on the command line.

Field, type, limits and meaning of a key stand together here; config.yml is the one place of values. Another config file
is an overlay: it says only what differs from config.yml.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from utils.errors import UserError
from utils.plain_yaml import format_yaml, parse_yaml

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "config.yml"

CONFIG_NAME = "config.yml"  # of the resolved config in a run folder

MASK_STYLES = ("shapes", "strokes", "contours")  # data/holes.py draws them

# What a key that did not exist when a run began means for it: that all stays as it was.
AS_BEFORE = {
    "model.base": "none",
    "loss.weights.hole_l2": 0,
    "data.crop_unit": "area",
    "masks.crop": "fit",
    "masks.size": 0,
    "data.max_bad": 0,
    "train.accumulate": 1,
    "train.amp": "none",
    "train.channels_last": False,
    "train.checkpoint_activations": False,
    "train.compile": "none",
    "train.fused": False,
    "train.ema_decay": 0,
    "train.export": "last",
}

# Keys that became the two phases: a run that has them goes on with those.
_TWO_PHASES = (
    "train.initial_steps",
    "train.finetune_steps",
    "train.settle_batches",
    "optim.initial_lr",
    "optim.finetune_lr",
)

# Keys that became something else. A config file that has one of them is of an older version.
_REPLACED = {
    "train.initial_steps": "`steps` of the first of `phases`",
    "train.finetune_steps": "`steps` of the second of `phases`",
    "train.settle_batches": "`settle_batches` of a phase",
    "optim.initial_lr": "`lr` of the first of `phases`",
    "optim.finetune_lr": "`lr` of the second of `phases`",
}


# --- the schema --------------------------------------------------------------------------------------------------


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 2e5 is a whole number


def _compile_mode(value: Any) -> Any:
    return {False: "none", True: "default"}[value] if isinstance(value, bool) else value  # as in older configs


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
_NAME = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f])?$"

PathText = Annotated[str, Field(pattern=_NAME), AfterValidator(_expanded)]
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
AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # YAML has lists alone
Rising = AfterValidator(_rising)
CropScale = Annotated[tuple[Scale, Scale], AsTuple, Rising]


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(Section):
    dir: PathText
    """everything that the run writes lies here; must be new or empty unless --resume"""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)]
    """weights, order of the images, crops and masks are functions of it"""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")]
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
    hole: Annotated[str, Field(pattern=r"^(black|white|#[0-9a-fA-F]{6})$")]
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
    phases: Annotated[tuple[PhaseConfig, ...], AsTuple, Field(min_length=1)]
    """one after another; each may give `image_size`, `batch_size`, `crop_scale`, `amp` and `loss_weights` of its own"""


# --- values that are each possible, but not together -----------------------------------------------------------


def _conflicts(config: Config) -> Iterator[tuple[str, Any, str]]:
    """Path, value and what is wrong with it."""
    if not sum(phase.steps for phase in config.phases):
        yield "phases", 0, "has no steps at all; `steps` of one must be at least 1"
    for number in range(len(config.phases)):
        yield from _conflicts_of_phase(config, number)
    if config.data.crop_unit == "area" and config.data.crop_scale[1] > 1:
        yield "data.crop_scale", list(config.data.crop_scale), "must be at most 1 with data.crop_unit: area"
    if os.path.realpath(config.masks.val_dir) == os.path.realpath(config.masks.train_dir):
        rule = "must be another folder than masks.train_dir: masks for training are not for validation"
        yield "masks.val_dir", config.masks.val_dir, rule


def loss_weights_of(config: Config, phase: PhaseConfig) -> dict[str, float]:
    """The weight of each term of the loss in a phase."""
    weights: dict[str, float] = config.loss.weights.model_dump()
    return weights | dict(phase.loss_weights or {})


def _conflicts_of_phase(config: Config, number: int) -> Iterator[tuple[str, Any, str]]:
    phase, own, depth, parts = config.phases[number], f"phases.{number}.", config.model.depth, config.train.accumulate
    size_key = own + "image_size" if phase.image_size else "data.image_size"
    batch_key = own + "batch_size" if phase.batch_size else "train.batch_size"
    size, batch = phase.image_size or config.data.image_size, phase.batch_size or config.train.batch_size
    multiple = 2**depth
    if size % multiple:
        nearest = max(multiple, round(size / multiple) * multiple)
        yield size_key, size, f"must be a multiple of {multiple} = 2**model.depth; try {nearest}"
    if batch % parts:
        yield batch_key, batch, f"must be a multiple of train.accumulate = {parts}"
    elif batch // parts == 1 and size <= multiple:
        yield (
            batch_key,
            batch,
            f"leaves batch norm one value a channel to average at the deepest of model.depth = {depth} levels;"
            f" it must be at least {2 * parts}, or data.image_size above {multiple}, or model.depth smaller",
        )
    if not any(loss_weights_of(config, phase).values()):
        key = own + "loss_weights" if phase.loss_weights else "loss.weights"
        yield key, 0, "are all 0, so nothing is learnt; one must be above 0"
    if phase.crop_scale and config.data.crop_unit == "area" and phase.crop_scale[1] > 1:
        yield own + "crop_scale", list(phase.crop_scale), "must be at most 1 with data.crop_unit: area"
    if phase.end_lr > phase.lr:
        yield own + "end_lr", phase.end_lr, f"must be at most lr = {phase.lr:g}"


# --- reading and writing ---------------------------------------------------------------------------------------


def load_config(path: str | Path = DEFAULT_CONFIG, overrides: Sequence[str] = (), resume: bool = False) -> Config:
    """Read a config file, apply `section.key=value` overrides, check everything.

    A file other than config.yml is an overlay over it. With `resume` the file is the config of a run: it stands alone,
    and keys that did not exist when the run began get their value of AS_BEFORE.
    UserError lists all faults, a line each: source, dotted path, value, what is allowed, the nearest name.
    """
    sources: dict[str, str] = {}
    faults: list[str] = []
    tree: dict[str, Any] = {}
    own = _read_file(path)
    if not resume and os.path.realpath(path) != str(DEFAULT_CONFIG):
        _merge(tree, _read_file(DEFAULT_CONFIG), str(DEFAULT_CONFIG), sources)
    _merge(tree, own, str(path), sources)
    for line in _fill_as_before(tree) if resume else ():
        print(f"{path}: {line}", file=sys.stderr)
    for override in overrides:
        try:
            _override(override, tree, sources)
        except UserError as error:
            faults.append(str(error))
    _refuse_older(tree, str(path), sources)
    return _checked(tree, str(path), sources, faults)


def config_of_run(tree: Any, source: str) -> Config:
    """The config that a checkpoint of a run holds; keys that are newer than the run as `load_config` fills them.

    UserError, naming `source`, where it is none.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{source}: holds no config")
    tree = copy.deepcopy(tree)
    _fill_as_before(tree)
    return _checked(tree, source, {}, [])


def _checked(tree: dict[str, Any], path: str, sources: Mapping[str, str], faults: list[str]) -> Config:
    """The config of a tree. UserError with these faults and all others."""
    config: Config | None
    try:
        config = Config.model_validate(tree)
        found = list(_conflicts(config))
    except ValidationError as error:
        config = None
        found = [_fault(item) for item in error.errors(include_url=False)]
    for key, value, rule in found:
        others = _KEY.findall(rule) if config else []  # that the value does not go together with
        origins = dict.fromkeys(source for name in (key, *others) for source in _sources_of(name, sources))
        faults.append(f"{' and '.join(origins) or path}: {key}: {_shown(value)} {rule}")
    faults = [*dict.fromkeys(faults)]
    if config is None or faults:
        if len(faults) > 1:
            faults.insert(0, f"{len(faults)} faults in the config:")
        raise UserError("\n  ".join(faults))
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts of plain values (lists, no tuples), as YAML and checkpoints hold it."""
    return config.model_dump(mode="json", exclude_none=True)


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved config as YAML; `load_config(path, resume=True)` reads it back to the same values."""
    Path(path).write_text(format_yaml(config_to_dict(config)), encoding="utf-8")


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"no such config file: {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8, as a config must be") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a folder, no permission, a name that no file can have
        raise UserError(f"{path}: can't be read as a config: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config has the sections {', '.join(Config.model_fields)}; found {_shown(tree)}")
    return tree


def _override(override: str, tree: dict[str, Any], sources: dict[str, str]) -> None:
    """Put a `section.key=value` into the tree. The value is YAML; for a key that takes text, the text as it stands."""
    source = "command line"
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not name.strip():
        raise UserError(f"{source}: {_shown(override)} must have the form section.key=value, as train.batch_size=4")
    named = ".".join(map(_named, keys))
    value = text if _takes_text(keys) else parse_yaml(text, f"{source}: {named}={_shown(text)}")
    if keys[0] != "phases" or len(keys) == 1:
        return _merge(tree, _nested(keys, value), source, sources)
    # phases.0.lr=1e-3 changes a key of a list's item
    phases = tree["phases"] if isinstance(tree.get("phases"), list) else []
    number = int(keys[1]) if re.fullmatch("[0-9]{1,4}", keys[1]) else len(phases)
    if number >= len(phases) or not isinstance(phases[number], dict):
        raise UserError(f"{source}: {named}: no such phase among the {len(phases)} of the config")
    phase = dict(phases[number])
    tree["phases"] = [*phases[:number], phase, *phases[number + 1 :]]
    return _merge(phase, _nested(keys[2:], value) if keys[2:] else value, source, sources, f"phases.{number}.")


def _nested(keys: Sequence[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


def _takes_text(keys: Sequence[str]) -> bool:
    section: type[BaseModel] = Config
    for key in keys[:-1]:
        field = section.model_fields.get(key)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            return False
        section = field.annotation
    return keys[-1] in section.model_fields and section.model_fields[keys[-1]].annotation is str


def _merge(tree: dict[str, Any], other: Any, source: str, sources: dict[str, str], prefix: str = "") -> None:
    """Put the values of `other` into the tree, section by section. A list, as of phases, replaces another whole."""
    if not isinstance(other, dict):
        raise UserError(f"{source}: {prefix.rstrip('.')}: {_shown(other)} must be a section with keys")
    for key, value in other.items():
        path = prefix + _named(key)
        if not isinstance(key, str) or not key.isprintable():  # pydantic would not say where it stands
            raise UserError(f"{source}: {path}: is an unknown key")
        if isinstance(value, dict) and isinstance(tree.get(key), dict) and path not in ("masks.style",):
            tree[key] = dict(tree[key])  # a copy: an alias of YAML may stand for it elsewhere
            _merge(tree[key], value, source, sources, f"{path}.")
        else:
            tree[key] = value
            sources[path] = source


def _refuse_older(tree: Mapping[str, Any], path: str, sources: Mapping[str, str]) -> None:
    for name, now in _REPLACED.items():
        section, key = name.split(".")
        if isinstance(tree.get(section), dict) and key in tree[section]:
            source = " and ".join(_sources_of(name, sources)) or path
            raise UserError(f"{source}: {name} is a key of an older version; it is now {now}: see config.yml")


def _fill_as_before(tree: dict[str, Any]) -> list[str]:
    """Give the keys that are newer than a run the values that mean "as before". Returns a line for each."""
    lines = []
    sections = {name: section for name, section in tree.items() if isinstance(section, dict)}
    if "phases" not in tree and set(_TWO_PHASES) <= {f"{name}.{key}" for name in sections for key in sections[name]}:
        old = {name: sections[name.split(".")[0]].pop(name.split(".")[1]) for name in _TWO_PHASES}
        second = {"steps": old["train.finetune_steps"], "lr": old["optim.finetune_lr"]}
        second.update(freeze_encoder_batch_norm=True, settle_batches=old["train.settle_batches"])
        tree["phases"] = [{"steps": old["train.initial_steps"], "lr": old["optim.initial_lr"]}, second]
        lines.append(f"without phases, which are newer than the run; {', '.join(_TWO_PHASES)} became the two of them")
    for name, value in AS_BEFORE.items():
        *path, key = name.split(".")
        section: Any = tree
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and key not in section:
            section[key] = value
            lines.append(f"without {name}, which is newer than the run; it goes on with {value}, as before")
    return lines


# --- words for messages ----------------------------------------------------------------------------------------


# What the texts that are no names may be.
_MEANT = {"run.device": "auto, cpu, cuda or cuda:N", "masks.hole": "black, white or a colour such as '#ff0000'"}


def _fault(item: Any) -> tuple[str, Any, str]:
    """Path, value and rule of an error of pydantic."""
    path = ".".join(_named(key) for key in item["loc"] if key != "[key]")  # [key]: the key is at fault, not its value
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return path, None, "is missing"
    if kind == "extra_forbidden":
        return path, value, f"is an unknown key; {_nearest(path)}"
    if path in _MEANT:
        return path, value, f"must be {_MEANT[path]}"
    if kind == "string_pattern_mismatch":
        return path, value, "must be a file's name"
    if kind == "string_unicode":
        return path, value, "must be UTF-8, which YAML is written in; rename the file or folder"
    if kind == "model_type":
        return path, value, "must be a section with keys"
    rule = re.sub("(Input|Tuple|Value) should", "must", item["msg"].removeprefix("Value error, "))
    rule = rule.replace("valid tuple", "list").replace(" after validation", "")
    if kind == "literal_error" and isinstance(value, str):
        close = difflib.get_close_matches(value, re.findall(r"'([^']*)'", rule), n=1)
        rule += f"; did you mean {close[0]}?" if close else ""
    return path, value, rule


_KEY = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)+")  # a dotted path in a rule


def _sources_of(path: str, sources: Mapping[str, str]) -> list[str]:
    """Where the value at a path was given, or else the list or section that holds it; and what was changed in it."""
    within = [source for name, source in sources.items() if name.startswith(path + ".")]
    while path and path not in sources:
        path = path.rpartition(".")[0]
    return ([sources[path]] if path else []) + within


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 2, 3, 4, 60, 40, 60


def _shown(value: Any) -> str:
    """A value of the YAML in a message: on one line, not too long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return _SHORT.repr(list(value) if isinstance(value, tuple) else value)


def _named(key: Any) -> str:
    """A key as a part of a dotted path; with quotes where it looks unlike one."""
    return str(key) if re.fullmatch(r"[\w-]+", str(key)) else _shown(key)


def _all_paths(model: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield prefix + key
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _all_paths(field.annotation, f"{prefix}{key}.")
    if model is Config:
        yield from (f"phases.0.{key}" for key in PhaseConfig.model_fields)


def _nearest(path: str) -> str:
    """The known name that an unknown one most likely means: alike in spelling, or of the same last part elsewhere."""
    path = re.sub(r"\.\d+\.", ".0.", path)
    last = path.rpartition(".")[2]
    paths = list(_all_paths())
    close = (
        difflib.get_close_matches(path, paths, n=1, cutoff=0.8)
        or [name for name in paths if name.rpartition(".")[2] == last]
        or difflib.get_close_matches(path, paths, n=1, cutoff=0.7)
        or [name for name in paths if len(last) > 2 and last in name.rpartition(".")[2]]
    )
    if close:
        return f"did you mean {close[0]}?"
    parent = path.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in paths if name.rpartition(".")[0] == parent]
    return f"the keys here are {', '.join(siblings or Config.model_fields)}"
