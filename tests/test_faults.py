"""Kills, full disks, damaged files and concurrent runs do nothing to a run folder that a resume cannot repair."""

import contextlib
import functools
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import predict
import training
from model import load_model
from tests.small_runs import (
    PROCESSES,
    STEPS,
    Started,
    arguments,
    copy_of,
    fails,
    records,
    run_main,
)
from training.run_folder import RunFolder, _link_or_copy
from utils import files
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent


def assert_same_run(run, other):
    assert run.weights.read_bytes() == other.weights.read_bytes()
    assert records(run) == records(other)
    assert_same_checkpoint(run.last, other.last)
    assert_same_checkpoint(run.best, other.best)


def assert_same_checkpoint(path, other):
    ours, theirs = load_checkpoint(path), load_checkpoint(other)
    assert (ours["step"], ours["best"]) == (theirs["step"], theirs["best"])
    ours, theirs = pickle.dumps(plain(ours["model"])), pickle.dumps(plain(theirs["model"]))
    assert ours == theirs


def plain(state):
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def temporaries(run):
    return [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]


# --- kills and signals -------------------------------------------------------------------------------------------


def has_record(run, step):
    return run.metrics.exists() and f'{{"step": {step}, ' in run.metrics.read_text()


@pytest.mark.slow
def test_killed_at_thirty_moments_a_run_ends_as_if_never_interrupted(folder, tmp_path):
    # Few steps before fine-tuning for slow machines, many in total for fast ones.
    steps = ("phases.0.steps=20", "phases.1.steps=580", "train.eval_every=37", "train.keep_checkpoints=3")
    straight, run = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "run")
    run_main(*arguments(folder, straight.path, *steps))
    rng = random.Random(0)
    writing = kills = 0
    while kills < 30:
        begun = run.config.exists()
        started = Started(run, *(("--resume", run.path) if begun else arguments(folder, run.path, *steps)))
        if kills % 3 == 0:  # at any moment after the first import, but before a fast machine has done too many steps
            latest, furthest = time.monotonic() + rng.uniform(0, 3), 20 * (kills + 1)
            while time.monotonic() < latest and not has_record(run, furthest):
                time.sleep(0.005)
        else:  # during training; every other time, as soon as a file is being written
            before = len(run.metrics.read_bytes()) if run.metrics.exists() else 0
            started.wait_for(lambda before=before: run.metrics.exists() and len(run.metrics.read_bytes()) > before)
            time.sleep(rng.uniform(0, 0.1))
            if kills % 3 == 1:
                started.wait_for(lambda: any(run.checkpoints.glob(".*.tmp")))
        started.process.kill()
        code = started.end()
        assert code == -signal.SIGKILL, "the run was over before the last kill"
        kills += 1
        writing += any(run.checkpoints.glob(".*.tmp"))
        for path in run.checkpoints.glob("*.pt"):
            load_checkpoint(path)
    step = load_checkpoint(run.last)["step"]
    assert 20 < step < 600
    print(f"{kills} kills, {writing} of them while a checkpoint was written, the last at step {step}")
    assert writing > 0
    run_main("--resume", run.path)
    assert_same_run(run, straight)
    assert not temporaries(run)


@pytest.mark.slow
def test_memory_does_not_grow(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    more = ("phases.0.steps=2050", "phases.1.steps=0", "data.image_size=16", "train.batch_size=1")
    more += ("train.log_every=10", "train.eval_every=50", "train.save_every=50", "train.keep_checkpoints=2")
    started = Started(run, *arguments(folder, run.path, *more))
    resident = {}
    for step in (200, 2000):
        limit = time.monotonic() + 300
        while not has_record(run, step):
            assert started.process.is_alive(), started.text()
            assert time.monotonic() < limit
            time.sleep(0.05)
        pages = int(Path(f"/proc/{started.process.pid}/statm").read_text().split()[1])
        resident[step] = pages * resource.getpagesize() / 1e6
    assert started.end() == 0
    print({step: f"{size:.1f} MB" for step, size in resident.items()})
    assert resident[2000] < 1.05 * resident[200]


def interrupt_validation(*signals):
    """Send these signals whenever a validation begins."""
    validate = training.validate

    def interrupted(*args):
        for signum in signals:
            os.kill(os.getpid(), signum)
        return validate(*args)

    training.validate = interrupted


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_a_signal_during_validation(folder, straight, tmp_path, signals):
    run = RunFolder(tmp_path / "run")
    words = arguments(folder, run.path, "train.save_every=3")
    started = Started(run, *words, before=functools.partial(interrupt_validation, *signals))
    if len(signals) > 1:  # the second acts immediately
        assert started.end() == -signal.SIGTERM
        assert "val/" not in run.metrics.read_text()
        assert load_checkpoint(run.last)["step"] == 3
    else:
        assert started.end() == 128 + signal.SIGINT
        assert "val/" in run.metrics.read_text()  # it was completed, and the next step is the last
        assert load_checkpoint(run.last)["step"] == 5
        assert f"python main.py --resume {run.path}" in started.text()
    assert "Traceback" not in started.text()
    run_main("--resume", run.path)
    assert_same_run(run, straight)


# --- one run in a folder -----------------------------------------------------------------------------------------


def test_a_second_run_is_refused_while_the_first_lives(folder, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    more = ("data.workers=1", "phases.0.steps=1000")
    started = Started(run, *arguments(folder, run.path, *more))
    started.wait_for(lambda: has_record(run, 1))
    line = fails(capsys, "--resume", run.path)
    assert f"in use: process {started.process.pid} on {socket.gethostname()}" in line
    assert "is not empty" in fails(capsys, *arguments(folder, run.path, *more))
    # Its data worker survives for some seconds, which must not block the next run.
    started.send(signal.SIGKILL)
    while Path(f"/proc/{started.process.pid}").exists():
        time.sleep(0.01)
    step = load_checkpoint(run.last)["step"]
    run_main("--resume", run.path, f"phases.0.steps={step + 1}", "phases.1.steps=0", "data.workers=0")
    assert started.end() == -signal.SIGKILL


def test_two_runs_that_start_in_one_folder(folder, tmp_path, capsys):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.check_new()
    second.check_new()
    first.create()
    first.close()  # as if the process had ended
    first.metrics.touch()
    with pytest.raises(UserError, match="is not empty"):
        second.create()
    second.close()


def test_a_start_that_was_killed_is_no_obstacle(folder, straight, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.path / "lock").write_text("process 1 on elsewhere\n")
    (run.checkpoints / "step_00000000.pt").write_bytes(b"of another start")
    (run.checkpoints / ".last.pt.1.tmp").write_bytes(b"half")
    assert "config.yml does not exist" in fails(capsys, "--resume", run.path)
    run_main(*arguments(folder, run.path))
    assert_same_run(run, straight)
    assert not temporaries(run)
    other = RunFolder(tmp_path / "other")
    other.checkpoints.mkdir(parents=True)
    (other.checkpoints / "step_00000003.pt").write_bytes(b"precious")
    assert "is not empty" in fails(capsys, *arguments(folder, other.path))


def test_a_folder_that_can_only_be_read(folder, tmp_path):
    readable = all(path.stat().st_mode & 0o5 == 0o5 for path in (PROJECT, *PROJECT.parents))
    if os.getuid() == 0 and not readable:
        pytest.skip("root may write everywhere, and no other user may read the project")
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for path in (run.path, run.checkpoints, run.samples):
        path.chmod(0o555)
    with contextlib.ExitStack() as stack:
        if os.getuid() == 0:  # only root can access the temporary folders
            for path in (tmp_path, *tmp_path.parents, folder, *folder.parents):
                mode = path.stat().st_mode
                if mode & 0o5 != 0o5:
                    path.chmod(mode | 0o5)
                    stack.callback(path.chmod, mode)
        output = tmp_path / "run.txt"
        output.touch(0o666)
        started = Started(run, "--resume", run.path, "phases.1.steps=5", user=65534 if os.getuid() == 0 else 0)
        code = started.end()
    for path in (run.path, run.checkpoints, run.samples):
        path.chmod(0o755)
    assert code == 1, started.text()
    assert started.text().splitlines()[-1].startswith(f"error: Permission denied: {run.path}")
    assert "Traceback" not in started.text()
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


# --- full disks --------------------------------------------------------------------------------------------------


def test_no_room_for_a_checkpoint_ends_the_run(folder, straight, tmp_path):
    sizes = [(straight.checkpoints / f"step_{step:08d}.pt").stat().st_size for step in (0, 1)]
    run = RunFolder(tmp_path / "run")
    started = Started(run, *arguments(folder, run.path), largest_file=sum(sizes) // 2)  # too small for Adam's moments
    assert started.end() == 1
    (line,) = [line for line in started.text().splitlines() if line.startswith("error: ")]
    assert "the checkpoint of step 1 can't be written: File too large" in line
    assert "step_00000001.pt" in line
    assert "Traceback" not in started.text()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["last.pt", "step_00000000.pt"]
    assert load_checkpoint(run.last)["step"] == 0
    run_main("--resume", run.path)
    assert_same_run(run, straight)


def test_no_room_is_told_as_the_system_tells_it(tmp_path):
    process = PROCESSES.Process(target=_save_with_little_room, args=(tmp_path / "large.pt",))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    process.close()
    assert not list(tmp_path.iterdir())


def _save_with_little_room(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint(path, {"model": [torch.zeros(100_000)] * 2})  # torch raises its own error here
    except OSError as error:
        os._exit(0 if error.filename == str(path) else 1)
    os._exit(2)


def test_no_room_for_the_weights_of_a_finished_run(straight, tmp_path, capsys):
    run = copy_of(straight, tmp_path / "run")
    started = Started(run, "--resume", run.path, largest_file=straight.weights.stat().st_size // 2)
    assert started.end() == 1
    (line,) = [line for line in started.text().splitlines() if line.startswith("error: ")]
    assert line == f"error: File too large: {run.weights}"
    assert not run.weights.exists()
    assert not temporaries(run)


def test_no_room_for_logs_costs_a_warning_each(folder, straight, tmp_path):
    run = copy_of(straight, tmp_path / "run", step=2)
    limit = 2 * straight.last.stat().st_size
    kept = '{"step": 0, "filled": "' + "." * (limit - 450) + '"}\n'  # one more line fits, a second does not
    run.metrics.write_text(kept)
    (run.samples / "step_00000004.png").unlink()
    (run.samples / "step_00000004.png").mkdir()  # blocks the name for a file
    started = Started(run, "--resume", run.path, largest_file=limit)
    code = started.end()
    text = started.text()
    assert code == 0, text
    warnings = [line[line.index("warning: ") :] for line in text.splitlines() if "warning: " in line]
    assert warnings == [
        f"warning: metrics.jsonl can't be written; the run continues: File too large: {run.metrics}",
        f"warning: samples can't be written; the run continues: Is a directory: {run.samples / 'step_00000004.png'}",
    ]
    lines = run.metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][:2] == [0, 3]  # only complete lines
    assert len(lines) < 1 + len(records(straight)) - 2
    assert run.weights.read_bytes() == straight.weights.read_bytes()
    assert not temporaries(run)


def test_no_room_for_one_event_costs_no_other(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    run.samples.mkdir()
    process = PROCESSES.Process(target=_record_with_little_room, args=(run.path,))
    process.start()
    process.join(60)
    assert process.exitcode == 2  # the number of warnings
    process.close()
    run.close()
    points = EventAccumulator(str(run.path)).Reload().Scalars("train/total")
    assert [point.step for point in points] == list(range(1, 11))


def _record_with_little_room(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    run = RunFolder(path)
    sys.stderr = io.StringIO()
    for step in range(1, 11):
        run.record(step, "train", {"total": 1.0})
        if step in (3, 5):
            run.save_picture(step, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    os._exit(sys.stderr.getvalue().count("File too large"))


@pytest.mark.slow
def test_a_disk_that_is_full(folder, straight, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = int(6.5 * straight.last.stat().st_size) // 4096 * 4  # KB
    command = [sys.executable, "main.py", *arguments(folder, disk / "run")]
    script = f"mount -t tmpfs -o size={size}k none {disk} || exit 99"
    script += f'; "$@"; code=$?; cp -a {disk}/run {tmp_path}; exit $code'
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *command],
            cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare here, with which to mount a small disk")
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("only root may mount a small disk")
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "can't be written: No space left on device" in line
    assert "Traceback" not in done.stderr
    run = RunFolder(tmp_path / "run")
    assert not temporaries(run)
    steps = sorted(load_checkpoint(path)["step"] for path in run.checkpoints.glob("*.pt"))
    assert max(steps) > 0
    run_main("--resume", run.path)
    assert run.weights.read_bytes() == straight.weights.read_bytes()


# --- how files are written ---------------------------------------------------------------------------------------


def test_a_name_counts_when_file_and_folder_are_on_the_disk(tmp_path, monkeypatch):
    opened, calls = {}, []
    real_open, real_sync, real_replace = os.open, os.fsync, os.replace

    def record_open(path, *args, **kwargs):
        descriptor = real_open(path, *args, **kwargs)
        opened[descriptor] = Path(path)
        return descriptor

    monkeypatch.setattr(os, "open", record_open)
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("sync", opened[fd])), real_sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("name", Path(b))), real_replace(a, b)))
    path = tmp_path / "file"
    files.write_atomically(path, lambda temporary: temporary.write_text("new"))
    (first, temporary), second, third = calls
    assert first == "sync"
    assert temporary.parent == tmp_path
    assert temporary != path
    assert (second, third) == (("name", path), ("sync", tmp_path))
    assert path.read_text() == "new"


def test_what_a_killed_process_was_linking_is_not_written_into(tmp_path):
    older, newer = tmp_path / "step_1.pt", tmp_path / "step_2.pt"
    older.write_text("older")
    newer.write_text("newer")
    os.link(older, tmp_path / f".last.pt.{os.getpid()}.tmp")  # as a process with the same pid left it
    files.write_atomically(tmp_path / "last.pt", lambda temporary: _link_or_copy(newer, temporary))
    assert [path.read_text() for path in (older, newer, tmp_path / "last.pt")] == ["older", "newer", "newer"]


# --- damaged checkpoints -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """Return a small checkpoint."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    save_checkpoint(path, {"model": {"weight": torch.arange(5.0)}, "optimizer": {}, "step": 3, "config": {}})
    return path


def test_a_checksum_does_not_keep_others_from_reading(small_file):
    loaded = torch.load(small_file, weights_only=True)
    assert loaded["step"] == 3
    assert torch.equal(torch.load(small_file, weights_only=True, mmap=True)["model"]["weight"], torch.arange(5.0))
    with zipfile.ZipFile(small_file) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def test_no_byte_can_change_unnoticed(small_file, tmp_path):
    data = small_file.read_bytes()
    path = tmp_path / "flipped.pt"
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        with pytest.raises(UserError, match="flipped.pt"):
            load_checkpoint(path)


def test_no_end_can_be_missing(small_file, tmp_path):
    data = small_file.read_bytes()
    path = tmp_path / "short.pt"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match="short.pt"):
            load_checkpoint(path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


def cut(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_text(path):
    path.write_text("no checkpoint at all")


def replace_by_foreign(path):
    torch.save({"model": {"a": 1}, "optimizer": None, "step": "four", "config": {}}, path)


def replace_by_weights(path):
    torch.save(load_checkpoint(path)["model"], path)


def replace_by_code(path):
    checkpoint = load_checkpoint(path)
    torch.save({**checkpoint, "config": Malicious()}, path)


@pytest.mark.parametrize(
    "damage", [cut, empty, flip, replace_by_text, replace_by_foreign, replace_by_weights, replace_by_code]
)
def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(straight, tmp_path, monkeypatch, capsys, damage):
    monkeypatch.chdir(tmp_path)
    run = copy_of(straight, tmp_path / "run")
    damage(run.last)  # also damages step_00000008.pt, a hard link to it
    run_main("--resume", run.path)
    error = capsys.readouterr().err
    newest, next_newest = run.checkpoints / "step_00000008.pt", run.checkpoints / "step_00000007.pt"
    for path in (run.last, newest):
        (line,) = [line for line in error.splitlines() if "warning: " in line and str(path) in line]
        assert f"resuming from {next_newest}, step 7" in line
    assert not Path("made_by_a_checkpoint").exists()
    assert run.weights.read_bytes() == straight.weights.read_bytes()
    assert records(run) == records(straight)
    assert_same_checkpoint(newest, straight.last)


def test_no_whole_checkpoint(straight, tmp_path, capsys):
    run = copy_of(straight, tmp_path / "run", step=1)
    before = run.metrics.read_text()
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"")
    line = fails(capsys, "--resume", run.path)
    assert "no checkpoint is intact" in line
    assert all(name in line for name in ("last.pt", "step_00000001.pt", "step_00000000.pt"))
    assert run.metrics.read_text() == before


def test_a_flipped_checkpoint_repairs_no_picture(straight, tmp_path):
    path = tmp_path / "flipped.pt"
    shutil.copy(straight.last, path)
    flip(path)
    with pytest.raises(UserError, match="damaged: .*flipped.pt"):
        load_model(path)


def test_what_was_taken_back_goes(straight, tmp_path):
    run = copy_of(straight, tmp_path / "run")
    shutil.copy(run.checkpoints / "step_00000003.pt", tmp_path / "third.pt")
    os.replace(tmp_path / "third.pt", run.last)  # back to step 3, for a different end
    run_main("--resume", run.path, "phases.0.steps=4", "phases.1.steps=1", "train.keep_checkpoints=2")
    names = sorted(path.name for path in run.checkpoints.glob("step_*.pt"))
    assert names == ["step_00000004.pt", "step_00000005.pt"]


# --- best.pt -----------------------------------------------------------------------------------------------------


def test_the_best_stays_whatever_interrupts(folder, tmp_path):
    # The learning rate of the second phase undoes what the first has learnt.
    more = ("train.eval_every=1", "phases.0.lr=2e-3", "phases.1.lr=0.3")
    straight = RunFolder(tmp_path / "straight")
    run_main(*arguments(folder, straight.path, *more))
    errors = {line["step"]: line["val/l1_percent"] for line in records(straight) if "val/l1_percent" in line}
    best = min(errors, key=errors.__getitem__)
    assert 1 < best < STEPS - 1
    assert_same_checkpoint(straight.best, straight.checkpoints / f"step_{best:08d}.pt")
    assert load_checkpoint(straight.best)["best"] == errors[best]

    few = RunFolder(tmp_path / "few")
    run_main(*arguments(folder, few.path, *more, "train.keep_checkpoints=1"))
    assert sorted(path.name for path in few.checkpoints.iterdir()) == ["best.pt", "last.pt", "step_00000008.pt"]
    assert_same_checkpoint(few.best, straight.best)

    for step in (0, best, STEPS - 1):  # killed before, at and after the best
        run = copy_of(straight, tmp_path / f"killed_{step}", step)
        run_main("--resume", run.path)
        assert_same_run(run, straight)

    output = tmp_path / "repaired.png"
    argv = ["--image", folder / "images" / "0.png", "--mask", folder / "val" / "0.png", "--model", straight.best]
    Image.open(argv[1]).resize((32, 32)).save(tmp_path / "image.png")
    argv[1] = tmp_path / "image.png"
    assert predict.main([str(arg) for arg in [*argv, "--output", output]]) == 0
    assert output.exists()


def test_a_better_evaluation_is_saved_though_no_checkpoint_is_due(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path, "train.eval_every=2", "train.save_every=1000"))
    errors = {line["step"]: line["val/l1_percent"] for line in records(run) if "val/l1_percent" in line}
    assert load_checkpoint(run.best)["step"] == min(errors, key=errors.__getitem__)
