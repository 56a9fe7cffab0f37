"""Plots of an evaluation: contents and files."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from evaluation import plots
from evaluation.plots import draw_plots
from evaluation.summary import ALL, BINS, Estimate, Key

PROJECT = Path(__file__).resolve().parent.parent


def summary(methods=("a", "b"), metrics=("l1_percent", "ssim"), bins=BINS[:3]):
    """Return means that differ by method, metric and bin; intervals from 0.5 below to 1 above."""
    made = {}
    for m, method in enumerate(methods):
        for k, metric in enumerate(metrics):
            for b, bin_ in enumerate(bins):
                mean = 1 + m + 10 * k + 100 * b
                made[Key(method, metric, bin_, ALL)] = Estimate(mean, mean - 0.5, mean + 1, 40 + b)
                made[Key(method, metric, bin_, "free")] = Estimate(-9, -9, -9, 1)  # must be ignored
            made[Key(method, metric, ALL, ALL)] = Estimate(-9, -9, -9, 1)
    return made


def drawn(monkeypatch, folder, *arguments):
    """Return the figures that draw_plots saves, by metric."""
    figures = {}
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.update({path.name: figure}), path.touch()))
    paths = draw_plots(folder, *arguments)
    return dict(zip([path.stem for path in paths], figures.values()))


def points(axes):
    """Return (x, y) of every method's points, and the sets of its intervals (x, low, high)."""
    marked = [line.get_xydata() for line in axes.get_lines() if line.get_marker() not in ("None", None)]
    bars = {(x, low, high) for bar in axes.collections for (x, low), (_, high) in bar.get_segments()}
    return marked, bars


def test_points_and_intervals_stand_at_their_values(monkeypatch, tmp_path):
    axes = drawn(monkeypatch, tmp_path, summary(), ["a", "b"])["ssim"].axes[0]
    (a, b), bars = points(axes)
    assert a[:, 1].tolist() == [11, 111, 211]
    assert b[:, 1].tolist() == [12, 112, 212]
    assert bars == {(x, y - 0.5, y + 1) for x, y in [*a, *b]}
    assert [label.get_text() for label in axes.get_xticklabels()] == list(BINS[:3])
    for line in (a, b):  # dodged, but each is nearest to its own bin
        np.testing.assert_array_equal(np.rint(line[:, 0]), [0, 1, 2])
    assert (b[:, 0] - a[:, 0] >= 0.05).all()


def test_many_methods_stay_at_their_bin(monkeypatch, tmp_path):
    methods = [f"method {i}" for i in range(20)]
    marked, _ = points(drawn(monkeypatch, tmp_path, summary(methods), methods)["ssim"].axes[0])
    assert len({tuple(line[:, 0]) for line in marked}) == 20
    for line in marked:
        np.testing.assert_allclose(line[:, 0], [0, 1, 2], atol=0.4)


def test_methods_differ_without_colour_too(monkeypatch, tmp_path):
    methods = [f"method {i}" for i in range(6)]
    axes = drawn(monkeypatch, tmp_path, summary(methods), methods)["ssim"].axes[0]
    marked = [line for line in axes.get_lines() if line.get_marker() not in ("None", None)]
    assert len({line.get_marker() for line in marked}) == len({line.get_color() for line in marked}) == 6


@pytest.mark.parametrize(("metric", "words"), [("l1_percent", "lower is better"), ("ssim", "higher is better")])
def test_words_say_which_way_is_better_and_how_many(monkeypatch, tmp_path, metric, words):
    axes = drawn(monkeypatch, tmp_path, summary(), ["a", "b"])[metric].axes[0]
    assert words in axes.get_ylabel()
    assert [text.get_text() for text in axes.texts] == ["mean of 40 to 42 pairs a bin, with 95 % intervals"]


def test_no_interval_no_bar(monkeypatch, tmp_path):
    made = {key: value._replace(low=None, high=None, count=7) for key, value in summary(metrics=["fid"]).items()}
    axes = drawn(monkeypatch, tmp_path, made, ["a", "b"])["fid"].axes[0]
    marked, bars = points(axes)
    assert (len(marked), bars) == (2, set())
    assert axes.texts[0].get_text() == "of 7 pairs a bin"


def test_only_bins_that_are_there_in_their_order(monkeypatch, tmp_path):
    made = summary(bins=[BINS[4], BINS[1]])
    axes = drawn(monkeypatch, tmp_path, made, ["a"])["l1_percent"].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [BINS[1], BINS[4]]
    assert points(axes)[0][0][:, 1].tolist() == [101, 1]


def test_every_name_is_written_as_it_is(monkeypatch, tmp_path):
    names = ["_hidden", "$x^2$", "<b>", "100 %", "日本"]
    axes = drawn(monkeypatch, tmp_path, summary(names), names)["ssim"].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names


def test_files_are_pictures_of_the_metrics_present_and_always_the_same(monkeypatch, tmp_path):
    names = ["$\\frac$ 日本 _", "b"]
    paths = draw_plots(tmp_path / "a" / "plots", summary(names), names)
    assert paths == [tmp_path / "a" / "plots" / "l1_percent.png", tmp_path / "a" / "plots" / "ssim.png"]
    assert sorted(paths[0].parent.iterdir()) == paths
    for path in paths:
        with Image.open(path) as picture:
            assert "Software" not in picture.info
            assert np.ptp(np.asarray(picture.convert("L"))) > 128
    monkeypatch.setitem(matplotlib.rcParams, "axes.titlesize", 30)  # from a user's matplotlibrc
    again = draw_plots(tmp_path / "b", summary(names), names)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_no_bins_no_plot(tmp_path):
    assert draw_plots(tmp_path, {Key("a", "ssim", ALL, ALL): Estimate(1, 1, 1, 1)}, ["a"]) == []


def test_pyplot_is_never_imported():
    code = "import sys, evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
