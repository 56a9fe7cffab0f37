"""Unwritable output and scarce resources: training continues without a terminal, any shortage is a one-line error."""

import errno
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from tests.small_runs import STEPS, arguments, make_data, run_main, same_weights
from training.run_folder import RunFolder
from utils.checkpoint import load_checkpoint
from utils.errors import UserError, reports_user_errors, shortage_of
from utils.output import optional_output, prepare_output
from utils.processes import pick_device, processes

PROJECT = Path(__file__).resolve().parent.parent


# --- stdout and stderr -------------------------------------------------------------------------------------------


class Full:
    """A stream on a full disk."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flush = fileno = write

    def __init__(self):
        self.flush = self.fileno = lambda: self.write("")


def test_training_goes_on_where_nothing_can_be_said(folder, straight, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        patch.setattr(sys, "stderr", Full())
        run_main(*arguments(folder, run.path))
    assert load_checkpoint(run.last)["step"] == STEPS
    assert same_weights(run, straight)


def test_a_stream_that_fails_leads_to_nowhere(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with optional_output():
            print("lost")
            print("lost, too", flush=True)
        print("no error any more", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [">/dev/full", "2>/dev/full", "| true", "2>&1 | true", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_script_that_can_not_write_ends_its_training(folder, straight, tmp_path, how):
    run = RunFolder(tmp_path / "run")
    command = " ".join(f"'{word}'" for word in [sys.executable, "main.py", *arguments(folder, run.path)])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {how}"], cwd=PROJECT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert run.weights.exists()
    assert run.config.exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_can_be_said_on_any_terminal(tmp_path, monkeypatch, encoding):
    path = tmp_path / "terminal"
    with open(path, "w", encoding=encoding) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        prepare_output()
        print("bild_ü_画_" + os.fsdecode(b"\xff") + " 44×44")
    assert path.read_bytes().startswith(b"bild_")


@pytest.mark.slow
def test_names_that_are_no_utf8(folder, straight, tmp_path):
    """The run's folder and its image folder have names in another encoding."""
    data = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe4ta"))
    os.rename(make_data(tmp_path / "data"), data)
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"}

    def start(*args):
        command = [sys.executable, "main.py", *args]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, env=environment, timeout=300)
        assert b"Traceback" not in done.stderr, done.stderr
        return done

    done = start(*arguments(data, run))
    assert done.returncode == 1
    assert b"data.train" in done.stderr
    assert not run.exists()
    done = start(*arguments(folder, os.fsdecode(os.fsencode(run) + b"\xe4")))
    assert done.returncode == 1
    assert b"run.dir" in done.stderr
    moved = Path(os.fsdecode(os.fsencode(run) + b"\xe4"))
    copied = RunFolder(run)
    run_main(*arguments(folder, copied.path))
    os.rename(run, moved)
    done = start("--resume", str(moved), "phases.1.steps=5")
    assert done.returncode == 1
    assert b"UTF-8" in done.stderr


# --- scarce resources --------------------------------------------------------------------------------------------


def worker_error(text):
    return f"Caught an error in DataLoader worker process 0.\nTraceback (most recent call last):\n  x\n{text}\n"


SHORTAGES = {
    "memory of a CPU": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        "not enough memory",
    ),
    "memory of a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "not enough memory"),
    "memory of Python": (MemoryError(), "not enough memory"),
    "memory of the system": (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "not enough memory"),
    "memory of numpy": (
        MemoryError("Unable to allocate 1.00 TiB for an array with shape (1099511627776,) and data type uint8"),
        "not enough memory",
    ),
    "shared memory of torch": (
        RuntimeError("unable to write to file </torch_123_456_0>: No space left on device (28)"),
        "/dev/shm",
    ),
    "shared memory of a worker": (
        RuntimeError(worker_error("RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: (12)")),
        "/dev/shm",
    ),
    "files": (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "picture.png"), "ulimit -n"),
    "files of a worker": (OSError(worker_error("OSError: [Errno 24] Too many open files: '/x/1.png'")), "ulimit -n"),
    "files that are sent": (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
}


@pytest.mark.parametrize(("error", "words"), SHORTAGES.values(), ids=SHORTAGES)
def test_what_is_short_is_one_line(capsys, error, words):
    @reports_user_errors
    def main(argv=None):
        raise error

    assert main([]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert words in text
    assert text.count("\n") == 1


def test_other_errors_stay_what_they_are():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), UserError("out of memory"), ValueError()):
        assert shortage_of(error) is None

    @reports_user_errors
    def main(argv=None):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        main([])


@pytest.mark.parametrize("name", ["cuda:999", "cuda:99999999999999999999", "cuda:x", "nothing", "cuda:-1", ""])
def test_a_device_that_is_not_there(name):
    with pytest.raises(UserError, match=f"no device {name:.20}"):
        pick_device(name)


ENVIRONMENTS = {
    "alone": {"WORLD_SIZE": "2"},
    "without an address": {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"},
    "no number": {"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    "nothing": {"WORLD_SIZE": "0"},
    "a port that is none": {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"},
    "a rank too high": {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    "an address that is none": {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "no.where.invalid", "MASTER_PORT": "1"},
}


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_stray_world_size_is_one_line(monkeypatch, environment):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="unset WORLD_SIZE"), processes(timedelta(seconds=1)):
        raise AssertionError("not to be reached")
