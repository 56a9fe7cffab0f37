"""Read a `Config` (utils/config.py) from YAML files and `section.key=value` arguments, and write it as YAML.

A config is a stack of layers, each a source and a tree of values; the last layer that sets a value wins. config.yml is
the bottom layer. Other config files are overlays that contain only what differs.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import reprlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from utils.config import TYPES, Config, conflicts
from utils.errors import UserError
from utils.plain_yaml import format_yaml, parse_yaml

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "config.yml"

CONFIG_NAME = "config.yml"  # of the resolved config in a run folder

# Values of keys that did not exist when an older run began. They keep its behaviour unchanged.
AS_BEFORE = {
    "model.base": "none",
    "loss.weights.hole_l2": 0,
    "data.crop_unit": "area",
    "masks.crop": "fit",
    "masks.outlines": 0.0,
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

# Keys of the versions before `phases`.
_OLDER = {f"train.{key}" for key in ("initial_steps", "finetune_steps", "settle_batches")}
_OLDER |= {"optim.initial_lr", "optim.finetune_lr"}

Layers = list[tuple[str, Any]]  # (source, tree)

_SECTIONS = {path.rpartition(".")[0] for path in TYPES} | {"phases"}


def load_config(path: str | Path = DEFAULT_CONFIG, overrides: Sequence[str] = (), resume: bool = False) -> Config:
    """Read a config file, apply `section.key=value` overrides and validate the result.

    resume: the file is the complete config of a run, not an overlay. Keys newer than the run get their AS_BEFORE value.
    Raises UserError listing all faults, one per line: source, dotted path, value, what is allowed, nearest key.
    """
    own, source = _read_file(path), str(path)
    layers: Layers = [(source, own)]
    if resume:
        for name, value in _newer(own).items():
            layers.insert(0, (source, _nested(name, value)))
            meaning = f"which is newer than the run; it continues with {value}, as before"
            print(f"{source}: without {name}, {meaning}", file=sys.stderr)
    elif os.path.realpath(path) != str(DEFAULT_CONFIG):
        layers.insert(0, (str(DEFAULT_CONFIG), _read_file(DEFAULT_CONFIG)))
    faults = []
    for override in overrides:
        try:
            layers.append(("command line", _tree_of(override)))
        except UserError as error:
            faults.append(f"command line: {error}")
    return _checked(layers, faults)


def config_of_run(tree: Any, source: str) -> Config:
    """Return the config stored in a checkpoint. Keys newer than the run get their AS_BEFORE value.

    source: the checkpoint, for messages. Raises UserError if the config is missing or invalid.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{source}: holds no config")
    newer = [(source, _nested(name, value)) for name, value in _newer(tree).items()]
    return _checked([*newer, (source, tree)], [])


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the config as nested dicts of plain values (lists, no tuples), as stored in YAML and checkpoints."""
    return config.model_dump(mode="json", exclude_none=True)


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved config as YAML. `load_config(path, resume=True)` reads the same values back."""
    Path(path).write_text(format_yaml(config_to_dict(config)), encoding="utf-8")


# --- layers --------------------------------------------------------------------------------------------------------


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8, as a config must be") from None
    except (OSError, ValueError) as error:  # missing, a folder, a name that no file can have
        raise UserError(f"{path}: can't be read as a config: {getattr(error, 'strerror', None) or error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config has the sections {', '.join(Config.model_fields)}; found {_shown(tree)}")
    return tree


def _tree_of(override: str) -> dict[str, Any]:
    """Return the tree of a `section.key=value`. The value is parsed as YAML, but for string keys taken literally."""
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
        raise UserError(f"{_shown(override)} must have the form section.key=value, such as train.batch_size=4")
    return _nested(name, text if TYPES.get(name) is str else parse_yaml(text, f"{name}={_shown(text)}"))


def _newer(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the AS_BEFORE entries missing from the config of a run, except in sections that are missing entirely."""
    present = {name: value for name, value in AS_BEFORE.items() if name.split(".")[0] in tree}
    return {name: value for name, value in present.items() if not _gives(tree, name)}


def _nested(path: str, value: Any) -> Any:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _merged(base: Any, other: Any, path: str = "") -> Any:
    """Return `base` updated with `other`, recursively for sections and phases. Other values replace those in `base`.

    `base` is not modified, since a YAML alias may share it.
    """
    if not isinstance(other, dict) or re.sub(r"\.[0-9]+", ".0", path) not in _SECTIONS:
        return other
    if path == "phases" and isinstance(base, list):  # phases.0.lr=1e-3
        phases = {str(number): phase for number, phase in enumerate(base)}
        for key in other.keys() - phases.keys():
            raise UserError(f"phases.{key}: no such phase among the {len(phases)} of the config")
        return [*_merged(phases, other, path).values()]
    below = base if isinstance(base, dict) else {}
    return below | {key: _merged(below.get(key), other[key], f"{path}.{key}".lstrip(".")) for key in other}


def _gives(tree: Any, path: str) -> bool:
    """Return whether a layer sets the value at a path, or replaces a section around it by something else."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return not isinstance(tree, dict)
        tree = tree[key]
    return True


# --- validation --------------------------------------------------------------------------------------------------


def _checked(layers: Layers, faults: list[str]) -> Config:
    """Merge and validate the layers. Raises UserError listing `faults` and all that are found."""
    tree: dict[str, Any] = {}
    for source, layer in layers:
        try:
            tree = _merged(tree, layer)
        except UserError as error:
            faults.append(f"{source}: {error}")
    config = None
    try:
        config = Config.model_validate(tree)
        found = list(conflicts(config))
    except ValidationError as error:
        found = [_fault(item) for item in error.errors(include_url=False)]
    for keys, text in found:
        sources = dict.fromkeys(_source(key, layers) for key in keys)
        fault = f"{' and '.join(sources)}: {keys[0]}: {text}"
        if keys[0] in _OLDER:  # report only the first
            raise UserError(f"{fault} of an older version: its two phases are now the list `phases`, see config.yml")
        faults.append(fault)
    if config is None or faults:
        faults = [*dict.fromkeys(faults)]
        raise UserError("\n  ".join([f"{len(faults)} faults in the config:"][: len(faults) - 1] + faults))
    return config


def _source(path: str, layers: Layers) -> str:
    """Return the source that set the value at a path, or else the one of the enclosing section."""
    while path:
        for source, tree in reversed(layers):
            if _gives(tree, path):
                return source
        path = path.rpartition(".")[0]
    return layers[0][0]


# Patterns in pydantic's messages and their replacements for readers who write YAML.
_WORDS = {
    "^Value error, ": "",
    "^(Input|Tuple) should": "must",
    "valid tuple": "list",
    r"valid dictionary or instance of \w+": "section with keys",
}


def _fault(item: Any) -> tuple[tuple[str], str]:
    """Return the path and description of a pydantic error."""
    path = ".".join(str(key) for key in item["loc"] if key != "[key]")  # [key]: the key is invalid, not its value
    if item["type"] == "missing":
        return (path,), "is missing"
    rule = item["msg"]
    for theirs, ours in _WORDS.items():
        rule = re.sub(theirs, ours, rule)
    if item["type"] == "extra_forbidden":
        return (path,), "is a key" if path in _OLDER else f"unknown key; {_nearest(path)}"
    return (path,), f"{_shown(item['input'])} {rule}"


def _nearest(path: str) -> str:
    """Suggest the known key with the most similar spelling, from this section if possible."""
    section, _, key = re.sub(r"\.[0-9]+\.", ".0.", path).rpartition(".")
    known = [name.rpartition(".") for name in TYPES]
    here = [name for name in known if name[0] == section]
    close = difflib.get_close_matches(key, [name[2] for name in known], n=1, cutoff=0.7)
    meant = [name for name in here if name[2] in close] or [name for name in known if name[2] in close]
    if meant:
        return f"did you mean {' or '.join(map(''.join, meant))}?"
    return f"the keys here are {', '.join(name[2] for name in here)}"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring = 2, 3, 4, 60


def _shown(value: Any) -> str:
    """Format a value for a message: on one line and shortened."""
    return json.dumps(value) if value is None or isinstance(value, bool) else _SHORT.repr(value)
