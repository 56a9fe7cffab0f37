"""evaluate.py with mismatched pairs, images or folders, concurrent runs, and non-finite numbers."""

import csv
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from data.locking import locked
from data.mask_files import write_mask
from evaluation import scoring
from evaluation.baselines import FILLS
from evaluation.metrics import METRICS, hole_metrics, picture_metrics
from evaluation.report import terminal_table
from evaluation.results import ResultsFolder
from evaluation.summary import ALL, Key, Row, summarise
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
SIZE = 32  # px


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def world(tmp_path):
    """Write two images and three masks in one bin each."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        Image.fromarray(picture(number)).save(tmp_path / "images" / name)
    for number, side in enumerate((8, 13, 17)):
        mask = np.ones((SIZE, SIZE), np.uint8)
        mask[7 : 7 + side, 7 : 7 + side] = 0
        write_mask(tmp_path / "masks" / f"{number}.png", mask)
    return tmp_path


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Disable VGG-16, plots and gallery, which these tests do not need."""
    monkeypatch.setattr(scoring, "draw_plots", lambda *_: None)
    monkeypatch.setattr(scoring, "show", lambda *_: None)
    monkeypatch.setattr(scoring, "load_distances", lambda *_: lambda _: lambda _: {"perceptual": 0.0})


def run(world, *more, images="images", out="out"):
    arguments = ["--images", world / images, "--masks", world / "masks", "--out", world / out, "--device", "cpu"]
    return evaluate.main([str(item) for item in (*arguments, "--baseline", "mean", *more)])


def fails(capsys, *arguments, **options):
    capsys.readouterr()
    assert run(*arguments, **options) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    line = err.rstrip("\n").rpartition("\n")[2].rpartition("\r")[2]  # after the progress bars
    assert line.startswith("error: ")
    return line


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- pairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("bin", "0.5-0.6"),
        ("bin", ""),
        ("border", "any"),
        ("ratio", "nan"),
        ("ratio", "5"),
        ("ratio", "0.09"),
        ("ratio", "-1"),
        ("ratio", "inf"),
        ("mask", "1.png"),
        ("mask", "none.png"),
    ],
)
def test_pairs_that_contradict_the_masks(world, capsys, column, value):
    assert run(world) == 0
    rows = rows_of(world / "out" / "pairs.csv")
    assert rows[0]["mask"] == "0.png"
    rows[0][column] = value
    with (world / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "--pairs" in fails(capsys, world, "--pairs", world / "pairs.csv", out="other")
    assert not (world / "other").exists()


def test_pairs_as_they_were_are_taken(world):
    assert run(world) == 0
    pairs = world / "out" / "pairs.csv"
    assert run(world, "--pairs", pairs, out="other") == 0
    assert run(world, "--pairs", pairs, "--size", "64", out="larger") == 0
    assert rows_of(world / "other" / "results.csv") == rows_of(world / "out" / "results.csv")


def test_pairs_spelt_otherwise_than_the_disk(world):
    Image.fromarray(picture(7)).save(world / "images" / unicodedata.normalize("NFD", "é.png"))
    os.rename(world / "masks" / "0.png", world / "masks" / unicodedata.normalize("NFD", "ö.png"))
    assert run(world) == 0
    text = (world / "out" / "pairs.csv").read_text()
    (world / "pairs.csv").write_text(unicodedata.normalize("NFC", text))
    assert run(world, "--pairs", world / "pairs.csv", out="other") == 0
    (world / "list.txt").write_text("images/a.png\nimages/" + unicodedata.normalize("NFC", "é.png") + "\n")
    assert run(world, images="list.txt", out="listed") == 0


# --- the same names with other files -------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["another folder of images", "an image was changed", "a mask was changed"])
def test_scores_are_never_shown_for_other_files(world, capsys, which):
    assert run(world) == 0
    before = {path: path.read_bytes() for path in (world / "out").rglob("*") if path.is_file()}
    images = "images"
    if which == "another folder of images":
        shutil.copytree(world / "images", world / "others")
        Image.fromarray(picture(5)).save(world / "others" / "b.png")
        images = "others"
    elif which == "an image was changed":
        Image.fromarray(picture(5)).save(world / "images" / "b.png")
    else:
        mask = np.ones((SIZE, SIZE), np.uint8)
        mask[6:14, 7:15] = 0  # same ratio, bin and border
        write_mask(world / "masks" / "0.png", mask)
    assert "other contents" in fails(capsys, world, images=images)
    assert {path: path.read_bytes() for path in (world / "out").rglob("*") if path.is_file()} == before


def test_the_same_files_in_another_place_go_on(world, capsys):
    assert run(world) == 0
    shutil.move(world / "images", world / "moved")
    assert run(world, images="moved") == 0


def test_images_are_not_their_own_masks(world, capsys):
    shutil.copytree(world / "masks", world / "m")
    arguments = ["--images", world / "m", "--masks", world / "m", "--out", world / "out", "--baseline", "mean"]
    assert evaluate.main([str(item) for item in arguments]) == 1
    assert "the folder of the images" in capsys.readouterr().err


# --- concurrent runs ---------------------------------------------------------------------------------------------


def test_a_folder_takes_one_evaluation_at_a_time(world, capsys):
    assert run(world) == 0
    with locked(world / "out"):
        assert "in use" in fails(capsys, world)
    assert run(world) == 0


def hold(path, ready, leave):
    with locked(path):
        ready.set()
        leave.wait(60)


def test_a_lock_is_seen_by_other_processes_and_ends_with_its_own(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "folder", ready, leave))
    process.start()
    assert ready.wait(60)
    with pytest.raises(UserError, match="in use"), locked(tmp_path / "folder"):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / "folder"):
        assert list((tmp_path / "folder").iterdir()) == []
    assert (tmp_path / "folder").exists()  # this process did not create it


def test_no_mean_over_missing_rows(world, capsys, monkeypatch):
    monkeypatch.setattr(ResultsFolder, "rows", lambda self, rows=ResultsFolder.rows: rows(self)[1:])
    assert "1 of 6 rows of scores are missing" in fails(capsys, world)
    assert not (world / "out" / "summary.md").exists()


# --- non-finite numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_with_nan_scores_nan_and_not_the_best(value):
    truth = picture(0).astype(np.float32) / 255
    comp = truth.copy()
    comp[9, 9, 0] = value
    mask = np.ones((SIZE, SIZE), np.uint8)
    mask[5:20, 5:20] = 0
    with np.errstate(invalid="ignore"):
        scores = {**picture_metrics(comp, truth), **hole_metrics(comp, truth, mask)}
    assert not any(
        np.isfinite(score) and METRICS[name].higher_is_better and score > 0 for name, score in scores.items()
    )
    assert np.isnan(picture_metrics(np.full_like(truth, np.nan), truth)["psnr"])
    assert picture_metrics(truth, truth)["psnr"] == 100


def test_a_mean_with_nan_is_nan_and_never_the_best():
    rows = [
        Row(pair, f"{pair}.png", "m.png", "0.1-0.2", "any", 0.15, method, {"psnr": score})
        for pair in range(6)
        for method, score in (("good", 20.0 + pair), ("broken", float("nan") if pair == 2 else 90.0))
    ]
    summary = summarise(rows)
    broken, good = (summary[Key(name, "psnr", ALL, ALL)] for name in ("broken", "good"))
    assert np.isnan(broken.mean)
    assert (broken.low, broken.high) == (None, None)
    assert good.low < good.mean < good.high
    for names in (["good", "broken"], ["broken", "good"]):
        table = terminal_table(summary, names)
        assert "22.50*" in table
        assert "nan*" not in table


def test_a_method_that_gives_nan_is_seen_in_all_files(world, capsys, monkeypatch):
    monkeypatch.setitem(FILLS, "mean", lambda image, mask: np.full_like(image, np.nan))
    with np.errstate(invalid="ignore"):
        assert run(world) == 0
    assert all(row["psnr"] == "nan" for row in rows_of(world / "out" / "results.csv"))
    summary = json.loads((world / "out" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert all(entry["mean"] is None for entry in summary["estimates"] if entry["metric"] == "psnr")
    assert "100.00" not in (world / "out" / "summary.md").read_text()


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_that_are_no_utf_8_in_a_terminal_that_knows_ascii_alone(world):
    shutil.copy(world / "images" / "a.png", os.fsencode(world / "images") + b"/\xff.png")
    shutil.copy(world / "images" / "a.png", world / "images" / "日本.png")
    out = os.fsdecode(os.fsencode(world) + b"/out\xfe")
    command = [sys.executable, PROJECT / "evaluate.py", "--images", world / "images", "--masks", world / "masks",
               "--out", out, "--baseline", "mean", "--device", "cpu"]  # fmt: skip
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert (Path(out) / "summary.md").exists()
