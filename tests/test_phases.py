"""Runs of several phases: exact resume across boundaries, non-finite steps, no device synchronisation."""

import contextlib
import os
import signal
import sys

import pytest
import torch

import main as training
from data.schedule import Schedule
from loss import InpaintingLoss
from model import VGG16Features
from tests.small_runs import (
    WITH_VGG,
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
from training.state import TrainState, make_network
from utils.checkpoint import load_checkpoint
from utils.config_files import load_config

CPU = torch.device("cpu")
SCHEDULE = Schedule(load_config(overrides=["phases=[{steps: 4, lr: 1e-3}, {steps: 9, lr: 1e-4}]"]))
# Each phase differs from the previous one in every key.
PHASES = (
    "phases=["
    "{steps: 3, lr: 1e-3, warmup: 2, image_size: 16, batch_size: 4, loss_weights: {perceptual: 0, style: 0, tv: 0}}, "
    "{steps: 3, lr: 1e-3, schedule: cosine, end_lr: 1e-4, amp: bf16, crop_scale: [0.5, 0.8]}, "
    "{steps: 3, lr: 5e-4, batch_size: 6, freeze_encoder_batch_norm: true, settle_batches: 2, loss_weights: {style: 0}}"
    "]"
)
VARIED = (PHASES, *WITH_VGG, "train.ema_decay=0.5", "train.eval_every=2")


@pytest.fixture(scope="module")
def varied(folder, tmp_path_factory):
    """Return an uninterrupted run of these phases."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "varied")
    run_main(*arguments(folder, run.path, *VARIED))
    return run


def assert_same_run(run, other):
    assert records(run) == records(other)
    assert_same_weights(run, other)
    assert run.weights.read_bytes() == other.weights.read_bytes()
    ours, theirs = load_checkpoint(run.last), load_checkpoint(other.last)
    assert ours.keys() == theirs.keys()
    for key in ("model", "ema"):
        assert all(torch.equal(ours[key][name], tensor) for name, tensor in theirs[key].items())
    for number, moments in theirs["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(ours["optimizer"]["state"][number][name], tensor)


def test_each_phase_trains_with_its_own_values(varied):
    lines = [line for line in records(varied) if "train/total" in line]
    schedule = Schedule(load_config(varied.config, resume=True))
    assert [line["train/lr"] for line in lines] == [schedule.phase_of(step).lr_at(step) for step in range(9)]
    all_terms = {term for term, weight in load_config(varied.config).loss.weights if weight}
    terms = [{name for name in all_terms if f"train/{name}" in line} for line in lines]
    assert terms == [{"valid", "hole"}] * 3 + [all_terms] * 3 + [all_terms - {"style"}] * 3
    frozen, thawed = "encoder.1.bn.weight", "decoder.0.bn.weight"
    for step in range(1, 10):
        before, after = (at_step(varied, number)["model"] for number in (step - 1, step))
        assert torch.equal(before[frozen], after[frozen]) == (step > 6)
        assert not torch.equal(before[thawed], after[thawed])


def test_total_is_the_sum_of_the_terms_by_the_weights_of_the_phase(varied):
    weights_of = [dict(phase.loss_weights) for phase in Schedule(load_config(varied.config, resume=True)).phases]
    for line in records(varied):
        if "train/total" in line:
            own = weights_of[(line["step"] - 1) // 3]
            total = sum(weight * line[f"train/{name}"] for name, weight in own.items() if weight)
            assert line["train/total"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("step", [0, 2, 3, 4, 6, 7])  # at 3 and 6 the next phase has not begun
def test_resume_is_exact_across_every_boundary(varied, tmp_path, step):
    run = copy_of(varied, tmp_path / "run", step)
    run_main("--resume", run.path)
    assert_same_run(run, varied)


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_that_is_stopped_on_a_boundary_goes_on_exactly(folder, varied, tmp_path, monkeypatch, step):
    run = RunFolder(tmp_path / "run")
    take_step = TrainState.take_step

    def and_stop(state, losses):
        take_step(state, losses)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(TrainState, "take_step", and_stop)
        stopped = training.main(arguments(folder, run.path, *VARIED, "train.save_every=100", "train.eval_every=100"))
    assert stopped == 128 + signal.SIGTERM
    assert load_checkpoint(run.last)["step"] == step
    run_main("--resume", run.path, "train.save_every=1", "train.eval_every=2")
    assert run.weights.read_bytes() == varied.weights.read_bytes()
    assert_same_weights(run, varied)


def test_a_phase_can_be_added_to_a_finished_run(folder, varied, tmp_path):
    more = PHASES.replace("}]", "}, {steps: 2, lr: 1e-4, image_size: 48, batch_size: 3}]")
    run, straight = copy_of(varied, tmp_path / "run", 9), RunFolder(tmp_path / "straight")
    run_main("--resume", run.path, more)
    run_main(*arguments(folder, straight.path, *VARIED, more))
    assert_same_weights(run, straight)


# --- a term of weight 0 --------------------------------------------------------------------------------------------


def test_without_perceptual_and_style_no_vgg_is_loaded_nor_called(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(VGG16Features, "forward", lambda *_: pytest.fail("called"))
    monkeypatch.setattr(VGG16Features, "__init__", lambda *_: pytest.fail("loaded"))
    run_main(*arguments(folder, tmp_path / "run", "loss.vgg16=none.safetensors", "phases.0.steps=1"))


def test_vgg_is_called_in_the_phases_that_need_it(folder, tmp_path, monkeypatch):
    calls = []
    forward = VGG16Features.forward
    monkeypatch.setattr(VGG16Features, "forward", lambda net, image: (calls.append(len(image)), forward(net, image))[1])
    phases = "phases=[{steps: 2, lr: 1e-3}, {steps: 1, lr: 1e-3, loss_weights: {style: 1}}, {steps: 2, lr: 1e-3}]"
    run_main(*arguments(folder, tmp_path / "run", phases))
    assert calls == [2, 4]  # the ground truth, then output and composite


# --- non-finite steps ----------------------------------------------------------------------------------------------

OPTIMIZERS = [(name, fused) for name in ("Adam", "AdamW", "Muon", "SGD") for fused in ("true", "false")]


def state_of(*overrides):
    config = load_config(overrides=["model.depth=2", "model.base_channels=4", "train.ema_decay=0.5", *overrides])
    torch.manual_seed(0)
    return TrainState(config, make_network(config, None, None), CPU)


def gradients(state, bad=None):
    for number, weight in enumerate(state.net.parameters()):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    if bad is not None:
        list(state.net.parameters())[3].grad.view(-1)[-1] = bad


def copied(tree):
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return tree.clone() if torch.is_tensor(tree) else tree


def assert_same_tree(ours, theirs):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_same_tree(ours[key], value)
    elif torch.is_tensor(theirs):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("steps", [0, 2])  # finite steps before it; with 0 the optimizer has no moments yet
@pytest.mark.parametrize("what", ["loss", "gradient", "infinite gradient"])
@pytest.mark.parametrize(("name", "fused"), OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, name, fused, what, steps):
    state = state_of(f"optim.name={name}", f"train.fused={fused}", "optim.weight_decay=0.1")
    twin = state_of(f"optim.name={name}", f"train.fused={fused}", "optim.weight_decay=0.1")
    good = {"total": torch.tensor(1.0), "hole": torch.tensor(2.0)}
    for one in (state, twin):
        for _ in range(steps):
            gradients(one)
            one.set_lr(1e-2)
            one.take_step(good)
    before, average = copied(state.net.state_dict()), copied(state.average.module.state_dict())
    gradients(state, bad={"loss": None, "gradient": float("nan"), "infinite gradient": float("inf")}[what])
    state.take_step({**good, "hole": torch.tensor(float("nan"))} if what == "loss" else good)
    assert_same_tree(state.net.state_dict(), before)
    assert_same_tree(state.average.module.state_dict(), average)
    with pytest.raises(ValueError, match=f"^step {steps + 1}: the {what.split()[-1]} is not finite") as error:
        state.check_finite(RunFolder(tmp_path), SCHEDULE)
    assert ("hole = nan" in str(error.value)) == (what == "loss")
    for one in (state, twin):  # the optimizer's moments are unaffected too
        gradients(one)
        one.take_step(good)
    assert_same_tree(state.net.state_dict(), twin.net.state_dict())
    ours, theirs = state.optimizer.state_dict()["state"], twin.optimizer.state_dict()["state"]
    assert_same_tree(ours, theirs)
    with pytest.raises(ValueError, match=f"^step {steps + 1}: "):  # later steps do not replace the first one
        state.check_finite(RunFolder(tmp_path), SCHEDULE)


def test_a_step_whose_gradient_overflows_float16_changes_nothing_and_the_run_goes_on(tmp_path):
    state, losses = state_of("train.amp=fp16"), {"total": torch.tensor(1.0)}
    state.scaler.scale(losses["total"])  # initialises the scaler, as a backward does
    for _ in range(2):
        gradients(state)
        state.take_step(losses)
    before, average = copied(state.net.state_dict()), copied(state.average.module.state_dict())
    gradients(state, bad=float("inf"))
    state.take_step(losses)
    assert_same_tree(state.net.state_dict(), before)
    assert_same_tree(state.average.module.state_dict(), average)
    state.check_finite(RunFolder(tmp_path), SCHEDULE)
    gradients(state)
    state.take_step(losses)
    assert not torch.equal(next(state.average.module.parameters()), next(iter(average.values())))


@pytest.mark.parametrize("later", [("total", "hole"), ("total", "style"), ("total", "valid", "hole", "tv")])
def test_a_loss_of_an_earlier_phase_is_named_with_its_phase(tmp_path, later):
    """The next record is in a later phase whose loss has other terms."""
    state = state_of()
    for step in range(7):
        gradients(state)
        losses = dict.fromkeys(later if step > 3 else ("total", "hole"), torch.tensor(1.0))
        state.take_step({**losses, "hole": torch.tensor(float("nan"))} if step == 2 else losses)
    with pytest.raises(ValueError, match=r"^step 3: the loss is not finite \(hole = nan\).* phases\.0\.lr="):
        state.check_finite(RunFolder(tmp_path), SCHEDULE)


@pytest.mark.parametrize("steps", [5, 6])  # the first and the second step of the second phase
def test_the_phase_that_made_the_weights_is_to_change(tmp_path, steps):
    state = state_of()
    for step in range(steps):
        gradients(state)
        state.take_step({"total": torch.tensor(1.0 if step < steps - 1 else float("inf"))})
    with pytest.raises(ValueError, match=rf"^step {steps}: the loss is not finite .* phases\.{steps - 5}\.lr="):
        state.check_finite(RunFolder(tmp_path), SCHEDULE)


def test_momentum_is_whole_where_the_first_step_of_all_is_skipped():
    """This happens with float16 at the start. torch's fused SGD would otherwise use uninitialised memory."""
    state = state_of("optim.name=SGD")
    for moments in state.optimizer.state.values():
        assert not moments["momentum_buffer"].any()
    gradients(state, bad=float("nan"))
    state.take_step({"total": torch.tensor(1.0)})
    for moments in state.optimizer.state.values():
        assert not moments["momentum_buffer"].any()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_diverges_stops_at_the_next_record_and_saves_nothing_bad(
    folder, tmp_path, capsys, monkeypatch, what
):
    def with_hook(*args):
        net, calls = make_network(*args), []

        def spoil(gradient):
            calls.append(1)
            return gradient * float("nan") if len(calls) == 3 else gradient

        next(net.parameters()).register_hook(spoil)
        return net

    forward, calls = InpaintingLoss.forward, []

    def broken(*args):
        calls.append(1)
        total, terms = forward(*args)
        return (total * float("nan") if len(calls) == 3 else total), terms

    if what == "gradient":
        monkeypatch.setattr("training.make_network", with_hook)
    else:
        monkeypatch.setattr(InpaintingLoss, "forward", broken)
    run = RunFolder(tmp_path / "run")
    every = ("train.log_every=4", "train.save_every=2", "train.eval_every=100", "phases.0.steps=9")
    line = fails(capsys, *arguments(folder, run.path, *every))
    assert line.startswith(f"error: step 3: the {what} is not finite")
    assert "python main.py" in line  # the command to resume with
    assert sorted(path.name for path in run.checkpoints.glob("step_*")) == ["step_00000000.pt", "step_00000002.pt"]
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert not run.metrics.exists() or records(run) == []
    monkeypatch.undo()
    run_main("--resume", run.path)
    straight = RunFolder(tmp_path / "straight")
    run_main(*arguments(folder, straight.path, *every))
    assert_same_weights(run, straight)


# --- no synchronisation between two records ------------------------------------------------------------------------

# Each makes the host wait for a GPU. numpy() does not: it raises for CUDA tensors.
WAITS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "__contains__", "nonzero")


@contextlib.contextmanager
def noting_waits(waits, active):
    """Append the name and caller of each call of a method in WAITS to `waits` while `active` is not empty."""
    with pytest.MonkeyPatch.context() as patch:
        for name in WAITS:
            method = getattr(torch.Tensor, name)

            def noted(tensor, *args, _name=name, _method=method):
                caller = sys._getframe(1)
                # AveragedModel counts its updates in a CPU tensor on every device.
                if active and not caller.f_code.co_filename.endswith("swa_utils.py"):
                    waits.append((_name, caller.f_code.co_filename, caller.f_lineno))
                return _method(tensor, *args)

            patch.setattr(torch.Tensor, name, noted)
        yield


@pytest.mark.parametrize(
    "more", [(), ("train.ema_decay=0.9",), ("optim.name=SGD", "train.accumulate=2", "phases.0.amp=bf16")]
)
def test_between_two_records_nothing_waits_for_the_device(folder, tmp_path, monkeypatch, more):
    waits, active = [], []
    take_step = TrainState.take_step

    def noted(state, losses):
        take_step(state, losses)
        if state.step == 1:
            active.append(1)
        if state.step == 6:
            active.clear()

    monkeypatch.setattr(TrainState, "take_step", noted)
    every = ("train.log_every=7", "train.save_every=7", "train.eval_every=7", "phases.0.steps=7", "phases.1.steps=0")
    with noting_waits(waits, active):
        run_main(*arguments(folder, tmp_path / "run", *every, *more))
        assert waits == []
        active.append(1)
        assert torch.ones(1)  # shows that the test can fail
    assert [name for name, *_ in waits] == ["__bool__"]
