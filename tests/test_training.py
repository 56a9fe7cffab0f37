"""main.py: files of a run, exact resume, and errors that stop it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.loader import as_floats, validation_batches
from data.samples import validation_pairs
from evaluation.metrics import picture_metrics
from main import parse_arguments
from model import PConvUNet, inpaint, load_model
from tests import foreign
from tests.small_runs import (
    STEPS,
    WITH_VGG,
    Started,
    arguments,
    assert_same_weights,
    at_step,
    copy_of,
    fails,
    records,
    run_main,
    weights,
)
from training.run_folder import RunFolder
from training.validation import validate
from utils.config_files import config_to_dict, load_config

PROJECT = Path(__file__).resolve().parent.parent


# --- files of a run ----------------------------------------------------------------------------------------------


def test_a_run_writes_all_that_it_promises(folder, straight):
    assert load_config(straight.config) == load_config(overrides=arguments(folder, straight.path))
    assert len(list(straight.path.glob("events.out.tfevents.*"))) == 1
    assert [p.name for p in sorted(straight.samples.iterdir())] == ["step_00000004.png", "step_00000008.png"]
    names = [p.name for p in sorted(straight.checkpoints.iterdir())]
    assert names == ["best.pt", "last.pt", *(f"step_{step:08d}.pt" for step in range(STEPS + 1))]
    lines = records(straight)
    assert [line["step"] for line in lines if "train/total" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "val/ssim" in line] == [4, 8]
    terms = [term for term, weight in load_config(straight.config).loss.weights if weight]
    assert all(f"train/{name}" in lines[0] for name in ("total", *terms, "lr"))
    lrs = [line["train/lr"] for line in lines if "train/lr" in line]
    assert lrs == [2e-4] * 4 + [5e-5] * 4


def test_tensorboard_shows_the_same_numbers(straight):
    board = EventAccumulator(str(straight.path)).Reload()
    assert board.Tags()["images"] == ["val/pictures"]
    for line in records(straight):
        for name in line.keys() - {"step"}:
            values = {event.step: event.value for event in board.Scalars(name)}
            assert values[line["step"]] == pytest.approx(line[name], rel=1e-6)


def test_a_checkpoint_is_a_plain_dict_that_loads_safely(straight):
    checkpoint = torch.load(straight.checkpoints / "step_00000003.pt", weights_only=True)
    assert set(checkpoint) >= {"model", "optimizer", "step", "config"}
    assert checkpoint["step"] == 3
    assert checkpoint["config"] == config_to_dict(load_config(straight.config))
    assert load_model(straight.last).depth == 2


def test_trained_metric_is_the_metric_of_the_saved_file(straight):
    net = load_model(straight.weights)
    scores = []
    for sample in validation_pairs(load_config(straight.config)):
        image, mask = as_floats(sample.image, sample.mask)
        comp = inpaint(net, image[None], mask[None], scale=1)[0]  # validation is a single pass
        scores.append(picture_metrics(comp.permute(1, 2, 0).numpy(), image.permute(1, 2, 0).numpy()))
    last = records(straight)[-1]
    for name in scores[0]:
        assert last[f"val/{name}"] == pytest.approx(np.mean([score[name] for score in scores]), rel=1e-5)


def test_old_checkpoints_go(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path, "train.save_every=2", "train.keep_checkpoints=2"))
    names = [p.name for p in sorted(run.checkpoints.iterdir())]
    assert names == ["best.pt", "last.pt", "step_00000006.pt", "step_00000008.pt"]
    assert os.path.samefile(run.last, run.checkpoints / "step_00000008.pt")


def test_a_run_shorter_than_save_every_still_saves(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path, "train.save_every=1000", "train.eval_every=1000", "train.log_every=1000"))
    assert torch.load(run.last, weights_only=True)["step"] == STEPS
    assert [line["step"] for line in records(run)] == [STEPS, STEPS]


# --- the moving average ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged(folder, tmp_path_factory):
    run = RunFolder(tmp_path_factory.mktemp("runs") / "averaged")
    run_main(*arguments(folder, run.path, "train.ema_decay=0.75"))
    return run


def test_the_moving_average_by_hand(averaged, straight):
    """It starts with the weights of step 1 and adds a quarter of each new value. Training itself is unchanged."""
    assert "ema" not in at_step(straight, 1)
    wanted = at_step(averaged, 1)["model"]
    for step in range(1, STEPS + 1):
        checkpoint = at_step(averaged, step)
        for name, tensor in checkpoint["model"].items():
            assert torch.equal(tensor, at_step(straight, step)["model"][name])
            if tensor.is_floating_point():
                wanted[name] = 0.75 * wanted[name] + 0.25 * tensor
                torch.testing.assert_close(checkpoint["ema"][name], wanted[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(wanted["encoder.0.conv.weight"], checkpoint["model"]["encoder.0.conv.weight"])


def test_validation_and_prediction_use_the_average(averaged):
    ema = at_step(averaged, STEPS)["ema"]
    for file in (averaged.last, averaged.weights):
        loaded = load_model(file).state_dict()
        assert all(torch.equal(loaded[name], ema[name]) for name in ema)
        assert loaded["hole_radius"] > 0
    batches = validation_batches(validation_pairs(load_config(averaged.config)), load_config(averaged.config))
    metrics, _ = validate(load_model(averaged.weights), batches, torch.device("cpu"))
    last = records(averaged)[-1]
    assert {name: last[f"val/{name}"] for name in metrics} == pytest.approx(metrics, rel=1e-6)


@pytest.mark.parametrize("step", [0, 1, 4, 6])
def test_a_resumed_average_equals_a_straight_one(averaged, tmp_path, step):
    run = copy_of(averaged, tmp_path / "run", step)
    run_main("--resume", run.path)
    assert run.weights.read_bytes() == averaged.weights.read_bytes()
    assert records(run) == records(averaged)


def test_an_average_switched_on_later_starts_from_there(straight, tmp_path):
    run = copy_of(straight, tmp_path / "run", 6)
    run_main("--resume", run.path, "train.ema_decay=0.75")
    before, after = (at_step(run, step)["model"]["decoder.1.conv.weight"] for step in (6, 7))
    average = at_step(run, 7)["ema"]["decoder.1.conv.weight"]
    torch.testing.assert_close(average, 0.75 * before + 0.25 * after)


# --- a run depends only on its config ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, 4, 5])  # 4: just before the switch to fine-tuning; 5: after it
def test_resume_equals_a_straight_run(straight, tmp_path, step):
    run = copy_of(straight, tmp_path / "moved", step)  # a run folder may be moved
    with open(run.metrics, "a") as file:
        file.write('{"step": 9, "tra')  # a line that a killed run left incomplete
    run_main("--resume", run.path)
    assert_same_weights(run, straight)
    assert records(run) == records(straight)
    assert run.weights.read_bytes() == straight.weights.read_bytes()


def test_a_run_can_be_made_longer(straight, folder, tmp_path):
    run = copy_of(straight, tmp_path / "run")
    run_main("--resume", run.path, "phases.1.steps=6")
    longer = RunFolder(tmp_path / "longer")
    run_main(*arguments(folder, longer.path, "phases.1.steps=6"))
    assert_same_weights(run, longer)


@pytest.mark.parametrize("change", [("data.workers=2",), ("train.eval_every=1",), ("train.log_every=7",)])
def test_workers_evaluations_and_records_change_nothing(folder, straight, tmp_path, change):
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path, *change))
    assert_same_weights(run, straight)


def test_the_seed_changes_the_run(folder, straight, tmp_path):
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path, "run.seed=1"))
    assert not torch.equal(weights(run)["encoder.0.conv.weight"], weights(straight)["encoder.0.conv.weight"])


@pytest.fixture(scope="module")
def longer(folder, tmp_path_factory):
    run = RunFolder(tmp_path_factory.mktemp("runs") / "longer")
    run_main(*arguments(folder, run.path, *LONGER))
    return run


LONGER = ("phases.0.steps=100", "train.eval_every=40")  # enough steps for any signal to arrive in time


def interrupted(folder, run, signum, *more):
    """Run main.py in a subprocess and signal it after its second step. Return the process and its exit code."""
    started = Started(run, *arguments(folder, run.path, *LONGER, *more))
    started.wait_for((run.checkpoints / "step_00000002.pt").exists)
    started.send(signum)
    return started, started.end()


def test_killed_and_resumed_equals_a_straight_run(folder, longer, tmp_path):
    run = RunFolder(tmp_path / "run")
    _, code = interrupted(folder, run, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert torch.load(run.last, weights_only=True)["step"] < 100
    run_main("--resume", run.path)
    assert_same_weights(run, longer)
    assert records(run) == records(longer)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(folder, longer, tmp_path, signum):
    run = RunFolder(tmp_path / "run")
    started, code = interrupted(folder, run, signum, "data.workers=1", "train.save_every=2")
    assert code == 128 + signum
    text = started.text()
    assert f"python main.py --resume {run.path}" in text
    assert "Traceback" not in text
    step = torch.load(run.last, weights_only=True)["step"]
    assert f"stopped at step {step} and saved" in text
    run_main("--resume", run.path, "data.workers=0", "train.save_every=100")
    assert_same_weights(run, longer)


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fine_tuning_freezes_the_encoders_batch_norm(straight):
    before, at_switch, after = (
        torch.load(straight.checkpoints / f"step_{step:08d}.pt", weights_only=True)["model"] for step in (4, 5, 8)
    )
    for key in after:
        if ".bn." in key and "num_batches" not in key:
            frozen = key.startswith("encoder")
            assert torch.equal(at_switch[key], after[key]) == frozen, key
            if frozen and key.endswith(("weight", "bias")):
                assert torch.equal(before[key], after[key]), key
    # The statistics were re-estimated before they were frozen.
    assert not torch.equal(before["encoder.1.bn.running_var"], at_switch["encoder.1.bn.running_var"])


@pytest.mark.parametrize(("finetune_lr", "level"), [(5e-4, True), (1.0, False)])  # the second checks the test
def test_the_loss_stays_level_across_the_switch(tmp_path, folder, finetune_lr, level):
    run = RunFolder(tmp_path / "run")
    more = ("data.train=sample", "data.val=sample", "data.val_pairs=1", "model.depth=3", "model.base_channels=8")
    more += ("train.batch_size=4", "phases.0.steps=60", "phases.1.steps=15", "phases.1.settle_batches=20")
    more += ("train.eval_every=1000", "train.save_every=1000", "phases.0.lr=2e-3", f"phases.1.lr={finetune_lr}")
    run_main(*arguments(folder, run.path, *more))
    losses = [line["train/total"] for line in records(run) if "train/total" in line]
    assert (np.mean(losses[60:]) < 1.5 * np.mean(losses[10:60])) == level


# --- errors ------------------------------------------------------------------------------------------------------


def test_a_used_run_folder_is_refused(folder, straight, capsys):
    before = sorted(path.name for path in straight.path.rglob("*"))
    line = fails(capsys, *arguments(folder, straight.path))
    assert f"--resume {straight.path}" in line
    assert before == sorted(path.name for path in straight.path.rglob("*"))


def test_photographs_that_are_trained_on_and_held_out_are_told_of(folder, tmp_path, capsys):
    few = ("phases.0.steps=1", "phases.1.steps=0")
    told = "the held-out metrics are measured on training pictures"
    run_main(*arguments(folder, tmp_path / "a", *few))
    assert told in capsys.readouterr().err
    shutil.copytree(folder / "images", tmp_path / "others")
    run_main(*arguments(folder, tmp_path / "b", *few, f"data.val={tmp_path / 'others'}"))
    assert told not in capsys.readouterr().err


def test_nothing_to_resume(tmp_path, capsys):
    assert "does not exist" in fails(capsys, "--resume", tmp_path / "none")
    assert "config.yml does not exist" in fails(capsys, "--resume", tmp_path)
    (tmp_path / "config.yml").touch()
    assert f"name the run's folder, {tmp_path}" in fails(capsys, "--resume", tmp_path / "config.yml")


def test_resume_with_another_model_is_refused(straight, tmp_path, capsys):
    shutil.copytree(straight.path, tmp_path / "run")
    line = fails(capsys, "--resume", tmp_path / "run", "model.base_channels=8", "phases.1.steps=5")
    assert "model.base_channels" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.train={}/none", "data.train: no such folder"),
        ("data.val={}/empty", "data.val: no images"),
        ("masks.train_dir={}/none", "masks.train_dir: no such folder.*masks.py"),
        ("masks.val_dir={}/empty", "masks.val_dir: no masks.*masks.py"),
        ("loss.vgg16={}/none.pth", "no VGG-16 weights"),
        ("run.device=cuda:99", "no device cuda:99"),
        ("model.detph=3", "model.detph.*model.depth"),
    ],
)
def test_a_start_that_fails_writes_nothing(folder, tmp_path, capsys, change, message):
    (tmp_path / "empty").mkdir()
    line = fails(capsys, *arguments(folder, tmp_path / "run", *WITH_VGG, change.format(tmp_path)))
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_in_one_line(folder, tmp_path, capsys, workers):
    (tmp_path / "images").mkdir()
    data = (folder / "images" / "0.png").read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(data[: len(data) // 2])
    more = (f"data.train={tmp_path / 'images'}", f"data.workers={workers}")
    line = fails(capsys, *arguments(folder, tmp_path / "run", *more))
    assert line.startswith("error: damaged image")
    assert "cut.png" in line


def test_overrides_may_stand_anywhere():
    args = parse_arguments(["run.seed=1", "--config", "a.yml", "run.device=cpu", "--rescan", "train.amp=none"])
    assert args.overrides == ["run.seed=1", "run.device=cpu", "train.amp=none"]
    assert (args.config, args.rescan) == ("a.yml", True)


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    line = fails(capsys, *arguments(folder, run.path, "optim.name=SGD", "phases.0.lr=1e30"))
    assert "step 2: the loss is not finite (total = " in line
    assert "phases.0.lr=" in line  # the advice; test_run_folders.py follows it
    kept = torch.load(run.last, weights_only=True)
    assert kept["step"] == 1


def test_init_from_starts_from_the_weights(folder, straight, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    run_main("--init-from", straight.weights, *arguments(folder, run.path))
    first = torch.load(run.checkpoints / "step_00000000.pt", weights_only=True)["model"]
    assert all(torch.equal(first[key], value) for key, value in weights(straight).items())
    more = arguments(folder, tmp_path / "other", "model.depth=4")
    assert "its model.depth is 2" in fails(capsys, "--init-from", straight.weights, *more)


@pytest.mark.parametrize("project", foreign.PROJECTS)
def test_a_run_from_another_projects_weights_is_that_network(folder, tmp_path, project):
    published = tmp_path / "published.pth"
    torch.save({"model": foreign.weights(project, foreign.shapes(project, 2, 4))}, published)
    run = RunFolder(tmp_path / "run")
    run_main("--init-from", published, *arguments(folder, run.path))
    image, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32).triu()
    start, end = load_model(run.checkpoints / "step_00000000.pt"), load_model(run.weights)
    assert torch.equal(start(image, mask), load_model(published)(image, mask))
    assert not torch.equal(end(image, mask), start(image, mask))
    kept = ("mean", "std", "ratio_twice")
    assert all(torch.equal(end.state_dict()[key], start.state_dict()[key]) for key in kept)
    assert [key for key in end.state_dict() if ".bn." in key] == [key for key in start.state_dict() if ".bn." in key]
    for step in (0, 6):
        again = copy_of(run, tmp_path / f"again_{step}", step)
        run_main("--resume", again.path)
        assert_same_weights(again, run)
        assert again.weights.read_bytes() == run.weights.read_bytes()


def test_a_network_with_a_base_goes_on_with_the_base_in_its_decoder(folder, tmp_path):
    first, second = RunFolder(tmp_path / "first"), RunFolder(tmp_path / "second")
    run_main(*arguments(folder, first.path, "model.base=push_pull"))
    run_main("--init-from", first.weights, *arguments(folder, second.path, "model.base=thin_plate"))
    before, start = load_model(first.weights), load_model(second.checkpoints / "step_00000000.pt")
    assert start.base == "thin_plate"
    known = before.decoder[0].conv.weight
    assert torch.equal(start.decoder[0].conv.weight[:, : known.shape[1]], known)
    assert not start.decoder[0].conv.weight[:, known.shape[1] :].any()
    assert load_model(second.weights).decoder[0].conv.weight[:, known.shape[1] :].any()


def test_fine_tuning_alone_from_other_weights(folder, straight, tmp_path):
    run = RunFolder(tmp_path / "run")
    run_main("--init-from", straight.weights, *arguments(folder, run.path, "phases.0.steps=0"))
    assert [line["train/lr"] for line in records(run) if "train/lr" in line] == [5e-5] * 4


@pytest.mark.parametrize("name", ["AdamW", "Muon", "SGD"])
def test_other_optimizers_resume_exactly_too(folder, tmp_path, name):
    run = RunFolder(tmp_path / "run")
    more = (f"optim.name={name}", "optim.weight_decay=0.01", "phases.0.lr=1e-5", "train.eval_every=100")
    run_main(*arguments(folder, run.path, *more))
    again = copy_of(run, tmp_path / "again", 4)
    run_main("--resume", again.path)
    assert_same_weights(again, run)


def test_help_and_mistakes_need_no_torch():
    code = (
        "import sys, main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert main.main(['train.batch_size=no']) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train.batch_size" in done.stderr


def test_the_network_of_a_checkpoint_can_be_asked_for(straight):
    assert isinstance(load_model(straight.checkpoints / "step_00000000.pt"), PConvUNet)
