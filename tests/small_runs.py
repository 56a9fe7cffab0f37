"""Runs of a few steps on a CPU, without VGG-16, for tests of run folders."""

import json
import multiprocessing
import os
import resource
import shutil
import sys
import threading
import time

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import main as training
from data.mask_files import write_mask
from training.run_folder import RunFolder
from utils.checkpoint import step_of

STEPS = 8  # four, then four of fine-tuning
WITH_VGG = ("loss.weights.perceptual=0.05", "loss.weights.style=120")

# Separate processes that start quickly: they are forked from a server that has imported torch.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "cv2", "PIL.Image", "safetensors.torch", "tqdm", "torch.utils.tensorboard"])


def make_data(folder):
    """Write four images, four training masks and four validation masks. Returns the folder."""
    rng = np.random.default_rng(0)
    for name in ("images", "train", "val"):
        (folder / name).mkdir(parents=True)
    for i in range(4):
        small = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((50, 44), Image.Resampling.BICUBIC).save(folder / "images" / f"{i}.png")
        mask = np.ones((32, 32), np.uint8)
        mask[4 * i : 4 * i + 9, 8:24] = 0
        write_mask(folder / "train" / f"{i}.png", mask)
        write_mask(folder / "val" / f"{i}.png", mask.T)
    return folder


def arguments(folder, run, *more):
    return [
        f"run.dir={run}",
        "run.device=cpu",
        f"data.train={folder / 'images'}",
        f"data.val={folder / 'images'}",
        "data.val_pairs=2",
        "data.image_size=32",
        "data.workers=0",
        f"masks.train_dir={folder / 'train'}",
        f"masks.val_dir={folder / 'val'}",
        "model.depth=2",
        "model.base_channels=4",
        "loss.weights.perceptual=0",
        "loss.weights.style=0",
        "train.batch_size=2",
        "phases.0.steps=4",
        "phases.1.steps=4",
        "phases.1.settle_batches=1",
        "train.log_every=1",
        "train.eval_every=4",
        "train.save_every=1",
        "train.keep_checkpoints=100",
        *more,
    ]


def run_main(*args):
    assert training.main([str(arg) for arg in args]) == 0


def fails(capsys, *args):
    """Return the error of a start that fails. It must print exactly one, without a traceback."""
    capsys.readouterr()
    assert training.main([str(arg) for arg in args]) == 1
    text = capsys.readouterr().err
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    return text[text.index("error: ") :].strip()


# --- existing runs ---------------------------------------------------------------------------------------------------


def copy_of(run, path, step=STEPS):
    """Copy a run as if it had been killed after `step`."""
    copy = RunFolder(path)
    shutil.copytree(run.path, copy.path)
    copy.weights.unlink(missing_ok=True)
    for file in copy.checkpoints.iterdir():
        file.unlink()
    for done in range(step + 1):
        shutil.copy(run.checkpoints / f"step_{done:08d}.pt", copy.checkpoints)
    os.link(copy.checkpoints / f"step_{step:08d}.pt", copy.last)
    best = step_of(run.best)
    if best is not None and best <= step:
        shutil.copy(run.best, copy.best)
    return copy


def at_step(run, step):
    """Load the checkpoint of a step."""
    return torch.load(run.checkpoints / f"step_{step:08d}.pt", weights_only=True)


def weights(run):
    return torch.load(run.last, weights_only=True)["model"]


def same_weights(run, other):
    ours, theirs = weights(run), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def assert_same_weights(run, other):
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def records(run):
    """Return the records of metrics.jsonl, without the speed."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "train/images_per_second"} for line in lines]


def contents(folder):
    """Return the bytes of every file in a folder except the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


# --- runs in separate processes --------------------------------------------------------------------------------------


def _in_process(argv, output, largest_file, user, before):
    """Run main.py in this new process, optionally with a file size limit, as another user, after calling `before`."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the data workers, as in a process started by hand
    tqdm.set_lock(threading.RLock())  # the default lock is shared, and a killed process never releases it
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if before:
        before()
    code = training.main([str(arg) for arg in argv])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Started:
    """A running main.py. Its output goes to a file beside the run folder."""

    def __init__(self, run, *argv, largest_file=0, user=0, before=None):
        self.output = run.path.with_suffix(".txt")
        args = (argv, self.output, largest_file, user, before)
        self.process = PROCESSES.Process(target=_in_process, args=args)
        self.process.start()

    def send(self, signum):
        os.kill(self.process.pid, signum)

    def wait_for(self, holds, seconds=60):
        limit = time.monotonic() + seconds
        while not holds():
            assert self.process.is_alive(), self.text()
            assert time.monotonic() < limit, self.text()
            time.sleep(0.002)

    def text(self):
        return self.output.read_text() if self.output.exists() else ""

    def end(self):
        """Wait, and return the exit code; negative if a signal ended the process."""
        self.process.join(60)
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.process.close()
        return code
