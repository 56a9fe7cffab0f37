"""Imports run one way: scripts → training → evaluation → data, model, loss → utils; loss may import model.composite.

Also checks size: few imports inside functions, no long functions, a small utils/.
"""

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
    """Yield the names of all modules that a file imports, also inside functions."""
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


# --- size --------------------------------------------------------------------------------------------------------

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
CODE = [*FILES, *sorted((PROJECT / "benchmarks").glob("*.py"))]


def functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, FUNCTIONS)]


def lines(node):
    return node.end_lineno - node.lineno + 1


def test_few_imports_stand_inside_functions():
    """Only modules that are slow to import or optional are imported there."""
    inside = {
        (path.name, node.lineno)
        for path in CODE
        for function in functions(path)
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert 0 < len(inside) <= 20, sorted(inside)


def test_no_function_is_long():
    long = {(path.name, node.name): lines(node) for path in CODE for node in functions(path) if lines(node) > 70}
    assert long.keys() == {("main.py", "train")}
    assert long["main.py", "train"] <= 90
    (train,) = (node for node in functions(PROJECT / "main.py") if node.name == "train")
    loops = [lines(node) for node in ast.walk(train) if isinstance(node, ast.For)]
    assert max(loops) <= 50


def test_utils_stays_small():
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (PROJECT / "utils").glob("*.py"))
    assert count <= 1400
