"""The config: a typed schema without defaults, read from YAML and from `section.key=value` on the command line.

Values live in config.yml alone. To add a key: add a field below, and its value with a comment to config.yml
and to the files of configs/.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from utils.errors import UserError
from utils.masks import HoleColour

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "config.yml"


# --- rules that a value can be held to -------------------------------------------------------------------------


@dataclass(frozen=True)
class AtLeast:
    """value >= low"""

    low: float

    def fault(self, value: Any) -> str | None:
        return None if value >= self.low else f"must be at least {self.low:g}"


@dataclass(frozen=True)
class Above:
    """value > low"""

    low: float

    def fault(self, value: Any) -> str | None:
        return None if value > self.low else f"must be above {self.low:g}"


@dataclass(frozen=True)
class Within:
    """low <= value <= high, for a number or for both ends of a rising interval"""

    low: float
    high: float

    def fault(self, value: Any) -> str | None:
        ends = value if isinstance(value, tuple) else (value, value)
        if self.low <= ends[0] <= ends[1] <= self.high:
            return None
        rising = ", the first no larger than the second" if isinstance(value, tuple) else ""
        return f"must lie within {self.low:g} and {self.high:g}{rising}"


@dataclass(frozen=True)
class Matches:
    """the whole string matches a regular expression, which the user is told in words"""

    pattern: str
    words: str

    def fault(self, value: Any) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"must be {self.words}"


Rule = Union[AtLeast, Above, Within, Matches]


class Expanded:
    """Marks a path: `~` and `$VAR` are expanded."""


Text = Annotated[str, Matches(r"\S(.*\S)?", "a name or a path, not empty")]
PathText = Annotated[Text, Expanded]
Count = Annotated[int, AtLeast(0)]
Positive = Annotated[int, AtLeast(1)]
Weight = Annotated[float, AtLeast(0)]


# --- the schema; meaning and unit of every key stand in config.yml ---------------------------------------------


@dataclass(frozen=True)
class RunConfig:
    dir: PathText
    seed: Annotated[int, Within(0, 2**63 - 1)]
    device: Annotated[str, Matches(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")]


@dataclass(frozen=True)
class DataConfig:
    train: PathText
    val: PathText
    val_pairs: Positive
    image_size: Annotated[int, Within(4, 4096)]
    crop_scale: Annotated[tuple[float, float], Within(0.01, 1)]
    workers: Count


@dataclass(frozen=True)
class MasksConfig:
    train_dir: PathText
    val_dir: PathText
    train_count: Positive
    val_count: Positive
    style: Literal["shapes", "strokes", "contours", "mixed"]
    hole_ratio: Annotated[tuple[float, float], Within(0.01, 0.6)]
    hole: HoleColour
    augment: bool
    dilate: Annotated[tuple[int, int], Within(0, 512)]


@dataclass(frozen=True)
class ModelConfig:
    depth: Annotated[int, Within(2, 12)]
    base_channels: Positive


@dataclass(frozen=True)
class LossWeights:
    valid: Weight
    hole: Weight
    perceptual: Weight
    style: Weight
    tv: Weight


@dataclass(frozen=True)
class LossConfig:
    vgg16: PathText
    weights: LossWeights


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["Adam", "AdamW", "SGD"]
    initial_lr: Annotated[float, Above(0)]
    finetune_lr: Annotated[float, Above(0)]
    momentum: Annotated[float, Within(0, 1)]
    weight_decay: Weight


@dataclass(frozen=True)
class TrainConfig:
    batch_size: Positive
    initial_steps: Count
    finetune_steps: Count
    settle_batches: Count
    log_every: Positive
    eval_every: Positive
    save_every: Positive
    keep_checkpoints: Positive


@dataclass(frozen=True)
class Config:
    run: RunConfig
    data: DataConfig
    masks: MasksConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig


def _impossible_together(config: Config) -> Iterator[str]:
    """Faults of values that are each possible but not together."""
    multiple = 2**config.model.depth
    if config.data.image_size % multiple:
        yield (
            f"data.image_size: {config.data.image_size} must be a multiple of {multiple} = 2**model.depth,"
            f" as the network halves it {config.model.depth} times; the nearest is"
            f" {max(multiple, round(config.data.image_size / multiple) * multiple)}"
        )
    if config.data.image_size == multiple and config.train.batch_size == 1:
        yield (
            f"train.batch_size: 1 leaves batch norm one value a channel to average at the deepest of model.depth ="
            f" {config.model.depth} levels; use at least 2, fewer levels, or a data.image_size above {multiple}"
        )
    if config.train.initial_steps + config.train.finetune_steps == 0:
        yield "train.initial_steps: 0 and train.finetune_steps: 0 leave nothing to train; one must be at least 1"
    if Path(config.masks.train_dir) == Path(config.masks.val_dir):
        yield f"masks.val_dir: {config.masks.val_dir!r} must be another folder than masks.train_dir"


# --- reading ---------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (PyYAML alone reads 2e-4 as a string), and no key twice in one section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506: _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{source}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, RecursionError) as error:  # such as the date 2024-99-99
        raise UserError(f"{source}: not valid YAML: {error}") from None


def load_config(path: str | Path = DEFAULT_CONFIG, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply `section.key=value` overrides, check everything.

    UserError lists all faults, a line each: dotted path, value, what is allowed, the nearest name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such config file: {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"not a text file in UTF-8: {path}") from None
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config has sections ({_names(Config)}), found {_shown(tree)}")
    for override in overrides:
        _apply_override(tree, override)
    return config_from_dict(tree, source=str(path))


def config_from_dict(tree: dict[str, Any], source: str) -> Config:
    """Check a nested dict of plain values against the schema. UserError lists all faults of it at once."""
    faults: list[str] = []
    config = _read_section(Config, tree, "", faults)
    if not faults:
        faults.extend(_impossible_together(config))
    if faults:
        head = f"{source}: " if len(faults) == 1 else f"{source}: {len(faults)} faults\n  "
        raise UserError(head + "\n  ".join(faults))
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts of plain values (lists, no tuples), as YAML and checkpoints hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved config as YAML; `load_config` reads it back to the same values."""
    text = yaml.safe_dump(config_to_dict(config), sort_keys=False, default_flow_style=None, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def _apply_override(tree: dict[Any, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"command line: {override!r} must have the form section.key=value, such as train.batch_size=4")
    *sections, key = name.split(".")
    for section in sections:
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise UserError(f"command line: {override!r}: {section!r} is not a section")
        tree = branch
    tree[key] = _parse_yaml(text, f"command line: {override!r}")


def _read_section(schema: Any, tree: Any, prefix: str, faults: list[str]) -> Any:
    """An instance of the dataclass `schema` from `tree`; what is wrong is added to `faults`."""
    if not isinstance(tree, dict):
        faults.append(f"{prefix[:-1]}: {_shown(tree)} must be a section with the keys {_names(schema)}")
        return None
    hints = get_type_hints(schema, include_extras=True)
    for key in tree:
        if key not in hints:
            faults.append(f"{prefix}{key}: unknown key with the value {_shown(tree[key])}; {_nearest(str(key), prefix)}")
    values = {}
    for key, hint in hints.items():
        if key not in tree:
            kind = "section" if dataclasses.is_dataclass(hint) else "key"
            faults.append(f"{prefix}{key}: missing {kind}; {_allowed(hint)}")
        elif dataclasses.is_dataclass(hint):
            values[key] = _read_section(hint, tree[key], f"{prefix}{key}.", faults)
        else:
            try:
                values[key] = _read_value(hint, tree[key])
            except ValueError as error:
                faults.append(f"{prefix}{key}: {_shown(tree[key])} {error}")
    return None if faults else schema(**values)


def _read_value(hint: Any, value: Any) -> Any:
    """`value` as the annotated type, or ValueError that says what is allowed."""
    rules: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        rules = tuple(extras)
    value = _typed(hint, value)
    if Expanded in rules:
        value = os.path.expanduser(os.path.expandvars(value))
        unset = re.search(r"\$(\w+|\{\w+\})", value)
        if unset:
            raise ValueError(f"names the environment variable {unset[0]}, which is not set")
    for rule in rules:
        fault = rule.fault(value) if isinstance(rule, Rule.__args__) else None  # type: ignore[attr-defined]
        if fault:
            raise ValueError(fault)
    return value


def _typed(hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
        close = difflib.get_close_matches(str(value), get_args(hint), n=1)
        raise ValueError(f"must be one of {', '.join(get_args(hint))}" + (f"; did you mean {close[0]}?" if close else ""))
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(get_args(hint)):
            raise ValueError(f"must be a list of {len(get_args(hint))} numbers")
        return tuple(_typed(kind, item) for kind, item in zip(get_args(hint), value))
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int and number and value == int(value):  # 2e5 steps are a whole number too
        return int(value)
    if hint is float and number:
        return float(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ValueError(f"must be {_TYPE_WORDS[hint]}")


_TYPE_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}


def _allowed(hint: Any) -> str:
    """In words what a missing value has to be."""
    if dataclasses.is_dataclass(hint):
        return f"it has the keys {_names(hint)}"
    rules: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        rules = tuple(extras)
    if get_origin(hint) is Literal:
        words = f"one of {', '.join(get_args(hint))}"
    elif get_origin(hint) is tuple:
        words = f"a list of {len(get_args(hint))} numbers"
    else:
        words = _TYPE_WORDS[hint]
    return f"it must be {words}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _names(schema: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(schema))


def _all_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(schema).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from _all_keys(hint, f"{prefix}{name}.")


def _nearest(key: str, prefix: str) -> str:
    """The known key that an unknown one most likely means: alike in spelling, or of the same name elsewhere."""
    known = list(_all_keys(Config))
    close = difflib.get_close_matches(prefix + key, known, n=1, cutoff=0.7)
    close = close or [name for name in known if name.rpartition(".")[2] == key]
    siblings = [name for name in known if name.rpartition(".")[0] == prefix[:-1]]
    close = close or difflib.get_close_matches(prefix + key, siblings, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known here: {', '.join(name.rpartition('.')[2] for name in siblings)}"
