"""Imports of the scripts, and loading of networks without redundant computation."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import PConvUNet, load_for_prediction, load_model
from tests import foreign
from utils.checkpoint import save_weights
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
LARGE = {"torch", "numpy", "cv2", "PIL", "skimage", "scipy", "matplotlib", "tqdm"}

# Runs a script as a command and prints its imported modules at the end.
AS_COMMAND = """
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
code = None
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as stop:
    code = stop.code
print("MODULES", *sys.modules)
sys.exit(code)
"""


def new_process(code, *arguments, **environment):
    """Return what a new Python process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(PROJECT), **environment}
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules(printed):
    return set(printed.rpartition("MODULES")[2].split())


def network(depth=2, base_channels=3):
    """Return random weights and statistics, so that no part of the network is the identity."""
    torch.manual_seed(0)
    net = PConvUNet(depth, base_channels)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if "var" in name else torch.randn(tensor.shape) / 10)
    return net.eval()


def inputs():
    image, mask = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    mask[..., 3:11, 5:14] = 0
    return image, mask


def same(one, other):
    """Return whether two networks are equal bit for bit."""
    pair = inputs()
    with torch.no_grad():
        return torch.equal(one(*pair), other(*pair))


# --- imports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["main.py", "masks.py", "predict.py", "evaluate.py", "convert.py"])
def test_help_imports_nothing_large(script):
    printed = new_process(AS_COMMAND, PROJECT / script, "--help")
    assert "usage:" in printed
    assert not modules(printed) & LARGE


@pytest.fixture(scope="module")
def modules_of_torch():
    """Return the modules of a plain `import torch`, which differ between versions."""
    return modules(new_process("import torch, sys; print('MODULES', *sys.modules)"))


@pytest.mark.parametrize("project", [None, foreign.SNEAKY])
def test_a_prediction_imports_no_part_of_torch_that_it_can_do_without(tmp_path, modules_of_torch, project):
    state = foreign.weights(project, foreign.shapes(project, 2, 3)) if project else network().state_dict()
    torch.save({"model": state}, tmp_path / "net.pt")
    Image.fromarray(np.full((9, 9, 3), 100, np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.uint8(255) - np.eye(9, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    files = ["--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png", "--model", tmp_path / "net.pt"]
    printed = new_process(AS_COMMAND, PROJECT / "predict.py", *files)
    assert (tmp_path / "image_inpainted.png").exists()
    added = modules(printed) - modules_of_torch
    assert "model.network" in added
    # Even building a network on the device `meta` would import the compiler, which takes longest.
    assert not added & {"torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "torchvision", "skimage", "yaml"}


@pytest.mark.parametrize("enabled", [True, False])
def test_torch_is_imported_with_the_collector_at_rest(enabled):
    code = f"""
import gc, sys
if not {enabled}: gc.disable()
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
from utils.startup import import_torch
collections.clear()
import_torch()
assert not collections and "torch" in sys.modules
assert gc.get_freeze_count() > 10_000
assert gc.isenabled() == {enabled}
frozen = gc.get_freeze_count()
import_torch()
assert gc.get_freeze_count() == frozen
"""
    new_process(code)


# --- loading -----------------------------------------------------------------------------------------------------


def save(path, state):
    save_weights(path, state) if path.suffix == ".safetensors" else torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_network_for_training_has_its_own_weights(tmp_path, suffix):
    net = network()
    path = save(tmp_path / f"net{suffix}", net.state_dict())
    loaded = load_model(path)
    before = path.read_bytes()
    overwrite(path)
    assert same(loaded, net)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    path.write_bytes(before)
    with torch.no_grad():
        for tensor in loaded.state_dict().values():
            tensor.zero_()
    assert path.read_bytes() == before
    assert same(load_model(path), net)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("project", [None, *foreign.PROJECTS])
def test_a_network_for_prediction_is_the_folded_one_and_outlives_its_file(tmp_path, suffix, project):
    state = foreign.weights(project, foreign.shapes(project, 2, 3)) if project else network().state_dict()
    path = save(tmp_path / f"net{suffix}", state)
    folded = load_model(path).folded()
    loaded = load_for_prediction(path)
    overwrite(path)
    assert same(loaded, folded)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def overwrite(path):
    """Overwrite a file in place, as `cp` does. Processes that have it mapped see the new bytes."""
    with open(path, "r+b") as file:
        file.write(b"\x7f" * path.stat().st_size)


@pytest.mark.parametrize("load", [load_model, load_for_prediction])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_type_become_float32(tmp_path, load, dtype):
    state = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in network().state_dict().items()
    }
    loaded = load(save(tmp_path / "net.safetensors", state))
    expected = network()
    expected.load_state_dict(state)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert same(loaded, expected if load is load_model else expected.folded())


@pytest.mark.parametrize("load", [load_model, load_for_prediction])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("decoder.0.bn.weight"), "Missing key.*decoder.0.bn.weight"),
        (lambda state: state.update({"decoder.0.extra": torch.zeros(1)}), "Unexpected key.*decoder.0.extra"),
        (lambda state: state.update({"decoder.0.bn.weight": torch.zeros(9)}), "size mismatch for decoder.0.bn.weight"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(tmp_path, load, change, message):
    state = network().state_dict()
    change(state)
    path = save(tmp_path / "net.safetensors", state)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
