"""The config: a typed schema without defaults, read from YAML and from `section.key=value` on the command line.

Values live in config.yml alone. To add a key: add a field below, and its value with a comment to config.yml
and to the files of configs/.

The schema is a tree of dataclasses. What a user gives is checked as a flat table from dotted paths such as
`train.batch_size` to values, so that every message can name the path and where its value came from.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from utils.errors import UserError
from utils.plain_yaml import format_yaml, parse_yaml

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "config.yml"


# --- rules that a value is held to, beyond its type ------------------------------------------------------------


class Rule(NamedTuple):
    """A test, and the words for it: they follow those for the type, as in "a whole number" + "of at least 1"."""

    words: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    return Rule(f"of at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    return Rule(f"above {low}", lambda value: value > low)


def within(low: float, high: float) -> Rule:
    return Rule(f"from {low} to {high}", lambda value: low <= value <= high)


def rising(low: float, high: float) -> Rule:
    words = f"from {low} to {high}, the first no larger than the second"
    return Rule(words, lambda pair: low <= pair[0] <= pair[1] <= high)


def matching(pattern: str, words: str) -> Rule:
    return Rule(words, lambda text: re.fullmatch(pattern, text) is not None)


class Expanded:
    """Marks a path: `~` and `$VAR` are expanded."""


# Neither control characters nor halves of surrogate pairs: no file can be named so, or no YAML can hold it.
_NAME = r"(?!\s)[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+(?<!\s)"

PathText = Annotated[str, Expanded, matching(_NAME, "that can name a file, not empty, without spaces around it")]
Count = Annotated[int, at_least(0)]
Positive = Annotated[int, at_least(1)]
Weight = Annotated[float, at_least(0)]
Share = Annotated[float, Rule("from 0 to less than 1", lambda value: 0 <= value < 1)]


# --- the schema; meaning and unit of every key stand in config.yml ---------------------------------------------


@dataclass(frozen=True)
class RunConfig:
    dir: PathText
    seed: Annotated[int, within(0, 2**63 - 1)]
    device: Annotated[str, matching("auto|cpu|cuda(:[0-9]+)?", "of the form auto, cpu, cuda or cuda:N")]


HoleColour = Literal["black", "white"]


@dataclass(frozen=True)
class DataConfig:
    train: PathText
    val: PathText
    val_pairs: Positive
    image_size: Annotated[int, within(16, 4096)]
    crop_scale: Annotated[tuple[float, float], rising(0.01, 1)]
    workers: Annotated[int, within(0, 256)]
    max_bad: Annotated[float, within(0, 1)]


@dataclass(frozen=True)
class MasksConfig:
    train_dir: PathText
    val_dir: PathText
    train_count: Positive
    val_count: Positive
    style: Literal["shapes", "strokes", "contours", "mixed"]
    hole_ratio: Annotated[tuple[float, float], rising(0.01, 0.6)]
    hole: HoleColour
    augment: bool
    dilate: Annotated[tuple[int, int], rising(0, 512)]


@dataclass(frozen=True)
class ModelConfig:
    depth: Annotated[int, within(2, 12)]
    base_channels: Annotated[int, within(1, 1024)]


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
    initial_lr: Annotated[float, above(0)]
    finetune_lr: Annotated[float, above(0)]
    momentum: Share
    weight_decay: Weight


@dataclass(frozen=True)
class TrainConfig:
    batch_size: Annotated[int, within(1, 65536)]
    accumulate: Positive
    amp: Literal["none", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    fused: bool
    ema_decay: Share
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


def _schema(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and annotation of every section and key of a dataclass, in order."""
    for name, hint in get_type_hints(section, include_extras=True).items():
        yield prefix + name, hint
        if dataclasses.is_dataclass(hint):
            yield from _schema(hint, f"{prefix}{name}.")


_SCHEMA = dict(_schema(Config))
_SECTIONS = {path: hint for path, hint in _SCHEMA.items() if dataclasses.is_dataclass(hint)}
_KEYS = {path: hint for path, hint in _SCHEMA.items() if path not in _SECTIONS}


# --- values that are each possible, but not together -----------------------------------------------------------


def _size_does_not_halve(size: int, depth: int) -> str | None:
    multiple = 2**depth
    if size % multiple == 0:
        return None
    nearest = max(multiple, round(size / multiple) * multiple)
    return f"must be a multiple of {multiple} = 2**model.depth, as the network halves it {depth} times; try {nearest}"


def _nothing_to_average(batch_size: int, accumulate: int, size: int, depth: int) -> str | None:
    if batch_size // accumulate > 1 or size > 2**depth:
        return None
    return (
        f"leaves batch norm one value a channel to average at the deepest of model.depth = {depth} levels;"
        f" it must be at least {2 * accumulate}, or data.image_size above {2**depth}, or model.depth smaller"
    )


def _unequal_parts(batch_size: int, accumulate: int) -> str | None:
    return None if batch_size % accumulate == 0 else f"must be a multiple of train.accumulate = {accumulate}"


def _no_steps(initial: int, finetune: int) -> str | None:
    return None if initial + finetune else "and train.finetune_steps = 0 leave nothing to train; one must be at least 1"


def _no_loss(*weights: float) -> str | None:
    return None if any(weights) else "like all other weights leaves nothing to learn from; one of them must be above 0"


def _one_folder(val_dir: str, train_dir: str) -> str | None:
    if os.path.realpath(val_dir) != os.path.realpath(train_dir):
        return None
    return "must be another folder than masks.train_dir: masks for training are not for validation"


# The keys whose values each rule is given. It says what is wrong with the first of them.
_TOGETHER: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("data.image_size", "model.depth"), _size_does_not_halve),
    (("train.batch_size", "train.accumulate"), _unequal_parts),
    (("train.batch_size", "train.accumulate", "data.image_size", "model.depth"), _nothing_to_average),
    (("train.initial_steps", "train.finetune_steps"), _no_steps),
    (tuple(path for path in _KEYS if path.startswith("loss.weights.")), _no_loss),
    (("masks.val_dir", "masks.train_dir"), _one_folder),
)


# --- reading and writing ---------------------------------------------------------------------------------------


class Given(NamedTuple):
    """A value of the config, and where it was read: the config file's path or the command line."""

    value: Any
    source: str


def load_config(path: str | Path = DEFAULT_CONFIG, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply `section.key=value` overrides, check everything.

    UserError lists all faults, a line each: source, dotted path, value, what is allowed, the nearest name.
    """
    tree = parse_yaml(_read_file(path), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config has the sections {_names(Config)}; found {_shown(tree)}")
    given = {name: Given(value, str(path)) for name, value in _leaves("", tree)}
    faults: list[str] = []
    for override in overrides:
        try:
            given.update((name, Given(value, "command line")) for name, value in _read_override(override))
        except UserError as error:
            faults.append(str(error))
    values = _checked(given, faults)
    faults.extend(_missing(given, str(path)))
    faults.extend(_impossible_together(values, given))
    if len(faults) > 1:
        faults.insert(0, f"{len(faults)} faults in the config:")
    if faults:
        raise UserError("\n  ".join(faults))
    return _assembled(Config, values)


def config_to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts of plain values (lists, no tuples), as YAML and checkpoints hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved config as YAML; `load_config` reads it back to the same values."""
    Path(path).write_text(format_yaml(config_to_dict(config)), encoding="utf-8")


# --- from what was given to checked values ---------------------------------------------------------------------


def _read_file(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such config file: {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8, as a config must be") from None
    except (OSError, ValueError) as error:  # a folder, no permission, a name that no file can have
        raise UserError(f"{path}: can't be read as a config: {getattr(error, 'strerror', None) or error}") from None


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of all that is given under `path` ("" is the whole config)."""
    if isinstance(value, dict) and (path == "" or path in _SECTIONS):
        for key, item in value.items():
            yield from _leaves(f"{path}.{_named(key)}" if path else _named(key), item)
    else:
        yield path, value


def _read_override(override: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of what a `section.key=value` gives; for a section={key: value, …} that is several.

    The value is YAML, but for a key that takes text: there it is the text, so that no path needs quotes.
    """
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise UserError(f"command line: {_shown(override)} must have the form section.key=value, as train.batch_size=4")
    path = ".".join(_named(key) for key in name.strip().split("."))
    takes_text = path in _KEYS and _unwrapped(_KEYS[path])[0] is str
    yield from _leaves(path, text if takes_text else parse_yaml(text, f"command line: {path}={_shown(text)}"))


def _checked(given: dict[str, Given], faults: list[str]) -> dict[str, Any]:
    """The values that are as they must be, by dotted path; what is wrong with the others is added to `faults`."""
    values = {}
    for path, (value, source) in given.items():
        if path in _KEYS:
            try:
                values[path] = _read_value(_KEYS[path], value)
            except ValueError as error:
                faults.append(f"{source}: {path}: {_shown(value)} {error}")
        elif path in _SECTIONS:
            faults.append(f"{source}: {path}: {_shown(value)} must be {_allowed(_SECTIONS[path])}")
        else:
            kind = "section" if isinstance(value, dict) else "key"
            faults.append(f"{source}: {path}: unknown {kind} with the value {_shown(value)}; {_nearest(path)}")
    return values


def _missing(given: dict[str, Given], source: str) -> Iterator[str]:
    """A fault for each section that has no keys, and each key that a section lacks."""
    begun = {start for path in given for start in itertools.accumulate(path.split("."), "{}.{}".format)}
    for path, hint in _SCHEMA.items():
        parent = path.rpartition(".")[0]
        if path not in begun and parent not in given and (not parent or parent in begun):
            yield f"{source}: {path}: missing; it must be {_allowed(hint)}"


def _impossible_together(values: dict[str, Any], given: dict[str, Given]) -> Iterator[str]:
    """Faults of values that are each possible but not together."""
    for paths, rule in _TOGETHER:
        if all(path in values for path in paths):
            fault = rule(*(values[path] for path in paths))
            if fault:
                sources = " and ".join(dict.fromkeys(given[path].source for path in paths))
                yield f"{sources}: {paths[0]}: {_shown(values[paths[0]])} {fault}"


def _assembled(schema: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """An instance of the dataclass `schema` with the values below a prefix."""
    fields = {}
    for field in dataclasses.fields(schema):
        path = prefix + field.name
        section = _SECTIONS.get(path)
        fields[field.name] = _assembled(section, values, f"{path}.") if section else values[path]
    return schema(**fields)


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of an annotation, and what `Annotated` adds to it."""
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        return kind, tuple(marks)
    return hint, ()


def _read_value(hint: Any, value: Any) -> Any:
    """`value` as the annotated type. ValueError says what is allowed, in words that follow the value."""
    kind, marks = _unwrapped(hint)

    def fits(typed: Any) -> bool:
        return typed is not None and all(mark.holds(typed) for mark in marks if isinstance(mark, Rule))

    typed = _typed(kind, value)
    if Expanded in marks and fits(typed):
        typed = _expanded(typed)
    if not fits(typed):
        close = difflib.get_close_matches(str(value), get_args(kind), n=1) if get_origin(kind) is Literal else []
        raise ValueError(f"must be {_allowed(hint)}" + (f"; did you mean {close[0]}?" if close else ""))
    return typed


def _typed(kind: Any, value: Any) -> Any:
    """The value as a Literal's choice, a tuple, bool, str, int or float; None where it is of another type."""
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        items = tuple(map(_typed, kinds, value)) if isinstance(value, list) and len(value) == len(kinds) else (None,)
        return None if None in items else items
    if kind in (bool, str):
        return value if isinstance(value, kind) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if kind is int:
        return int(value) if isinstance(value, int) or value.is_integer() else None  # 2e5 is a whole number too
    return float(value) if abs(value) <= sys.float_info.max else None  # neither infinite nor NaN


def _expanded(path: str) -> str:
    """The path with `~` and `$VAR` expanded. ValueError where one means nothing here."""
    path = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$(\w+|\{[^}]*\})", path)
    if unset:
        raise ValueError(f"names the environment variable {unset[0]}, which is not set")
    if path.startswith("~"):
        raise ValueError(f"begins with {path.split('/')[0]}, which is nobody's home; write ./~ for a file named so")
    return path


# --- words for messages ----------------------------------------------------------------------------------------

_TYPE_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def _allowed(hint: Any) -> str:
    """What a value or a section has to be."""
    if dataclasses.is_dataclass(hint):
        return f"a section with the keys {_names(hint)}"
    kind, marks = _unwrapped(hint)
    if get_origin(kind) is Literal:
        words = f"one of {', '.join(get_args(kind))}"
    elif get_origin(kind) is tuple:
        words = f"a list of {len(get_args(kind))} {_TYPE_WORDS[get_args(kind)[0]]}s"
    else:
        words = _TYPE_WORDS[kind] if kind is bool else f"a {_TYPE_WORDS[kind]}"
    return " ".join([words, *(mark.words for mark in marks if isinstance(mark, Rule))])


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 2, 3, 4, 60, 40, 60


def _shown(value: Any) -> str:
    """A value of the YAML in a message: on one line, not too long."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else _SHORT.repr(value)


def _named(key: Any) -> str:
    """A key as a part of a dotted path; with quotes where it looks unlike one."""
    return key if isinstance(key, str) and re.fullmatch(r"[\w-]+", key) else _shown(key)


def _names(schema: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(schema))


def _nearest(path: str) -> str:
    """The known name that an unknown one most likely means: alike in spelling, or of the same last part elsewhere."""
    parent, _, last = path.rpartition(".")
    siblings = [name for name in _SCHEMA if name.rpartition(".")[0] == parent]
    close = (
        difflib.get_close_matches(path, _SCHEMA, n=1, cutoff=0.8)
        or [name for name in _SCHEMA if name.rpartition(".")[2] == last]
        or difflib.get_close_matches(path, siblings, n=1, cutoff=0.7)
        or [name for name in _SCHEMA if len(last) > 1 and last in name.rpartition(".")[2]]
    )
    if close:
        return f"did you mean {close[0]}?"
    schema = _SECTIONS.get(parent, Config)
    return f"the {'keys' if parent in _SECTIONS else 'sections'} here are {_names(schema)}"
