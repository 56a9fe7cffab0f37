"""The networks of `--model`. Imports nothing large, so that scripts report a wrong path at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evaluation.baselines import FILLS
from utils.arguments import DEFAULT_WEIGHTS
from utils.errors import UserError


def name_models(models: Sequence[str]) -> dict[str, Path]:
    """Return paths of checkpoints by name. models: arguments [NAME=]CKPT; `shipped` is the project's own weights.

    Without NAME the name is FOLDER/FILE without its suffix. Raises UserError if a file is missing or two methods have
    the same name.
    """
    named: dict[str, Path] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if text == "shipped":
            name, path = text, str(DEFAULT_WEIGHTS)
        elif not equals or Path(text).exists():
            name, path = "", text
        checkpoint = Path(os.path.expanduser(path))
        if not checkpoint.is_file():
            raise UserError(f"--model: no such file: {checkpoint if path else repr(text)}")
        name = name.strip() or "/".join(checkpoint.absolute().with_suffix("").parts[-2:])
        if name in named or name in FILLS:
            raise UserError(f"--model: two methods are called {name!r}; give a name: --model NAME={path}")
        named[name] = checkpoint
    return named
