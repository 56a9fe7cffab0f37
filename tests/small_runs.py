"""Runs of a few steps on a CPU, without VGG-16, for tests of what a run folder goes through."""

import os
import shutil

import numpy as np
import torch
from PIL import Image

import main as training
from data.mask_files import write_mask
from training.run_folder import RunFolder
from utils.checkpoint import step_of

STEPS = 8  # four, then four of fine-tuning


def make_data(folder):
    """Four images and four masks of each kind."""
    rng = np.random.default_rng(0)
    for name in ("images", "train", "val"):
        (folder / name).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
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
    """The one error that a start which fails tells of."""
    capsys.readouterr()
    assert training.main([str(arg) for arg in args]) == 1
    text = capsys.readouterr().err
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    return text[text.index("error: ") :].strip()


def copy_of(run, path, step):
    """A copy of a run, as if it had been killed behind `step`."""
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


def weights(run):
    return torch.load(run.last, weights_only=True)["model"]


def same_weights(run, other):
    ours, theirs = weights(run), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def contents(folder):
    """Every file of a folder with its bytes, but for the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
