"""Imports run one way: scripts → data, model, loss, evaluation → utils."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = ("main", "masks", "predict", "evaluate", "convert", "hubconf")
PARTS = ("data", "model", "loss", "evaluation")
FILES = [
    *(PROJECT / f"{name}.py" for name in (*SCRIPTS, "loss")),
    *(path for folder in ("data", "evaluation", "model", "utils") for path in sorted((PROJECT / folder).rglob("*.py"))),
]


def imported(path):
    """First names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it goes"
            yield node.module.partition(".")[0]


def allowed(path):
    place = path.relative_to(PROJECT).parts[0].removesuffix(".py")
    if place in SCRIPTS:
        return {*PARTS, "utils"}
    return {"utils"} if place == "utils" else {place, "utils"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_run_one_way(path):
    own = {*SCRIPTS, *PARTS, "utils", "tests"}
    assert {name for name in imported(path) if name in own} <= allowed(path)


def test_the_test_can_fail(tmp_path, monkeypatch):
    (tmp_path / "utils").mkdir()
    upward = tmp_path / "utils" / "bad.py"
    upward.write_text("def f():\n    from model import load_model\n")
    monkeypatch.setattr("tests.test_structure.PROJECT", tmp_path)
    assert not set(imported(upward)) <= allowed(upward)
