"""Masks: the holes of each style, and masks.py in process and as a command."""

from __future__ import annotations

import collections
import csv
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import masks
from data.holes import draw_mask, spread_ratio
from data.mask_files import HOLE_BINS, hole_bin, hole_ratio, read_mask, write_mask
from data.mask_stats import count_holes, inscribed_radius
from data.parallel import in_processes
from utils.config import MASK_STYLES

PROJECT = Path(__file__).resolve().parent.parent
ALL_STYLES = (*MASK_STYLES, "mixed")


def draw(size, style, ratio, border=0, seed=0):
    return draw_mask(np.random.default_rng(seed), size, style, ratio, border)


def run(*arguments):
    """Return the exit code of masks.py, with few masks per folder unless the arguments override it."""
    return masks.main([str(argument) for argument in ("data.image_size=64", "model.depth=2", *arguments)])


def fill(folder, *arguments, count=6):
    places = (f"masks.train_dir={folder / 'train'}", f"masks.val_dir={folder / 'val'}")
    return run(*places, f"masks.train_count={count}", "masks.val_count=3", *arguments)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- measures, by hand -----------------------------------------------------------------------------------------


def hand_made():
    """Return 16x20 with three holes: a 5x5 square, two squares that touch at a corner, and one corner pixel."""
    mask = np.ones((16, 20), np.uint8)
    mask[4:9, 4:9] = 0
    mask[10:12, 12:14] = mask[12:14, 14:16] = 0
    mask[0, 0] = 0
    return mask


def test_measures_of_a_hand_made_mask():
    mask = hand_made()
    assert hole_ratio(mask) == pytest.approx((25 + 8 + 1) / 320)
    assert count_holes(mask) == 3
    assert inscribed_radius(mask) == pytest.approx(3 / 16)  # the centre of the 5x5 square is 3 px from a valid pixel


def test_the_inscribed_circle_ignores_the_edge_of_the_image():
    mask = np.ones((10, 10), np.uint8)
    mask[:, :4] = 0
    assert inscribed_radius(mask) == pytest.approx(4 / 10)
    assert inscribed_radius(np.ones((10, 10), np.uint8)) == 0
    assert inscribed_radius(np.zeros((10, 10), np.uint8)) == np.inf


# --- mask files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (5, 13), (16, 20), (7, 8), (300, 257)])
@pytest.mark.parametrize("valid", [np.uint8(1), np.uint8(2), np.bool_(True), np.float32(0.5)])
def test_a_mask_file_holds_the_mask_in_one_bit_a_pixel(tmp_path, shape, valid):
    mask = np.random.default_rng(0).random(shape) < 0.7
    write_mask(tmp_path / "a.png", mask * valid)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "1"
        np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE), mask * 255)


# --- holes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ALL_STYLES)
@pytest.mark.parametrize("size", [8, 64, 100, 256, 512])
def test_every_ratio_is_reached(style, size):
    for seed, ratio in enumerate([0.01, 0.011, 0.05, 0.1, 0.25, 0.5, 0.6]):
        mask = draw(size, style, ratio, seed=seed)
        assert mask.shape == (size, size)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert np.count_nonzero(mask == 0) == max(1, round(ratio * size * size))


@pytest.mark.parametrize("style", MASK_STYLES)
@pytest.mark.parametrize(("size", "ratio"), [(512, 4e-6), (512, 1e-4), (64, 0.95), (4, 0.01), (1, 0.6)])
def test_ratios_far_outside_of_the_bins_end_too(style, size, ratio):
    for seed in range(5):
        assert np.count_nonzero(draw(size, style, ratio, seed=seed) == 0) == max(1, round(ratio * size * size))


@pytest.mark.parametrize("style", ALL_STYLES)
@pytest.mark.parametrize("size", [64, 512])
def test_holes_keep_the_border(style, size):
    border = -(-50 * size // 512)
    for seed, ratio in enumerate([0.01, 0.3, 0.59]):
        mask = draw(size, style, ratio, border, seed)
        inner = mask[border:-border, border:-border]
        assert np.count_nonzero(mask == 0) == np.count_nonzero(inner == 0) == round(ratio * size * size)


def test_a_hole_is_made_of_solid_parts():
    """The last pixels, which make the ratio exact, move the outlines and do not form a row elsewhere."""
    for seed in range(20):
        for style in MASK_STYLES:
            hole = 1 - draw(512, style, 0.01 + 0.029 * seed, seed=seed)
            assert np.count_nonzero(hole != cv2.medianBlur(hole, 3)) < 0.03 * np.count_nonzero(hole)


def test_a_mask_is_a_function_of_its_generator():
    for style in ALL_STYLES:
        np.testing.assert_array_equal(draw(128, style, 0.3, seed=4), draw(128, style, 0.3, seed=4))
        assert (draw(128, style, 0.3, seed=4) != draw(128, style, 0.3, seed=5)).any()


def test_no_room_and_unknown_styles_are_refused():
    with pytest.raises(ValueError, match="no room for 2458 px"):
        draw(64, "shapes", 0.6, border=10)
    with pytest.raises(ValueError, match=f"'blobs' must be one of {', '.join(MASK_STYLES)}, mixed"):
        draw(64, "blobs", 0.3)


def test_contours_are_like_the_published_masks():
    """Checks mean hole count and mean largest inscribed radius per bin, to within a third."""
    holes = (13, 17, 16, 10, 9, 4)
    radii = (0.045, 0.060, 0.079, 0.091, 0.107, 0.189)
    for index, (low, high) in enumerate(HOLE_BINS):
        rng = np.random.default_rng([2, index])
        drawn = [draw_mask(rng, 512, "contours", spread_ratio(i, low, high, 512)) for i in range(60)]
        assert np.mean([count_holes(mask) for mask in drawn]) == pytest.approx(holes[index], rel=1 / 3)
        assert np.mean([inscribed_radius(mask) for mask in drawn]) == pytest.approx(radii[index], rel=1 / 3)


def test_ratios_spread_evenly_over_any_first_files():
    for count in (10, 37, 400):
        shares = [(spread_ratio(i, 0.01, 0.6, 256) - 0.01) / 0.59 for i in range(count)]
        counts = np.histogram(shares, bins=5, range=(0, 1))[0]
        assert counts.sum() == count
        assert abs(counts - count / 5).max() <= 1.5


def test_ratios_of_a_bin_are_never_on_its_edge():
    for size in (32, 100, 512):
        for index, (low, high) in enumerate(HOLE_BINS):
            ratios = [spread_ratio(i, low, high, size) for i in range(200)]
            pixels = np.array(ratios) * size * size
            np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-6)
            assert all(hole_bin(ratio) == index for ratio in ratios)
            assert min(ratios) < low + 0.002
            assert max(ratios) > high - 0.002
    assert spread_ratio(3, 0.3, 0.3, 100) == pytest.approx(0.3, abs=2e-4)


# --- processes -------------------------------------------------------------------------------------------------


def pages_fetched(_job):
    """Return the page faults for allocating a megabyte that this process has just freed."""
    np.ones(1 << 20, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by other rules")
def test_processes_keep_the_memory_that_they_free():
    assert max(in_processes(pages_fetched, range(4), 2, "jobs", "jobs")) < 128  # of 256 pages


# --- masks.py --------------------------------------------------------------------------------------------------


def test_both_folders_are_filled(tmp_path, capsys):
    assert fill(tmp_path, count=12) == 0
    names = sorted(path.name for path in (tmp_path / "train").glob("*.png"))
    assert names == [f"{i:06d}.png" for i in range(12)]
    assert len(list((tmp_path / "val").glob("*.png"))) == 3
    assert "12 masks of 64x64 px" in capsys.readouterr().out
    ratios = []
    for name in names:
        with Image.open(tmp_path / "train" / name) as image:
            assert image.size == (64, 64)
            pixels = np.asarray(image.convert("L"))
        assert set(np.unique(pixels)) == {0, 255}
        ratios.append(np.mean(pixels == 0))  # holes are black
    assert min(ratios) < 0.08
    assert max(ratios) > 0.53
    assert np.mean(ratios) == pytest.approx(0.305, abs=0.03)


def test_masks_can_have_a_size_of_their_own(tmp_path):
    assert fill(tmp_path, "masks.size=96") == 0
    for path in [*(tmp_path / "train").glob("*.png"), *(tmp_path / "val").glob("*.png")]:
        with Image.open(path) as image:
            assert image.size == (96, 96)


def test_styles_come_in_their_shares():
    """A mixed mask equals one of a single style, chosen by the first draw of its generator."""
    counts = collections.Counter()
    for seed in range(60):
        mixed = draw(16, {"contours": 3.0, "strokes": 1.0}, 0.2, seed=seed)
        alone = {style: draw(16, {style: 0.1}, 0.2, seed=seed) for style in MASK_STYLES}
        counts.update(style for style, mask in alone.items() if np.array_equal(mask, mixed))
    assert counts.keys() == {"contours", "strokes"}
    assert counts.total() == 60
    assert 36 < counts["contours"] < 54


def test_a_set_of_shares_is_written_down_and_made_again(tmp_path):
    assert fill(tmp_path, "masks.style={contours: 0.7, shapes: 0.3}") == 0
    before = contents(tmp_path)
    assert fill(tmp_path, "masks.style={shapes: 0.3, contours: 0.7}", "--force") == 0
    assert contents(tmp_path) == before


def test_the_number_of_processes_changes_nothing(tmp_path):
    assert fill(tmp_path / "one", "--processes", 1, count=40) == 0
    assert fill(tmp_path / "two", "--processes", 2, count=40) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 40 + 3 + 2


def test_a_mask_depends_on_seed_set_and_number_alone(tmp_path):
    assert fill(tmp_path / "a") == 0
    assert fill(tmp_path / "b", count=9) == 0
    assert fill(tmp_path / "c", "run.seed=1") == 0
    a, b, c = (contents(tmp_path / name) for name in "abc")
    pictures = [name for name in a if name.endswith(".png")]
    assert all(a[name] == b[name] for name in pictures)
    assert all(a[name] != c[name] for name in pictures)
    assert len({a[name] for name in pictures}) == 9  # train/000000.png also differs from val/000000.png


def test_filled_folders_need_force(tmp_path, capsys):
    assert fill(tmp_path, count=8) == 0
    before = contents(tmp_path)
    assert fill(tmp_path, "run.seed=1") == 1
    message = capsys.readouterr().err
    assert str(tmp_path / "train") in message
    assert "8 images" in message
    assert "--force" in message
    assert contents(tmp_path) == before
    (tmp_path / "train" / ".000007.png.part").write_bytes(b"half a file")
    assert fill(tmp_path, "run.seed=1", "--force") == 0
    after = contents(tmp_path)
    assert sorted(after) == sorted(name for name in before if name not in ("train/000006.png", "train/000007.png"))
    assert after["train/000000.png"] != before["train/000000.png"]


def test_one_filled_folder_stops_both(tmp_path, capsys):
    assert fill(tmp_path) == 0
    for path in (tmp_path / "train").iterdir():
        path.unlink()
    before = contents(tmp_path)
    assert fill(tmp_path) == 1
    assert str(tmp_path / "val") in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_foreign_images_are_never_replaced(tmp_path, capsys, force):
    """Not even an image named like a mask of masks.py is replaced."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "000000.png")
    before = contents(tmp_path)
    assert fill(tmp_path, *force) == 1
    assert "did not make" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_foreign_image_among_our_masks_stops_force(tmp_path, capsys):
    assert fill(tmp_path) == 0
    Image.new("RGB", (9, 9)).save(tmp_path / "val" / "holiday.jpg")
    before = contents(tmp_path)
    assert fill(tmp_path, "--force") == 1
    assert "holiday.jpg" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_other_files_stay_and_a_foreign_record_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "train" / "sub").mkdir(parents=True)
    (tmp_path / "train" / "notes.txt").write_text("mine")
    assert fill(tmp_path) == 0
    assert fill(tmp_path, "--force") == 0
    assert (tmp_path / "train" / "notes.txt").read_text() == "mine"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "index.csv").write_text("mine")
    assert run("--benchmark", tmp_path / "set", "--per-bin", 1) == 1
    assert "index.csv" in capsys.readouterr().err
    assert contents(tmp_path / "set") == {"index.csv": b"mine"}


def test_a_failed_write_leaves_no_half_mask(tmp_path, monkeypatch):
    def fail(path, mask):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("data.mask_sets.write_mask", fail)
    assert fill(tmp_path, "--processes", 1) == 1
    assert list(tmp_path.rglob("*.png")) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["masks.hole=white"], "masks.hole=black"),
        (["masks.styl=shapes"], "did you mean masks.style"),
        (["masks.hole_ratio=[0.1, 0.9]"], "masks.hole_ratio.1: 0.9"),
        (["--config", "nowhere.yml"], "nowhere.yml"),
        (["--stats", "nowhere"], "nowhere"),
        (["--stats", "."], "no images in ."),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert contents(tmp_path) == {}


def test_a_file_in_place_of_a_folder(tmp_path, capsys):
    (tmp_path / "train").write_text("mine")
    assert fill(tmp_path) == 1
    assert "must be a folder, but is a file" in capsys.readouterr().err
    assert contents(tmp_path) == {"train": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--per-bin", "3"], "--per-bin needs --benchmark"),
        (["--size", "64"], "--size needs --benchmark"),
        (["--out", "a.png"], "--out needs --stats"),
        (["--benchmark", "x"], "--benchmark needs --per-bin"),
        (["--benchmark", "x", "--stats", "y"], "not allowed with"),
        (["--stats", "x", "--force"], "--force cannot be combined with --stats"),
        (["--benchmark", "x", "--per-bin", "0"], "'0' must be a whole number, at least 1"),
        (["--benchmark", "x", "--per-bin", "1", "--size", "9"], "'9' must be a whole number, at least 32"),
        (["--processes", "none"], "'none' must be a whole number"),
    ],
)
def test_conflicting_arguments(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        masks.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert contents(tmp_path) == {}


# --- benchmark -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 128])
def test_benchmark(tmp_path, size):
    folder = tmp_path / "set"
    assert run("--benchmark", folder, "--per-bin", 3, "--size", size, "masks.style=contours") == 0
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "ratio", "bin", "border"]
    assert len(rows) == 36
    assert sorted(row["file"] for row in rows) == sorted(path.name for path in folder.glob("*.png"))
    wide = -(-50 * size // 512)
    for number, row in enumerate(rows):
        mask = read_mask(folder / row["file"], "black").valid
        low, high = HOLE_BINS[number // 6]
        assert row["bin"] == f"{low:g}-{high:g}"
        assert low < hole_ratio(mask) <= high
        assert float(row["ratio"]) == pytest.approx(hole_ratio(mask), abs=1e-6)
        border = int(row["border"])
        assert border == (wide if number % 6 < 3 else 0)
        inner = mask[border : size - border, border : size - border]
        assert np.count_nonzero(inner == 0) == np.count_nonzero(mask == 0)
    assert len({row["ratio"] for row in rows}) > 15
    assert len({(folder / row["file"]).read_bytes() for row in rows}) == 36


def test_benchmark_follows_the_same_rules(tmp_path, capsys):
    folder = tmp_path / "set"
    assert run("--benchmark", folder, "--per-bin", 2, "--processes", 1) == 0
    first = contents(folder)
    assert run("--benchmark", folder, "--per-bin", 1) == 1
    assert "24 images" in capsys.readouterr().err
    assert contents(folder) == first
    assert run("--benchmark", folder, "--per-bin", 2, "--processes", 2, "--force") == 0
    assert contents(folder) == first
    assert json.loads(first["masks.json"])["made_by"] == "masks.py"


# --- stats -----------------------------------------------------------------------------------------------------


def with_ratio(ratio, size=20):
    mask = np.ones(size * size, np.uint8)
    mask[: round(ratio * size * size)] = 0
    return mask.reshape(size, size)


def test_stats_of_hand_made_masks(tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    # 0.1 is the end of the first bin; 0.005 and 0.7 are outside all bins
    for i, ratio in enumerate([0.05, 0.1, 0.105, 0.25, 0.25, 0.55, 0.005, 0.7]):
        write_mask(folder / f"{i}.png", with_ratio(ratio))
    grey = np.full((20, 20), 255, np.uint8)
    grey[:7] = 0
    grey[7] = 100  # 5 % grey, thresholded to black: 0.4
    Image.fromarray(grey).save(folder / "grey.png")
    write_mask(folder / "wide.png", hand_made())
    assert run("--stats", folder, "--out", tmp_path / "h.png") == 0
    out = capsys.readouterr().out
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines()[-8:-1]}
    assert [counts[0] for counts in table.values()] == ["2", "2", "2", "1", "0", "1", "2"]
    assert table["outside"] == ["2", "20.0%"]
    assert table["0.2-0.3"][1:] == ["20.0%", "1.0", "0.250"]
    assert table["0.1-0.2"][1:] == ["20.0%", "2.0", f"{(8**0.5 / 20 + 3 / 16) / 2:.3f}"]  # 42 px: 2 rows and 2 px
    assert table["0.4-0.5"] == ["0", "0.0%"]
    assert "20x20 (9), 20x16 (1)" in out
    assert "10.0% of the files (1) have grey pixels" in out
    assert "holes are probably black, as masks.hole says" in out
    with Image.open(tmp_path / "h.png") as picture:
        assert picture.width > 500


def test_stats_say_which_colour_the_holes_have(tmp_path, capsys):
    for i in range(4):
        write_mask(tmp_path / f"{i}.png", 1 - with_ratio(0.2))  # white holes
    out = tmp_path.with_suffix(".png")
    assert run("--stats", tmp_path, "--out", out) == 0
    text = capsys.readouterr().out
    assert "polarity: 20.0% white, 80.0% black; holes are probably WHITE, but masks.hole says black" in text
    assert "try masks.hole=white" in text
    assert run("--stats", tmp_path, "--out", out, "masks.hole=white") == 0
    text = capsys.readouterr().out
    assert "polarity: 20.0% white, 80.0% black; holes are probably white, as masks.hole says" in text
    assert "0.1-0.2" in text


def test_stats_name_unreadable_files_and_go_on(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    write_mask(folder / "good.png", with_ratio(0.3))
    (folder / "bad.png").write_bytes((folder / "good.png").read_bytes()[:50])
    monkeypatch.chdir(tmp_path)
    before = contents(folder)
    assert run("--stats", "set") == 1
    captured = capsys.readouterr()
    assert "bad.png" in captured.err
    assert "1 masks, 1 unreadable" in captured.out
    assert (tmp_path / "mask_stats.png").is_file()
    assert contents(folder) == before


def test_the_histogram_never_lies_among_the_masks(tmp_path, monkeypatch, capsys):
    write_mask(tmp_path / "a.png", with_ratio(0.3))
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run("--stats", ".") == 1
    assert "--out" in capsys.readouterr().err
    assert run("--stats", ".", "--out", "a.png") == 1
    assert run("--stats", ".", "--out", "nowhere/a.png") == 1
    assert run("--stats", ".", "--out", "../a.txt") == 1
    assert contents(tmp_path) == before


# --- as a command ----------------------------------------------------------------------------------------------


def test_help_and_making_masks_import_no_torch(tmp_path):
    code = (
        "import sys\nimport masks\n"
        "try:\n    masks.main(sys.argv[1:])\nexcept SystemExit:\n    assert 'cv2' not in sys.modules\n"
        "assert 'torch' not in sys.modules"
    )
    folders = [f"masks.train_dir={tmp_path / 'a'}", f"masks.val_dir={tmp_path / 'b'}"]
    for arguments in (["--help"], [*folders, "masks.train_count=2", "masks.val_count=1", "--processes=1"]):
        subprocess.run([sys.executable, "-c", code, *arguments], cwd=PROJECT, check=True, capture_output=True)
    assert len(list((tmp_path / "a").glob("*.png"))) == 2


def test_the_command_from_another_folder(tmp_path):
    command = [sys.executable, str(PROJECT / "masks.py"), "masks.train_count=3", "masks.val_count=2", "--processes=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "datasets/masks_256/train").glob("*.png"))) == 3
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of a process group")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_run_leaves_whole_masks_and_no_traceback(tmp_path, number, processes):
    command = [sys.executable, str(PROJECT / "masks.py"), "masks.train_count=50000", f"--processes={processes}"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    train = tmp_path / "datasets/masks_256/train"
    deadline = time.monotonic() + 120
    while not list(train.glob("*5.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does on Ctrl-C
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    made = list(train.glob("*.png"))
    assert made
    assert all(set(np.unique(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))) == {0, 255} for path in made)
