"""The commands in README.md and docs/ are valid for their scripts; those of the README run in order."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.config_files import DEFAULT_CONFIG, load_config

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
WITH_CONFIG = ("main", "masks")


def blocks(page, *languages):
    """Return the fenced blocks of a page in one of the languages;  is a block without one."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for language, text in found if language.strip() in languages]


def lines_of(text):
    """Return the commands of a block as words, without comments. Lines ending in a backslash are joined."""
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := split(line))]


def split(text):
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # an unbalanced quotation mark: prose, or another language
        return []


def commands(page):
    """Return (words, whether in a fenced block) for every command of a page: those of fenced blocks first."""
    in_blocks = [words for text in blocks(page, "", "sh", "bash") for words in lines_of(text)]
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    inline = [split(text) for text in re.findall(r"`([^`\n]+)`", prose)]
    return [*((words, True) for words in in_blocks), *((words, False) for words in inline)]


def script_and_arguments(words):
    """Return (script, its arguments) for a command of this project, else None."""
    if words[:1] in (["python"], ["torchrun"], ["srun"]) and "-m" not in words[:2]:
        for place, word in enumerate(words[1:], start=1):
            if re.fullmatch(r"\w+\.py", word):
                return word.removesuffix(".py"), words[place + 1 :]
    return None


CASES = [
    pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:100])
    for page in PAGES
    for words, _ in commands(page)
    if script_and_arguments(words) and not any(mark in " ".join(words) for mark in ("…", "$"))
]


@pytest.mark.parametrize("words", CASES)
def test_a_script_takes_what_the_pages_say(words):
    name, arguments = script_and_arguments(words)
    assert (PROJECT / f"{name}.py").is_file()
    if not arguments and name not in WITH_CONFIG:
        return  # refers to the script itself
    try:
        args = importlib.import_module(name).parse_arguments(arguments)
    except SystemExit:
        pytest.fail(f"{name}.py does not take {arguments}")
    if name in WITH_CONFIG and not getattr(args, "resume", None):
        config = PROJECT / args.config if args.config else DEFAULT_CONFIG
        load_config(config, args.overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_files_and_links_are_there(page):
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for words, _ in commands(page):
        if words[:1] == ["make"] and len(words) > 1:
            assert re.search(rf"^{re.escape(words[1])}:", makefile, re.M), words
        if words[:3] == ["pip", "install", "-r"]:
            assert (PROJECT / words[3]).is_file(), words
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_pages_have_commands():
    """Ensures that the tests above are not vacuous after a change of format."""
    scripts = {
        script_and_arguments(words)[0] for page in PAGES for words, _ in commands(page) if script_and_arguments(words)
    }
    assert {"main", "masks", "predict", "evaluate", "convert"} <= scripts
    assert any(in_block for words, in_block in commands(PAGES[0]) if script_and_arguments(words))


def test_python_of_the_readme_runs():
    image, mask = torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)
    mask[..., 10:20, 10:20] = 0
    for text in blocks(PAGES[0], "python"):
        names = {"image": image, "mask": mask}
        exec(compile(text, "README.md", "exec"), names)
        if "result" in names:
            assert names["result"].shape == image.shape


SMALLER = {  # overrides that shorten the README's commands
    "masks": ["masks.train_count=6", "masks.val_count=3", "masks.size=64"],
    "main": [
        *("phases=[{steps: 2, lr: 1e-4}]", "model.depth=3", "model.base_channels=2", "train.batch_size=2"),
        *("data.workers=0", "data.image_size=32", "data.val_pairs=2", "run.device=cpu"),
    ],
}


@pytest.mark.slow
def test_commands_of_the_readme_run_in_their_order(tmp_path):
    """Runs them in a small copy of the project, without make, which would install the environment first."""
    project = tmp_path / "project"
    shutil.copytree(
        PROJECT,
        project,
        ignore=shutil.ignore_patterns(".git", ".venv", "runs", "datasets", "tests", "node_modules", ".*"),
    )
    for name in ("train", "val"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for image in ("astronaut.png", "coffee.png", "chelsea.png"):
            shutil.copy(str(resources.files("skimage") / "data" / image), tmp_path / "photos" / name)
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = []
    for words in (words for text in blocks(PROJECT / "README.md", "", "sh", "bash") for words in lines_of(text)):
        if not (found := script_and_arguments(words)) or found[0] not in ("masks", "main", "predict", "evaluate"):
            continue
        name, arguments = found
        smaller = [] if "--resume" in arguments else SMALLER.get(name, [])
        command = [sys.executable, f"{name}.py", *(os.path.expanduser(word) for word in arguments), *smaller]
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        ran.append(name)
    assert {"predict", "masks", "main"} <= set(ran)
    assert np.count_nonzero([path.suffix == ".safetensors" for path in (project / "runs").rglob("*")]) >= 1
