"""Imports run one way: scripts → training → evaluation → data, model, loss → utils; loss may import model.composite."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = ("main", "masks", "predict", "evaluate", "convert", "hubconf", "app", "build_site")

MAY_IMPORT = {
    "repair": {"evaluation", "data", "model", "utils"},
    "serving": {"serving", "repair", "evaluation", "data", "model", "utils"},
    "training": {"training", "evaluation", "data", "model", "loss", "utils"},
    "evaluation": {"evaluation", "data", "model", "loss", "utils"},
    "data": {"data", "utils"},
    "model": {"model", "utils"},
    "loss": {"model.composite", "utils"},
    "utils": {"utils"},
}
FILES = [
    *(PROJECT / f"{name}.py" for name in (*SCRIPTS, "loss", "repair")),
    *(
        path
        for folder in ("data", "evaluation", "model", "serving", "training", "utils")
        for path in sorted((PROJECT / folder).rglob("*.py"))
    ),
]


def imported(path):
    """Names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it goes"
            yield node.module


def first(name):
    return name.partition(".")[0]


def allowed(path):
    place = path.relative_to(PROJECT).parts[0].removesuffix(".py")
    return set(MAY_IMPORT) if place in SCRIPTS else MAY_IMPORT[place]


def forbidden(path):
    own = {*SCRIPTS, *MAY_IMPORT, "tests"}
    may = allowed(path)
    return {name for name in imported(path) if first(name) in own and not {name, first(name)} & may}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_run_one_way(path):
    assert not forbidden(path)


def test_the_test_can_fail(tmp_path, monkeypatch):
    (tmp_path / "utils").mkdir()
    upward = tmp_path / "utils" / "bad.py"
    upward.write_text("def f():\n    from model import load_model\n")
    monkeypatch.setattr("tests.test_structure.PROJECT", tmp_path)
    assert forbidden(upward) == {"model"}
