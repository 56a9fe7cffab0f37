"""A resumed run uses its stored lists of images and masks and reports missing files; only --rescan rebuilds them."""

import shutil

import numpy as np
import pytest

from data.mask_files import write_mask
from tests.small_runs import arguments, contents, copy_of, fails, make_data, run_main, same_weights
from training.run_folder import RunFolder
from utils.checkpoint import load_checkpoint

REACHED = 3


@pytest.fixture
def world(tmp_path):
    """Return separate data, a complete run, and the same run as if killed after REACHED steps."""
    folder = make_data(tmp_path / "data")
    # The held-out images are in another folder, so that either can change alone.
    shutil.copytree(folder / "images", folder / "val_images")
    straight = RunFolder(tmp_path / "straight")
    run_main(*arguments(folder, straight.path, f"data.val={folder / 'val_images'}", "data.max_bad=0.3"))
    return folder, straight, copy_of(straight, tmp_path / "run", REACHED)


def lists(run):
    return [path.read_bytes() for path in run.lists]


def rename(path, name):
    path.rename(path.with_name(name))


def add_mask(path):
    mask = np.ones((32, 32), np.uint8)
    mask[:8] = 0
    write_mask(path, mask)


COMES = {
    "an image": lambda folder: shutil.copy(folder / "images/0.png", folder / "images/00.png"),
    "a held-out image": lambda folder: shutil.copy(folder / "val_images/0.png", folder / "val_images/00.png"),
    "a mask": lambda folder: add_mask(folder / "train/00.png"),
    "a held-out mask": lambda folder: add_mask(folder / "val/00.png"),
}


@pytest.mark.parametrize("change", COMES.values(), ids=COMES)
def test_what_comes_changes_nothing(world, capsys, change):
    folder, straight, run = world
    before = lists(run)
    change(folder)
    capsys.readouterr()
    run_main("--resume", run.path)
    assert capsys.readouterr().err.count("has changed since this run began; the run keeps its list of 4") == 1
    assert lists(run) == before
    assert same_weights(run, straight)
    assert load_checkpoint(run.last)["best"] == load_checkpoint(straight.last)["best"]


GOES = {
    "all images": (
        "data.train",
        lambda folder: [rename(path, f"x{path.name}") for path in (folder / "images").iterdir()],
    ),
    "first, middle and last image": (
        "data.train",
        lambda folder: [(folder / f"images/{i}.png").unlink() for i in (0, 2, 3)],
    ),
    "the folder of images": ("data.train", lambda folder: rename(folder / "images", "gone")),
    "a held-out image": ("data.val", lambda folder: (folder / "val_images/0.png").unlink()),
    "a mask": ("masks.train_dir", lambda folder: (folder / "train/1.png").unlink()),
    "a held-out mask": ("masks.val_dir", lambda folder: rename(folder / "val/1.png", "7.png")),
    "the folder of masks": ("masks.train_dir", lambda folder: rename(folder / "train", "gone")),
}


@pytest.mark.parametrize(("key", "change"), GOES.values(), ids=GOES)
def test_what_is_missing_is_told_and_nothing_is_overwritten(world, capsys, key, change):
    folder, _, run = world
    change(folder)
    before = contents(run.path)
    line = fails(capsys, "--resume", run.path)
    assert line.startswith(f"error: {key}: ")
    assert "are missing, such as " in line
    assert "--rescan" in line
    assert contents(run.path) == before


def test_an_image_that_is_missing_is_told_and_replaced(world, capsys):
    folder, _, run = world
    before = lists(run)
    (folder / "images/2.png").unlink()
    capsys.readouterr()
    run_main("--resume", run.path)
    told = f"data.train: 1 of the run's 4 images are missing, such as {folder / 'images/2.png'}; others replace them"
    assert told in capsys.readouterr().err
    assert lists(run) == before


def test_images_of_a_text_file_that_are_missing_are_told(world, tmp_path, capsys):
    folder, _, _ = world
    (folder / "list.txt").write_text("".join(f"images/{i}.png\n" for i in range(4)))
    run = RunFolder(tmp_path / "listed")
    run_main(*arguments(folder, run.path, f"data.train={folder / 'list.txt'}"))
    for i in range(4):
        (folder / f"images/{i}.png").unlink()
    assert "data.train: 4 of the run's 4 images are missing" in fails(capsys, "--resume", run.path)


@pytest.mark.parametrize("key", ["data.train", "data.val", "masks.train_dir", "masks.val_dir"])
def test_another_source_needs_a_rescan(world, tmp_path, capsys, key):
    folder, straight, run = world
    other = shutil.copytree(folder / ("images" if "data" in key else "train"), folder / "other")
    rename(other / "0.png", "9.png")
    before = contents(run.path)
    line = fails(capsys, "--resume", run.path, f"{key}={other}")
    assert line.startswith(f"error: {key}: ")
    assert f"not from {other}; to change that, add --rescan" in line
    assert contents(run.path) == before
    run_main("--resume", run.path, f"{key}={other}", "--rescan")
    assert lists(run) != lists(straight)
    if "train" in key:
        assert not same_weights(run, straight)
    # The next resume needs no further option.
    run_main("--resume", run.path, "phases.1.steps=5")


def test_with_other_held_out_pairs_the_best_is_found_anew(world):
    folder, straight, _ = world
    assert load_checkpoint(straight.best)["step"] in (4, 8)
    run = copy_of(straight, straight.path.with_name("other"), 8)
    checkpoint = load_checkpoint(straight.best)
    assert checkpoint["best"] > 0
    shutil.copy(straight.best, run.best)
    for path in (folder / "val_images").iterdir():
        rename(path, f"x{path.name}")
    COMES["a held-out mask"](folder)
    run_main("--resume", run.path, "--rescan", "phases.1.steps=5", "phases.1.lr=1e-9")
    assert load_checkpoint(run.best)["step"] == 9  # although it is no better than the one on the previous pairs


def test_a_list_that_is_damaged_is_not_replaced(world, capsys):
    _, straight, run = world
    for path in run.lists:
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        before = contents(run.path)
        assert "again with --rescan" in fails(capsys, "--resume", run.path)
        assert contents(run.path) == before
        path.write_bytes(whole)
    run_main("--resume", run.path)
    assert same_weights(run, straight)


def test_a_run_of_before_it_kept_masks_lists_them_and_says_so(world, capsys):
    _, straight, run = world
    run.train_masks.unlink()
    run.val_masks.unlink()
    capsys.readouterr()
    run_main("--resume", run.path)
    assert capsys.readouterr().err.count("a new one is made") == 2
    assert same_weights(run, straight)
    assert load_checkpoint(run.last)["best"] == load_checkpoint(straight.last)["best"]
