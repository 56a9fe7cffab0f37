"""Run folders after damage, a NaN, moves, copies, older versions and restarts."""

import errno
import json
import os
import re
import shlex
import shutil

import pytest
import torch

import main
import training.run_folder
from tests.small_runs import STEPS, arguments, contents, copy_of, fails, run_main, same_weights, weights
from training.run_folder import RunFolder
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config_files import load_config
from utils.plain_yaml import format_yaml, parse_yaml

# --- checkpoints with valid keys and invalid values --------------------------------------------------------------


def first_moments(checkpoint):
    return checkpoint["optimizer"]["state"][0]


def spoil_average(checkpoint):
    checkpoint["ema"] = {**checkpoint["model"]}
    checkpoint["ema"].popitem()


def spoil_weight(checkpoint):
    checkpoint["model"]["encoder.0.conv.weight"][0, 0, 0, 0] = torch.nan


WRONG_VALUES = {
    "a moment of another shape": lambda c: first_moments(c).update(exp_avg=torch.zeros(3)),
    "a moment that is text": lambda c: first_moments(c).update(exp_avg_sq="large"),
    "a sparse moment": lambda c: first_moments(c).update(exp_avg=first_moments(c)["exp_avg"].to_sparse()),
    "a moment that is not finite": lambda c: first_moments(c)["exp_avg"].fill_(torch.nan),
    "a moment of no weight": lambda c: c["optimizer"]["state"].update({999: first_moments(c)}),
    "a count of steps below 0": lambda c: first_moments(c)["step"].fill_(-1),
    "a moment that is missing": lambda c: first_moments(c).pop("exp_avg"),
    "the moments of another optimizer": lambda c: c["optimizer"]["state"].update({0: {"momentum_buffer": None}}),
    "moments that are a list": lambda c: c["optimizer"].update(state=[]),
    "no optimizer": lambda c: c.update(optimizer=None),
    "no groups": lambda c: c["optimizer"].update(param_groups=[]),
    "groups of other weights": lambda c: c["optimizer"]["param_groups"][0].update(params=[0]),
    "best as text": lambda c: c.update(best="low"),
    "best that is no number": lambda c: c.update(best=float("nan")),
    "a step below 0": lambda c: c.update(step=-3),
    "a step that is true": lambda c: c.update(step=True),
    "a config that is text": lambda c: c.update(config="none"),
    "a config without sections": lambda c: c.update(config={}),
    "a config of another network": lambda c: c["config"]["model"].update(depth=3),
    "a weight of another shape": lambda c: c["model"].update({"encoder.1.conv.weight": torch.zeros(2, 2)}),
    "a weight that is missing": lambda c: c["model"].pop("encoder.1.conv.weight"),
    "a weight that is not finite": spoil_weight,
    "an average without a weight": spoil_average,
    "a loss scale that is text": lambda c: c.update(scaler={"scale": "large"}),
}


@pytest.mark.parametrize("change", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_checkpoint_of_wrong_values_is_named_and_the_next_one_taken(straight, tmp_path, capsys, change):
    run = copy_of(straight, tmp_path / "run", STEPS)
    checkpoint = load_checkpoint(run.last)
    change(checkpoint)
    run.last.unlink()
    save_checkpoint(run.last, checkpoint)
    shutil.copy(run.last, run.checkpoints / "step_00000008.pt")
    run_main("--resume", run.path)
    error = capsys.readouterr().err
    assert f"resuming from {run.checkpoints / 'step_00000007.pt'}, step 7" in error
    assert f"{run.last}: " in error or f"{run.last} " in error
    assert same_weights(run, straight)


def test_options_of_the_optimizer_come_from_the_config(straight, tmp_path):
    run = copy_of(straight, tmp_path / "run", 5)
    checkpoint = load_checkpoint(run.last)
    checkpoint["optimizer"]["param_groups"][0].update(eps="small", betas=None, maximize=True)
    run.last.unlink()
    save_checkpoint(run.last, checkpoint)
    run_main("--resume", run.path)
    assert same_weights(run, straight)


# --- earlier checkpoints, and the advice after a NaN -------------------------------------------------------------


def test_a_run_goes_on_from_the_checkpoint_that_is_named(straight, tmp_path):
    run = copy_of(straight, tmp_path / "run", STEPS)
    shutil.copy(straight.best, run.best)
    run_main("--resume", run.checkpoints / "step_00000005.pt", "phases.1.lr=1e-3")
    other = copy_of(straight, tmp_path / "other", 5)
    run_main("--resume", other.path, "phases.1.lr=1e-3")
    assert same_weights(run, other)
    assert not same_weights(run, straight)
    assert load_checkpoint(run.best)["step"] == load_checkpoint(other.best)["step"]
    steps = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert len([step for step in steps if step == 6]) == 1


def advised(line):
    """Return the arguments of the command in an error."""
    (command,) = re.findall(r"`python main.py (.*?)`", line)
    return shlex.split(command)


def follow(capsys, line):
    """Run the advised command, then that of each further error. Returns the number of commands until success."""
    for count in range(1, 4):
        capsys.readouterr()
        if training_main(*advised(line)) == 0:
            return count
        line = capsys.readouterr().err
    raise AssertionError(line)


def training_main(*args):
    return main.main([str(arg) for arg in args])


@pytest.mark.parametrize("log_every", [1, 2])
def test_the_advice_after_a_nan_in_the_second_phase_works(folder, tmp_path, capsys, log_every):
    run = RunFolder(tmp_path / "run")
    more = ("phases.1.steps=20", "phases.1.lr=1e30", f"train.log_every={log_every}")
    line = fails(capsys, *arguments(folder, run.path, *more))
    assert "is not finite" in line
    assert advised(line)[0] == "--resume"
    assert follow(capsys, line) == 1
    assert all(bool(tensor.isfinite().all()) for tensor in weights(run).values())
    assert load_checkpoint(run.last)["step"] == 24


def test_the_advice_after_a_nan_from_the_start_works(folder, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    more = ("phases.0.steps=20", "phases.0.lr=1e9", "train.keep_checkpoints=1", "train.log_every=5")
    line = fails(capsys, *arguments(folder, run.path, *more))
    assert "is not finite" in line
    assert follow(capsys, line) == 1


def test_an_infinite_loss_in_the_first_step_is_not_blamed_on_the_learning_rate(folder, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    line = fails(capsys, *arguments(folder, run.path, "loss.weights.hole=1e39"))
    assert "step 1: the loss is not finite" in line
    assert "look at loss.weights" in line
    assert "lr" not in line.split("look at")[1]


def test_no_room_for_the_first_checkpoint(folder, straight, tmp_path, capsys, monkeypatch):
    run = RunFolder(tmp_path / "run")

    def full(path, checkpoint):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(training.run_folder, "save_checkpoint", full)
        line = fails(capsys, *arguments(folder, run.path))
    assert "No space left on device" in line
    assert "start the run again with the same command" in line
    run_main(*arguments(folder, run.path))
    assert same_weights(run, straight)


# --- contents of the folder --------------------------------------------------------------------------------------


def test_only_what_the_run_wrote_goes(folder, straight, tmp_path):
    run = copy_of(straight, tmp_path / "run", 6)
    own = [
        run.checkpoints / "step_6_before_change.pt",
        run.checkpoints / "step_00000003_copy.pt",
        run.checkpoints / ".mine.tmp",
        run.path / ".mine.tmp",
    ]
    for path in own:
        path.write_text("precious")
    left = run.checkpoints / ".last.pt.4711.tmp"  # left by a killed process
    left.write_text("half")
    run_main("--resume", run.path, "train.keep_checkpoints=2")
    assert [path.read_text() for path in own] == ["precious"] * 4
    assert not left.exists()
    names = sorted(path.name for path in run.checkpoints.glob("step_????????.pt"))
    assert names == ["step_00000007.pt", "step_00000008.pt"]


def test_a_run_that_was_killed_before_it_pruned_prunes_when_it_goes_on(straight, tmp_path):
    run = copy_of(straight, tmp_path / "run", STEPS)
    run.config.write_text(run.config.read_text().replace("keep_checkpoints: 100", "keep_checkpoints: 2"))
    run_main("--resume", run.path)
    names = sorted(path.name for path in run.checkpoints.glob("step_*.pt"))
    assert names == ["step_00000007.pt", "step_00000008.pt"]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_run_whose_folder_was_moved_writes_nothing_more(folder, straight, tmp_path, capsys, monkeypatch, replaced):
    run, moved = RunFolder(tmp_path / "run"), tmp_path / "moved"
    record = RunFolder.record
    seen = {}

    def record_and_move(self, step, *args):
        if step == 3 and not seen:
            os.rename(self.path, moved)
            if replaced:
                shutil.copytree(straight.path, self.path)
            seen.update(contents(tmp_path))
        record(self, step, *args)

    monkeypatch.setattr(RunFolder, "record", record_and_move)
    line = fails(capsys, *arguments(folder, run.path))
    assert f"{run.path} is no longer the folder that this run has locked" in line
    assert contents(tmp_path) == seen
    monkeypatch.setattr(RunFolder, "record", record)
    run_main("--resume", moved)
    assert same_weights(RunFolder(moved), straight)


# --- older versions ----------------------------------------------------------------------------------------------


def older(tree):
    """Return the config as the first version with `phases` wrote it."""
    for section, keys in {
        "data": ("crop_unit", "max_bad"),
        "masks": ("crop", "size"),
        "model": ("base",),
        "train": ("accumulate", "amp", "channels_last", "checkpoint_activations", "compile", "fused", "ema_decay"),
    }.items():
        for key in keys:
            del tree[section][key]
    tree["train"].pop("export", None)
    return tree


def test_a_run_of_an_older_version_goes_on(folder, tmp_path, capsys):
    straight = RunFolder(tmp_path / "straight")
    as_before = ["data.crop_unit=area", "data.crop_scale=[0.3, 1.0]", "data.max_bad=0", "train.amp=none"]
    as_before += ["train.channels_last=false", "train.fused=false"]
    run_main(*arguments(folder, straight.path, *as_before))
    run = copy_of(straight, tmp_path / "run", 6)
    run.config.write_text(format_yaml(older(parse_yaml(run.config.read_text(), "config"))))
    for path in run.checkpoints.iterdir():
        checkpoint = load_checkpoint(path)
        older(checkpoint["config"])
        path.unlink()
        save_checkpoint(path, checkpoint)
    capsys.readouterr()
    run_main("--resume", run.path)
    error = capsys.readouterr().err
    assert "without model.base, which is newer than the run; it continues with none, as before" in error
    assert same_weights(run, straight)
    assert load_config(run.config, resume=True).phases == load_config(straight.config, resume=True).phases


def test_a_run_of_an_older_version_can_be_made_longer(straight, tmp_path):
    run = copy_of(straight, tmp_path / "run", 6)
    tree = parse_yaml(run.config.read_text(), "config")
    del tree["masks"]["size"]
    run.config.write_text(format_yaml(tree))
    run_main("--resume", run.path, "phases.1.steps=6")
    assert load_checkpoint(run.last)["step"] == 10


# --- restarts by torchrun ----------------------------------------------------------------------------------------


def test_a_used_folder_is_refused_for_good(folder, straight, tmp_path, capsys, monkeypatch):
    run = copy_of(straight, tmp_path / "run", 5)
    (run.path / "lock").write_text("process 1 on here\n0123\nlaunched by 1 as none\n")
    before = contents(run.path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for count in (0, 1, 2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        line = fails(capsys, *arguments(folder, run.path), "--init-from", straight.last)
        assert "is not empty" in line
    assert contents(run.path) == before


def test_a_run_that_torchrun_began_goes_on_when_it_starts_again(folder, straight, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path))
    shutil.copy(run.checkpoints / "step_00000005.pt", run.last)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run_main(*arguments(folder, run.path))
    assert same_weights(run, straight)


# --- meaning of commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--resume", ""], "--resume is empty"),
        (["--config", ""], "--config is empty"),
        (["--init-from", ""], "--init-from is empty"),
        (["--resume", "RUN", "run.dir=elsewhere"], "run.dir"),
        (["--resume", "RUN", "run={dir: elsewhere}"], "run.dir"),
        (["--resume", "RUN", " run.dir =elsewhere"], "run.dir"),
        (["--resume", "RUN", "phases.0.steps=2", "phases.1.steps=0"], "2 values can't change"),
        (["--resume", "RUN/checkpoints/none.pt"], "does not exist"),
        (["--resume", "RUN/config.yml"], "config.yml"),
    ],
)
def test_what_means_nothing_is_refused(straight, tmp_path, capsys, args, message):
    run = copy_of(straight, tmp_path / "run", 6)
    before = contents(run.path)
    try:
        code = training_main(*[arg.replace("RUN", str(run.path)) for arg in args])
    except SystemExit as error:
        code = error.code
    assert code
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert contents(run.path) == before
