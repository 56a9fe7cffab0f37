"""docs/reliability.md: each row names existing tests and marks slow ones."""

import ast
import re
import shlex
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def commands():
    """Return (file, words of -k, whether -m slow) for the commands in the tables."""
    file, found = "", []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        for text in re.findall(r"`((?:test_\w+\.py|-m slow|-k)\b[^`]*)`", line) if line.startswith("|") else []:
            words = shlex.split(text)
            file = words[0] if words[0].endswith(".py") else file  # a second command in a row uses the same file
            wanted = words[words.index("-k") + 1].split(" or ") if "-k" in words else [""]
            found.append(pytest.param(file, wanted, "-m slow" in text, id=text))
    return found


def functions_of(file):
    """Return {name: its decorators, as text} of the tests in a file."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name: " ".join(ast.unparse(each) for each in node.decorator_list) for node in functions}


@pytest.mark.parametrize(("file", "words", "slow"), commands())
def test_a_command_of_the_page_runs_tests(file, words, slow):
    tests = functions_of(file)
    for word in words:
        chosen = [name for name in tests if word in name]
        assert chosen, word
        assert any("mark.slow" in tests[name] for name in chosen) == slow or word == ""


def test_the_page_has_commands():
    assert len(commands()) > 30
