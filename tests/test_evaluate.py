"""evaluate.py: complete evaluations of small networks on small images."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
from data.loader import validation_batches
from data.mask_files import bin_name, hole_bin, hole_ratio, keeps_border, write_mask
from data.samples import validation_pairs
from evaluation import scoring
from evaluation.baselines import FILLS
from evaluation.metrics import METRICS
from evaluation.models import name_models
from evaluation.pairing import EvaluationPair, format_pairs, read_pair, read_pairs
from evaluation.results import ResultsFolder
from evaluation.summary import ALL, Key, Row, summarise
from model import PConvUNet, load_model
from tests import foreign
from training.validation import validate
from utils.checkpoint import save_weights
from utils.config_files import load_config
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent


def rectangle(height, width, top=9, left=9, size=32):
    mask = np.ones((size, size), np.uint8)
    mask[top : top + height, left : left + width] = 0
    return mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write three images of several sizes, eight masks in three bins, and two networks."""
    folder = tmp_path_factory.mktemp("evaluation")
    rng = np.random.default_rng(0)
    (folder / "images" / "more").mkdir(parents=True)
    (folder / "masks").mkdir()
    for name, size in (("a.png", (50, 44)), ("b.png", (32, 32)), ("more/c.png", (40, 70))):
        small = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / "images" / name)
    for k in range(2):
        write_mask(folder / "masks" / f"small{k}.png", rectangle(8, 8 + k))
        write_mask(folder / "masks" / f"edge{k}.png", rectangle(8, 8 + k, top=0))
        write_mask(folder / "masks" / f"middle{k}.png", rectangle(13, 13 + k))
        write_mask(folder / "masks" / f"large{k}.png", rectangle(20, 22 + k, top=3, left=3))
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        save_weights(folder / f"{name}.safetensors", PConvUNet(3, 4).state_dict())
    return folder


def arguments(folder, out, *more):
    return [
        *("--images", folder / "images", "--masks", folder / "masks", "--out", out, "--device", "cpu"),
        *more,
    ]


def run(*args):
    return evaluate.main([str(arg) for arg in args])


def rows_of(out):
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """Run an evaluation of two networks and two classical methods."""
    out = tmp_path_factory.mktemp("done") / "out"
    models = ["--model", f"one={folder / 'one.safetensors'}", "--model", f"two={folder / 'two.safetensors'}"]
    assert run(*arguments(folder, out, *models, "--baseline", "mean", "telea")) == 0
    return out


METHODS = ("one", "two", "mean", "telea")


def test_a_row_for_each_pair_and_method(done):
    rows = rows_of(done)
    assert [(int(row["pair"]), row["method"]) for row in rows] == [(i, m) for i in range(12) for m in sorted(METHODS)]
    assert [row["image"] for row in rows[:: 4 * len(METHODS)]] == ["a.png", "b.png", "more/c.png"]
    for row in rows:
        assert float(row["l1_percent"]) > 0
        # all errors of the full image are in the hole
        assert float(row["l1_percent"]) == pytest.approx(float(row["hole_l1_percent"]) * float(row["ratio"]), rel=1e-4)
        mse, hole_mse = (10 ** (-float(row[name]) / 10) for name in ("psnr", "hole_psnr"))
        assert mse == pytest.approx(hole_mse * float(row["ratio"]), rel=1e-4)
        assert float(row["perceptual"]) > 0
    assert not list(done.glob("rows-*"))


def test_bins_and_borders_are_those_of_the_masks(done):
    for pair in read_pairs(done / "pairs.csv"):
        kind = pair.mask.rstrip("0123456789.png")
        wanted = {"small": (0, "free"), "edge": (0, "any"), "middle": (1, "free"), "large": (4, "any")}[kind]
        assert (pair.bin, pair.border) == (bin_name(wanted[0]), wanted[1])


def test_what_is_written(done):
    summary = json.loads((done / "summary.json").read_text())
    text = json.dumps(summary)
    markdown = (done / "summary.md").read_text()
    for name in METHODS:
        assert name in text
        assert name in markdown
    assert "evaluate.py" in markdown or "command" in markdown
    for metric in ("l1_percent", "psnr", "ssim", "hole_l1_percent", "hole_psnr", "hole_ssim", "perceptual"):
        with Image.open(done / f"{metric}.png") as plot:
            assert plot.width > 300
    assert (done / "gallery" / "index.html").is_file()
    assert len(list((done / "gallery").glob("*_best.png"))) == 3  # one sheet per bin


def test_the_mean_of_the_summary_is_that_of_the_rows(done):
    values = [float(row["psnr"]) for row in rows_of(done) if row["method"] == "two" and row["bin"] == "0.01-0.1"]
    estimate = summarise(ResultsFolder(done).rows())[Key("two", "psnr", "0.01-0.1", ALL)]
    assert estimate.mean == pytest.approx(np.mean(values))
    assert f"{np.mean(values):.2f}" in (done / "summary.md").read_text()


def test_a_second_start_computes_nothing(folder, done, monkeypatch):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    models = ["--model", f"one={folder / 'one.safetensors'}", "--model", f"two={folder / 'two.safetensors'}"]
    monkeypatch.setattr(scoring, "load_distances", None)  # raises if called
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    assert run(*arguments(folder, done, *models, "--baseline", "mean", "telea")) == 0
    same = {path for path, content in before.items() if path.read_bytes() == content}
    assert {path.name for path in before.keys() - same} <= {"summary.md", "summary.json"}  # they contain the command
    assert (done / "results.csv") in same


def counting(monkeypatch, stop_after=None):
    """Count composites; raise KeyboardInterrupt after `stop_after` of them."""
    calls = []
    composite_of = scoring.composite_of

    def counted(fill, image, mask):
        if stop_after is not None and len(calls) >= stop_after:
            raise KeyboardInterrupt
        calls.append(fill)
        return composite_of(fill, image, mask)

    monkeypatch.setattr(scoring, "composite_of", counted)
    monkeypatch.setattr(scoring, "show", lambda *_: None)  # the gallery computes composites, too
    monkeypatch.setattr("evaluation.scoring.draw_plots", lambda *_: None)  # takes a second
    return calls


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(folder, done, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    names = ["--baseline", "mean", "telea"]
    with monkeypatch.context() as patch:
        calls = counting(patch, stop_after=7)
        assert run(*arguments(folder, out, *names)) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (out / "summary.md").exists()
    rows = out / "rows-0.csv"
    rows.write_text(rows.read_text() + "3,more/c.png,edge")  # as a killed process leaves it
    calls = counting(monkeypatch)
    assert run(*arguments(folder, out, *names)) == 0
    assert len(calls) == 2 * 12 - 7
    wanted = [row for row in rows_of(done) if row["method"] in ("mean", "telea")]
    assert rows_of(out) == wanted


def test_a_row_is_on_the_disk_as_soon_as_it_is_there(tmp_path):
    """A killed process must not lose finished rows."""
    row = Row(0, "a.png", "m.png", "0.1-0.2", "any", 0.15, "mean", {"psnr": 20.5})
    (tmp_path / "out").mkdir()
    folder = ResultsFolder(tmp_path / "out")
    with folder.append_to(0) as rows:
        rows.append(row)
        assert folder.rows() == [row]


def test_another_method_joins_an_evaluation(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    calls = counting(monkeypatch)
    assert run(*arguments(folder, out, "--baseline", "mean")) == 0
    assert run(*arguments(folder, out, "--baseline", "mean", "telea")) == 0
    assert len(calls) == 24
    # The tables contain only the requested methods, results.csv all of them.
    assert run(*arguments(folder, out, "--baseline", "telea")) == 0
    assert len(calls) == 24
    assert "mean" not in json.loads((out / "summary.json").read_text())["methods"]
    assert {row["method"] for row in rows_of(out)} == {"mean", "telea"}


def test_a_changed_checkpoint_is_measured_anew(folder, tmp_path, monkeypatch, capsys):
    out, model = tmp_path / "out", tmp_path / "model.safetensors"
    model.write_bytes((folder / "one.safetensors").read_bytes())
    calls = counting(monkeypatch)
    methods = ["--model", f"m={model}", "--baseline", "mean"]
    assert run(*arguments(folder, out, *methods)) == 0
    before = rows_of(out)
    model.write_bytes((folder / "two.safetensors").read_bytes())
    assert run(*arguments(folder, out, *methods)) == 0
    assert "m: its file or library has changed" in capsys.readouterr().out
    assert len(calls) == 24 + 12
    changed = {row["method"] for row, old in zip(rows_of(out), before) if row != old}
    assert changed == {"m"}


def test_swapping_two_methods_swaps_the_table(folder, done, tmp_path):
    out = tmp_path / "out"
    models = ["--model", f"one={folder / 'two.safetensors'}", "--model", f"two={folder / 'one.safetensors'}"]
    assert run(*arguments(folder, out, *models)) == 0
    swapped = {"one": "two", "two": "one"}
    wanted = {(row["pair"], swapped[row["method"]]): row["psnr"] for row in rows_of(done) if row["method"] in swapped}
    assert {(row["pair"], row["method"]): row["psnr"] for row in rows_of(out)} == wanted


def test_a_perfect_method(folder, tmp_path):
    """On images of one colour, the mean colour is the ground truth."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), (51, 102, 204)).save(tmp_path / "images" / "flat.png")
    out = tmp_path / "out"
    args = arguments(folder, out, "--baseline", "mean")
    args[1] = tmp_path / "images"
    assert run(*args) == 0
    for row in rows_of(out):
        assert float(row["l1_percent"]) == pytest.approx(0, abs=1e-5)
        assert float(row["ssim"]) == pytest.approx(1, abs=1e-6)
        assert float(row["hole_ssim"]) == pytest.approx(1, abs=1e-6)
        assert float(row["psnr"]) == 100
        assert float(row["perceptual"]) == pytest.approx(0, abs=1e-4)


def test_validation_of_training_gives_the_same_numbers(folder, tmp_path):
    """Gives the pairs of main.py's validation to evaluate.py."""
    overrides = [
        f"data.val={folder / 'images'}",
        f"masks.val_dir={folder / 'masks'}",
        *("data.val_pairs=5", "data.image_size=32", "data.workers=0", "model.depth=3", "model.base_channels=4"),
        "train.batch_size=2",
    ]
    config = load_config(PROJECT / "config.yml", overrides)
    held_out = validation_pairs(config)
    net = load_model(folder / "one.safetensors")
    wanted, _ = validate(net, validation_batches(held_out, config), torch.device("cpu"))

    pairs = []
    for index in range(5):
        image, mask = held_out.paths(index)
        fitted = held_out[index].mask[0].numpy()
        ratio, border = hole_ratio(fitted), "free" if keeps_border(fitted) else "any"
        names = os.path.relpath(image, folder / "images"), mask.name
        pairs.append(EvaluationPair(index, *names, bin_name(hole_bin(ratio)), border, ratio))
    (tmp_path / "pairs.csv").write_text(format_pairs(pairs))
    out = tmp_path / "out"
    model = ["--model", f"net={folder / 'one.safetensors'}", "--pairs", tmp_path / "pairs.csv", "--size", 32]
    assert run(*arguments(folder, out, *model)) == 0
    assert (out / "pairs.csv").read_text() == format_pairs(pairs)
    for name, value in wanted.items():
        assert np.mean([float(row[name]) for row in rows_of(out)]) == pytest.approx(value, rel=1e-5)


def test_masks_of_several_sizes(folder, tmp_path):
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / "masks" / "a.png", rectangle(8, 8, size=32))
    wide = rectangle(20, 30, size=64)[:48]
    write_mask(tmp_path / "masks" / "b.png", wide)
    args = arguments(folder, tmp_path / "out", "--model", folder / "one.safetensors", "--baseline", "telea")
    args[3] = tmp_path / "masks"
    assert run(*args) == 0
    assert len(rows_of(tmp_path / "out")) == 3 * 2 * 2
    parent = folder.name
    assert {row["method"] for row in rows_of(tmp_path / "out")} == {f"{parent}/one", "telea"}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(folder, done, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "evaluate.py"]
    methods = ["--model", f"one={folder / 'one.safetensors'}", "--baseline", "mean"]
    words = [*command, *map(str, arguments(folder, out, *methods))]
    result = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    wanted = [row for row in rows_of(done) if row["method"] in ("one", "mean")]
    for row, one in zip(rows_of(out), wanted, strict=True):
        for name in ("pair", "image", "mask", "method"):
            assert row[name] == one[name]
        assert float(row["psnr"]) == pytest.approx(float(one["psnr"]), rel=1e-5)
    assert not list(out.glob("rows-*"))
    assert result.stdout.count("12 pairs") == 1
    assert "6/6" in result.stderr  # half of the pairs per process


@pytest.mark.parametrize("project", foreign.PROJECTS)
def test_published_files_of_other_projects(folder, tmp_path, capsys, project):
    """evaluate.py and predict.py load them directly and reproduce the output of the project's own network."""
    state = foreign.weights(project, foreign.shapes(project, 3, 4))
    published = tmp_path / "published.pth"
    torch.save(
        {"meta": {}, "state_dict": state} if project == foreign.MMAGIC else {"n_iter": 1, "model": state}, published
    )
    out = tmp_path / "out"
    assert run(*arguments(folder, out, "--model", f"theirs={published}")) == 0
    assert capsys.readouterr().err.count("converted on load") == 1

    pair = read_pairs(out / "pairs.csv")[0]
    image, mask = np.asarray(Image.open(folder / "images" / "b.png")), rectangle(13, 13)
    write_mask(tmp_path / "mask.png", mask)
    words = ["--image", folder / "images" / "b.png", "--mask", tmp_path / "mask.png", "--output", tmp_path / "b.png"]
    assert predict.main([*map(str, words), "--model", str(published), "--device", "cpu"]) == 0
    assert capsys.readouterr().err.count("converted on load") == 1
    tensor = torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None]
    wanted = foreign.network(project, state, 3, tensor, torch.from_numpy(mask).float()[None, None])
    wanted = (wanted.clamp(0, 1)[0].permute(1, 2, 0) * 255).round().numpy()
    repaired = np.asarray(Image.open(tmp_path / "b.png")).astype(float)
    np.testing.assert_allclose(repaired[mask == 0], wanted[mask == 0], atol=1)
    np.testing.assert_array_equal(repaired[mask > 0], image[mask > 0])

    picture, valid = read_pair(str(folder / "images" / pair.image), folder / "masks" / pair.mask, "black", None)
    truth = torch.from_numpy(picture).permute(2, 0, 1)[None]
    output = foreign.network(project, state, 3, truth, torch.from_numpy(valid).float()[None, None]).clamp(0, 1)
    error = (output - truth).abs()[0].permute(1, 2, 0).numpy()[valid == 0]
    assert float(rows_of(out)[0]["hole_l1_percent"]) == pytest.approx(100 * error.mean(), rel=1e-4)


class Inception(torch.nn.Module):
    """A replacement for the Inception network: the mean colour as features, two classes."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(self.fc.weight, 0.01)

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8
        return pixels.float().mean((2, 3))


def test_extras(folder, tmp_path, monkeypatch):
    """LPIPS scores an image, FID and Inception score a set. Requested later, they are added to existing results."""
    monkeypatch.setattr("evaluation.learned.load_inception", lambda device: Inception())
    monkeypatch.setattr("evaluation.learned.load_lpips", lambda device: lambda a, b: float((a - b).abs().max()))
    out = tmp_path / "out"
    calls = counting(monkeypatch)
    assert run(*arguments(folder, out, "--baseline", "mean")) == 0
    methods = ["--baseline", "mean", "telea", "--extra", "lpips", "fid"]
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "composite_of", lambda *_: pytest.fail("stopped here"))
        with pytest.raises(pytest.fail.Exception):
            run(*arguments(folder, out, *methods))
    assert run(*arguments(folder, out, *methods)) == 0
    assert len(calls) == 12 + 24
    assert all(0 < float(row["lpips"]) <= 1 for row in rows_of(out))
    estimates = json.loads((out / "summary.json").read_text())["estimates"]
    fids = {(e["method"], e["bin"], e["border"]): e for e in estimates if e["metric"] == "fid"}
    assert fids["telea", "all", "all"]["count"] == 12
    assert fids["telea", "all", "all"]["low"] is None
    assert fids["mean", "0.4-0.5", "any"]["mean"] > 0
    assert not [e for e in estimates if e["metric"] == "inception_score"]
    # Cached results give the same values.
    assert run(*arguments(folder, out, *methods)) == 0
    assert len(calls) == 12 + 24
    assert json.loads((out / "summary.json").read_text())["estimates"] == estimates


def test_fid_of_a_changed_checkpoint_is_made_anew(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.learned.load_inception", lambda device: Inception())
    counting(monkeypatch)

    def fid_after(content, out):
        (tmp_path / "model.safetensors").write_bytes((folder / content).read_bytes())
        model = ["--model", f"m={tmp_path / 'model.safetensors'}"]
        assert run(*arguments(folder, out, *model)) == 0  # its scores are cached; FID is added later
        assert run(*arguments(folder, out, *model, "--extra", "fid")) == 0
        estimates = json.loads((out / "summary.json").read_text())["estimates"]
        return [e["mean"] for e in estimates if e["metric"] == "fid"]

    assert fid_after("one.safetensors", tmp_path / "out")
    after = fid_after("two.safetensors", tmp_path / "out")
    assert after
    assert after == fid_after("two.safetensors", tmp_path / "straight")


# --- errors ----------------------------------------------------------------------------------------------------


def fails(capsys, *args):
    """Return the one-line error of an evaluation."""
    assert run(*args) == 1
    error = capsys.readouterr().err
    lines = [line for line in re.split(r"[\r\n]", error) if line.startswith("error:")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "none.pt"], "no such file: none.pt"),
        (["--model", "x=none.pt"], "no such file: none.pt"),
        (["--baseline", "mean", "--pairs", "none.csv"], "no such file: none.csv"),
        (["--baseline", "mean", "--masks", "nowhere"], "no such folder: nowhere"),
        (["--baseline", "mean", "--images", "nowhere"], "--images: no such folder or list: nowhere"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, capsys, more, words):
    assert words in fails(capsys, *arguments(folder, tmp_path / "out", *more))


def test_masks_of_the_other_colour(folder, tmp_path, capsys):
    """Six of the eight masks then have over 60 % hole. If all have, nothing is left to evaluate."""
    assert run(*arguments(folder, tmp_path / "out", "--baseline", "mean", "--hole", "white")) == 0
    said = "left out: 6 of 8 masks, because their hole ratios are in no bin; are the holes another colour"
    assert said in capsys.readouterr().out
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / "masks" / "a.png", rectangle(8, 8))
    args = arguments(folder, tmp_path / "other", "--baseline", "mean", "--hole", "white")
    args[3] = tmp_path / "masks"
    assert "is --hole the right colour?" in fails(capsys, *args)


def test_a_file_that_is_no_checkpoint(folder, tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    assert "x.pt" in fails(capsys, *arguments(folder, tmp_path / "out", "--model", tmp_path / "x.pt"))
    assert not (tmp_path / "out").exists()


def test_two_methods_of_one_name(folder, tmp_path, capsys):
    model = folder / "one.safetensors"
    assert "two methods" in fails(capsys, *arguments(folder, tmp_path / "out", "--model", model, "--model", model))
    assert "two methods" in fails(capsys, *arguments(folder, tmp_path / "out", "--model", f"mean={model}"))


def test_a_folder_with_another_evaluation(folder, done, capsys):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    assert "size was None, is 48" in fails(capsys, *arguments(folder, done, "--baseline", "mean", "--size", 48))
    same_pairs = ["--baseline", "mean", "--pairs", done / "pairs.csv", "--size", 48]
    assert "--size" in fails(capsys, *arguments(folder, done, *same_pairs))
    assert "--out" in fails(capsys, *arguments(folder, done, "--baseline", "mean", "--limit", 2))
    assert "--out" in fails(capsys, *arguments(folder, done, "--baseline", "mean", "--seed", 5))
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_a_folder_of_something_else_stays_as_it_is(folder, tmp_path, capsys):
    (tmp_path / "diary.txt").write_text("mine")
    assert "holds no evaluation" in fails(capsys, *arguments(folder, tmp_path, "--baseline", "mean"))
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]
    assert "a file" in fails(capsys, *arguments(folder, tmp_path / "diary.txt", "--baseline", "mean"))
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_pairs_of_other_images(folder, done, tmp_path, capsys):
    text = (done / "pairs.csv").read_text().replace("b.png", "gone.png")
    (tmp_path / "pairs.csv").write_text(text)
    pairs = ["--baseline", "mean", "--pairs", tmp_path / "pairs.csv"]
    assert "gone.png" in fails(capsys, *arguments(folder, tmp_path / "out", *pairs))


def test_a_network_that_diverged_is_named(folder, tmp_path, capsys):
    net = PConvUNet(3, 4)
    torch.nn.init.constant_(net.encoder[0].conv.weight, float("nan"))
    save_weights(tmp_path / "nan.safetensors", net.state_dict())
    line = fails(capsys, *arguments(folder, tmp_path / "out", "--model", f"bad={tmp_path / 'nan.safetensors'}"))
    assert "--model bad" in line
    assert "not finite" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "x", "--masks", "y", "--out", "z"], "name a --model or a --baseline"),
        (["--images", "x", "--masks", "y", "--out", "z", "--baseline", "patchmatch"], "invalid choice"),
        (["--images", "x", "--masks", "y", "--out", "z", "--baseline", "all", "--size", "8"], "at least 16"),
        (
            ["--images", "x", "--masks", "y", "--out", "z", "--baseline", "all", "--pairs", "p", "--limit", "3"],
            "--pairs",
        ),
        (["--images", "x", "--masks", "", "--out", "z", "--baseline", "all"], "empty name"),
        (["--masks", "y"], "required"),
    ],
)
def test_a_wrong_command_line(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        evaluate.main(words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_all_baselines_once(capsys):
    words = ["--images", "x", "--masks", "y", "--out", "z", "--baseline", "telea", "all", "--baseline", "mean"]
    assert sorted(evaluate.parse_arguments(words).baseline) == sorted(FILLS)


def test_help_needs_no_torch():
    code = "import sys, evaluate\ntry:\n    evaluate.main(['--help'])\nfinally:\n    assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--baseline" in result.stdout


def test_networks_are_called_by_their_name_or_by_folder_and_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a/w.pt", "b/w.pt", "x=y.pt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    models = name_models(["a/w.pt", "~/b/w.pt", "mine=b/w.pt", "x=y.pt", "shipped"])
    assert models["a/w"] == Path("a/w.pt")
    assert models["b/w"] == tmp_path / "b" / "w.pt"
    assert models["mine"] == Path("b/w.pt")
    assert models[f"{tmp_path.name}/x=y"] == Path("x=y.pt")
    assert models["shipped"].is_file()
    for wrong in ("", "mine=", "a"):
        with pytest.raises(UserError, match="no such file"):
            name_models([wrong])


def test_the_extras_of_the_command_line_are_those_of_the_metrics():
    assert {name for name, metric in METRICS.items() if metric.extra} == {*evaluate.EXTRAS}
