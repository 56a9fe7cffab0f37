"""The notebook runs, and its committed output matches the current code."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

NOTEBOOK = PROJECT / "notebooks/inpainting.ipynb"
LARGEST = 1.5e6  # bytes, outputs included


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def kinds(cell):
    """Return the kinds of output of a cell and, for images and pages, their media types."""
    return [(output["output_type"], sorted(output.get("data", {}))) for output in cell["outputs"]]


def test_committed_as_it_was_run_from_top_to_bottom():
    cells = code_cells(NOTEBOOK)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < LARGEST
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert str(PROJECT) not in text
    assert "site-packages" not in text  # no warnings or paths of the machine that ran it


def test_what_it_imports_of_the_project_is_there():
    lines = "".join("".join(cell["source"]) + "\n" for cell in code_cells(NOTEBOOK)).splitlines()
    tree = ast.parse("\n".join(line for line in lines if not line.startswith("%")))
    names = [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (PROJECT / node.module.split(".")[0]).exists()
        for alias in node.names
    ]
    assert len(names) > 5
    assert [name for name in names if not hasattr(importlib.import_module(name[0]), name[1])] == []


@pytest.mark.slow
def test_it_runs_and_shows_the_same_kinds_of_things():
    pytest.importorskip("nbmake", reason="nbmake is not installed (requirements-dev.txt)")
    copy = PROJECT / "runs/notebook_test/inpainting.ipynb"  # inside the project, which it searches for
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.parent.mkdir(parents=True)
    shutil.copyfile(NOTEBOOK, copy)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--nbmake",
        "--overwrite",
        "--nbmake-timeout=3600",  # the machine may be busy
    ]
    result = subprocess.run([*command, copy], cwd=copy.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    before, after = code_cells(NOTEBOOK), code_cells(copy)
    assert [kinds(cell) for cell in after] == [kinds(cell) for cell in before]
    shutil.rmtree(copy.parent)
