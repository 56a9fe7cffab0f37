"""Data workers with a small /dev/shm: prefetched batches fit, and training continues."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import shared_memory
from data.loader import training_batches, validation_batches
from data.samples import training_samples, validation_pairs
from data.shared_memory import workers_that_fit
from tests.small_runs import arguments, make_data
from utils.config_files import load_config

PROJECT = Path(__file__).resolve().parent.parent
MB = 2**20


@pytest.fixture
def room(monkeypatch):
    """Return a function that sets the size of /dev/shm in bytes."""

    def set_room(size):
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=size // 4096, f_frsize=4096))

    return set_room


@pytest.mark.parametrize(
    ("size", "workers", "batch", "wanted"),
    [
        (1000 * MB, 4, MB, (4, 2)),
        (10 * MB, 4, MB, (4, 2)),
        (9 * MB, 4, MB, (4, 1)),
        (6 * MB, 4, MB, (4, 1)),
        (5 * MB, 4, MB, (3, 1)),
        (3 * MB, 4, MB, (1, 1)),
        (2 * MB, 4, MB, (0, 0)),
        (0, 4, MB, (0, 0)),
        (1000 * MB, 0, MB, (0, 0)),
    ],
)
def test_what_fits(room, size, workers, batch, wanted):
    room(size)
    assert workers_that_fit(workers, batch, 1) == wanted


def test_processes_of_one_machine_share_the_room(room, monkeypatch):
    room(20 * MB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers_that_fit(4, MB, 1) == (4, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers_that_fit(4, MB, 1) == (3, 1)


def test_a_system_without_it_is_no_limit(monkeypatch):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", Path("/nowhere"))
    assert workers_that_fit(4, MB, 0.1) == (4, 2)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_config_yml_fits_what_docker_gives(room, tmp_path, capsys):
    folder = make_data(tmp_path)
    config = load_config(overrides=arguments(folder, tmp_path / "run"))
    shipped = load_config()
    data = config.data.model_copy(update={"image_size": shipped.data.image_size, "workers": shipped.data.workers})
    train = config.train.model_copy(update={"batch_size": shipped.train.batch_size})
    config = config.model_copy(update={"data": data, "train": train})
    room(64 * MB)
    training = training_batches(training_samples(config), config, 0, 1)
    validation = validation_batches(validation_pairs(config), config)
    batch = shipped.train.batch_size * shipped.data.image_size**2 * 4
    ready = [loader.num_workers * loader.prefetch_factor + 2 for loader in (training, validation)]
    assert training.num_workers == 4
    assert validation.num_workers >= 1
    assert sum(ready) * batch < 64 * MB
    assert capsys.readouterr().err == ""
    room(16 * MB)
    assert training_batches(training_samples(config), config, 0, 1).num_workers == 0
    assert "data.workers: 0 instead of 4, since /dev/shm has 16 MB free" in capsys.readouterr().err


def own_shared_memory():
    """Return whether a process can have its own /dev/shm here."""
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /dev/shm"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not own_shared_memory(), reason="needs the right to mount a small /dev/shm")
@pytest.mark.parametrize(
    ("size", "told"), [("10m", ""), ("6m", "data.workers: "), ("1m", "data.workers: 0 instead of 2")]
)
def test_a_run_in_a_small_shared_memory(tmp_path, size, told):
    """Batches of 1 MB; training, validation and the averaging of statistics overlap."""
    folder = make_data(tmp_path)
    more = (
        "data.image_size=256",
        "train.batch_size=4",
        "data.workers=2",
        "phases.1.settle_batches=3",
        "data.val_pairs=9",
    )
    command = [sys.executable, "main.py", *arguments(folder, tmp_path / "run", *more, "train.eval_every=2")]
    words = " ".join(f"'{word}'" for word in command)
    script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && {words}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert told in done.stderr
