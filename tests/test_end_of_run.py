"""End of a run: it exports the best or the last network, never a non-finite one, and estimates its duration."""

import pytest
import torch
from safetensors.torch import load_file

import training.setup
from tests.small_runs import STEPS, arguments, copy_of, fails, run_main
from training.meter import FORECAST_AT, forecast
from training.run_folder import RunFolder
from utils.checkpoint import load_checkpoint
from utils.config_files import DEFAULT_CONFIG, load_config

# The second phase undoes what the first has learnt.
WORSE = ("train.eval_every=2", "phases.0.lr=2e-3", "phases.1.lr=0.3")


def same(weights, state):
    assert weights.keys() == state.keys()
    return all(torch.equal(weights[name], state[name]) for name in weights)


@pytest.mark.parametrize("average", [0, 0.5])
def test_a_run_ends_with_its_best_or_its_last_network_and_says_which(folder, tmp_path, capsys, average):
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path, *WORSE, f"train.ema_decay={average}", "train.export=best"))
    key = "ema" if average else "model"
    best, last = load_checkpoint(run.best), load_checkpoint(run.last)
    assert best["step"] < STEPS
    assert same(load_file(run.weights), best[key])
    assert f"is the network of step {best['step']}, the best of the run" in capsys.readouterr().out
    # A finished run can be resumed to export the other network.
    run_main("--resume", run.path, "train.export=last")
    assert same(load_file(run.weights), last[key])
    assert f"is the network of step {STEPS}, the last of the run" in capsys.readouterr().out


def test_a_resumed_run_ends_with_the_same_best(folder, tmp_path):
    straight = RunFolder(tmp_path / "straight")
    run_main(*arguments(folder, straight.path, *WORSE, "train.export=best"))
    run = copy_of(straight, tmp_path / "run", 5)
    run_main("--resume", run.path)
    assert run.weights.read_bytes() == straight.weights.read_bytes()


def test_without_the_best_the_last_is_taken_and_told(folder, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path, "train.export=best"))
    run.best.unlink()
    run.best.write_bytes(b"")
    run_main("--resume", run.path)
    assert "the last network is exported instead of the best" in capsys.readouterr().err
    assert same(load_file(run.weights), load_checkpoint(run.last)["model"])


@pytest.mark.parametrize(("config", "export"), [("demo", "best"), ("photos", "last"), ("paper_512", "last")])
def test_what_each_config_ends_with(config, export):
    assert load_config(DEFAULT_CONFIG.parent / "configs" / f"{config}.yml").train.export == export


def test_a_learning_rate_that_float32_does_not_hold_is_refused(folder, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    assert "phases.1.lr: 1e+39" in fails(capsys, *arguments(folder, run.path, "phases.1.lr=1e39"))
    assert not run.path.exists()


def test_statistics_that_are_not_finite_are_not_written(folder, tmp_path, capsys, monkeypatch):
    run = RunFolder(tmp_path / "run")
    begin_phase = training.setup.begin_phase

    def spoiled(config, phase, state, *more):
        state.net.encoder[1].bn.running_var.fill_(torch.inf)
        return begin_phase(config, phase, state, *more)

    monkeypatch.setattr("training.begin_phase", spoiled)
    line = fails(capsys, *arguments(folder, run.path))
    assert "a weight of the network is not finite" in line
    assert load_checkpoint(run.last)["step"] == 0


def test_a_run_says_how_long_it_will_take(folder, tmp_path, capsys):
    more = (f"phases.0.steps={FORECAST_AT + 5}", "phases.1.steps=0", "train.save_every=100", "train.eval_every=100")
    run_main(*arguments(folder, tmp_path / "run", *more))
    assert capsys.readouterr().out.count("the remaining 5 steps take about ") == 1


@pytest.mark.parametrize(
    ("seconds", "steps", "device", "words"),
    [
        (0.5, 100, "cpu", "about 50 seconds"),
        (0.5, 600, "cpu", "about 5 minutes"),
        (2, 9000, "cuda", "about 5 hours"),
        (288, 300_000, "cpu", "about 3 years"),
        (1, 300_000, "cuda", "about 3 days"),
    ],
)
def test_the_forecast_in_words(seconds, steps, device, words):
    text = forecast(seconds, steps, device)
    assert words in text
    assert ("configs/photos.yml" in text) == (words == "about 3 years")
