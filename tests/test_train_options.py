"""train.amp, channels_last, compile and fused: the same run to rounding, with exact resume."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import PConvUNet, load_model
from tests.small_runs import arguments, assert_same_weights, at_step, copy_of, fails, records, run_main, weights
from training.run_folder import RunFolder
from training.state import make_network

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Return a function that trains a run with given options, once each."""
    runs = {}

    def run_of(*more):
        if more not in runs:
            run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
            run_main(*arguments(folder, run.path, *more))
            runs[more] = run
        return runs[more]

    return run_of


def resumed(run, path, step, *more):
    """Return a copy of the run, resumed from this step."""
    again = copy_of(run, path, step)
    run_main("--resume", again.path, *more)
    return again


def losses(run):
    return np.array([line["train/total"] for line in records(run) if "train/total" in line])


def difference(run, other):
    """Return the largest difference between weights of the same name, in units of the learning rate, 2e-4.

    Relative differences would depend only on the smallest weights, because Adam's steps do not scale with a weight.
    """
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if name.endswith((".weight", ".bias"))]
    return max(float((ours[name] - theirs[name]).abs().max()) for name in names) / 2e-4


# --- amp -----------------------------------------------------------------------------------------------------------

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def small_scale(monkeypatch):
    """Start float16's loss scale where a tiny network's gradients are finite. Normally that takes several steps."""
    kind = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **more: kind(*args, init_scale=64.0, **more))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("parts", [1, 2])
def test_half_types_train_as_float32_does(trained, small_scale, amp, parts):
    sizes = (f"train.accumulate={parts}", "phases.0.steps=3")
    half, full = trained(*sizes, f"train.amp={amp}"), trained(*sizes)
    assert not np.array_equal(losses(half), losses(full))
    assert losses(half) == pytest.approx(losses(full), rel=0.02)
    assert all(tensor.dtype != AMP[amp] for tensor in weights(half).values())
    first, last = (at_step(half, step)["model"]["encoder.0.conv.weight"] for step in (5, 6))
    assert not torch.equal(first, last)  # the scaled steps were taken


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_types_resume_exactly(trained, small_scale, tmp_path, amp, step):
    run = trained("train.accumulate=1", "phases.0.steps=3", f"train.amp={amp}")
    again = resumed(run, tmp_path / "again", step)
    assert_same_weights(again, run)
    assert records(again) == records(run)
    assert again.weights.read_bytes() == run.weights.read_bytes()


def test_the_loss_scale_is_a_part_of_the_checkpoint(folder, tmp_path):
    """A tiny network's gradients overflow at torch's initial scale, so each step only halves it."""
    run = RunFolder(tmp_path / "run")
    few = ("phases.1.steps=0", "train.eval_every=100", "train.amp=fp16", "loss.weights.style=100_000")
    run_main(*arguments(folder, run.path, "phases.0.steps=2", *few))
    assert [at_step(run, step)["scaler"]["scale"] for step in (0, 1, 2)] == [2.0**16, 2.0**15, 2.0**14]
    starts = [at_step(run, step)["model"]["encoder.0.conv.weight"] for step in (0, 2)]
    assert torch.equal(*starts)
    run_main("--resume", run.path, "phases.0.steps=3")
    assert at_step(run, 3)["scaler"]["scale"] == 2.0**13
    kept = at_step(run, 3)
    without = {key: value for key, value in kept.items() if key != "scaler"}  # as in a float32 run
    for checkpoint, scale in (without, 2.0**15), ({**kept, "scaler": {**kept["scaler"], "scale": 2.0**-8}}, 2.0**-8):
        run.save_checkpoint(checkpoint, 100)
        run_main("--resume", run.path, "phases.0.steps=4")
        assert at_step(run, 4)["scaler"]["scale"] == scale
    assert not torch.equal(at_step(run, 4)["model"]["encoder.0.conv.weight"], starts[0])  # this step was taken


def test_gradients_that_no_scale_makes_finite_stop_the_run(folder, tmp_path, capsys, monkeypatch):
    run = RunFolder(tmp_path / "run")
    torch_scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **more: torch_scaler(*args, init_scale=2.0**-15, **more))
    monkeypatch.setattr("training.make_network", lambda *args: spoiled(make_network(*args)))
    line = fails(capsys, *arguments(folder, run.path, "train.amp=fp16"))
    assert "step 2: the gradients overflow float16 even with the loss scaled by 7.6" in line
    assert "train.amp" in line
    assert torch.load(run.last, weights_only=True)["step"] == 1


def spoiled(net):
    """Return the network with NaN gradients."""
    next(net.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    return net


@pytest.mark.parametrize("amp", ["none", "bf16", "auto"])  # auto: float32 on a CPU
def test_validation_is_in_float32(folder, tmp_path, monkeypatch, amp):
    seen = {True: set(), False: set()}
    forward = PConvUNet.forward

    def noted(net, image, mask):
        output = forward(net, image, mask)
        seen[torch.is_grad_enabled()].add(output.dtype)
        return output

    monkeypatch.setattr(PConvUNet, "forward", noted)
    run = RunFolder(tmp_path / "run")
    run_main(*arguments(folder, run.path, f"train.amp={amp}"))
    assert seen == {True: {AMP.get(amp, torch.float32)}, False: {torch.float32}}


# --- channels_last, fused --------------------------------------------------------------------------------------------


def layouts(state):
    """Return whether each convolution weight is channels-last; single-channel weights are both."""
    return {
        t.is_contiguous(memory_format=torch.channels_last) for t in state.values() if t.ndim == 4 and t.shape[1] > 1
    }


def optimizer_of(name):
    return (f"optim.name={name}", f"phases.0.lr={1e-5 if name == 'SGD' else 2e-4}")


@pytest.mark.parametrize("option", ["channels_last", "fused"])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "Muon", "SGD"])
def test_memory_layout_and_fused_steps_change_rounding_alone(trained, tmp_path, option, name):
    """The same holds for an option changed in the middle of a run or of fine-tuning."""
    runs = {value: trained(*optimizer_of(name), f"train.{option}={value}") for value in ("true", "false")}
    ours = [runs["true"]]
    for value, step in (("true", 3), ("false", 6)):
        run = runs["false" if value == "true" else "true"]
        ours.append(resumed(run, tmp_path / value, step, f"train.{option}={value}"))
    for run in ours:
        assert losses(run) == pytest.approx(losses(runs["false"]), rel=1e-4)  # 4e-7 was measured with one thread
        assert difference(run, runs["false"]) < 1
    again = resumed(runs["false"], tmp_path / "again", 3)
    assert_same_weights(again, runs["false"])
    assert again.weights.read_bytes() == runs["false"].weights.read_bytes()


def test_networks_load_whatever_their_memory_layout(trained):
    image, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32).triu()
    pictures = []
    for value in ("true", "false"):
        run = trained(*optimizer_of("Adam"), f"train.channels_last={value}")
        assert layouts(weights(run)) == {value == "true"}
        nets = [load_model(run.last), load_model(run.weights)]
        first, second = (net(image, mask) for net in nets)
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
        pictures.append(first)
    torch.testing.assert_close(*pictures, rtol=1e-3, atol=1e-3)
    start, end = (load_model(run.checkpoints / f"step_{step:08d}.pt") for step in (0, 8))
    assert (start(image, mask) - end(image, mask)).abs().max() > 1e-2  # otherwise the test could not fail


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_checkpoints_from_before_these_options_resume(trained, tmp_path, name):
    """Their optimizer state has fused=None, and their tensors are contiguous."""
    run = trained(*optimizer_of(name), "train.fused=false")
    old = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, old.path)
    kept = at_step(run, 3)
    for group in kept["optimizer"]["param_groups"]:
        group.update(fused=None, foreign=None)
    for state in kept["optimizer"]["state"].values():
        state.update({key: value.contiguous() for key, value in state.items() if torch.is_tensor(value)})
    kept["model"] = {key: tensor.contiguous() for key, tensor in kept["model"].items()}
    for key in ("amp", "channels_last", "compile", "fused"):
        del kept["config"]["train"][key]
    old.save_checkpoint(kept, 100)
    run_main("--resume", old.path, "train.fused=true")
    assert losses(old) == pytest.approx(losses(run), rel=1e-4)
    assert at_step(old, 8)["optimizer"]["param_groups"][0]["fused"] is True


# --- compile ---------------------------------------------------------------------------------------------------------


def as_a_process(cache, *args, **environment):
    """Run main.py in a process with an empty compile cache. Its warnings from torch do not count here."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "main.py", *args]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_steps_change_rounding_alone(folder, tmp_path):
    runs = [RunFolder(tmp_path / name) for name in ("plain", "compiled")]
    few = ("phases.0.steps=3", "phases.1.steps=2")
    run_main(*arguments(folder, runs[0].path, *few))
    done = as_a_process(tmp_path / "cache", *arguments(folder, runs[1].path, *few, "train.compile=default"))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache").rglob("*.so"))  # something was compiled
    assert "recompile_limit" not in done.stderr
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-4)
    assert difference(runs[1], runs[0]) < 0.05


@pytest.mark.slow
def test_without_a_compiler_the_user_is_told_in_one_line(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    words = arguments(folder, run.path, "train.compile=default")
    done = as_a_process(tmp_path / "cache", *words, CXX="no-such-compiler")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: train.compile: torch can't compile the network (")
    assert "It needs a C++ compiler, such as g++; install one, or set train.compile=none" in line


# --- memory ----------------------------------------------------------------------------------------------------------

PAGES = """
import resource, sys
from utils.startup import keep_freed_memory
from utils.startup import import_torch
import_torch()  # as main.py does: it has a say in how large tensors are aligned
import torch
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(12):  # the heap may grow a few times first, by the small blocks between
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by other rules")
def test_freed_memory_is_kept():
    environment = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    found = {}
    for how in ("kept", "given back"):
        command = [sys.executable, "-c", PAGES, how]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
        found[how] = int(done.stdout)
    assert found["kept"] < 8
    assert found["given back"] >= 32  # of 2 MB each; otherwise the test would show nothing
