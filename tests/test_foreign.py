"""Other projects' weights: outputs equal those of their own networks, in every file format that load_model reads."""

import argparse
import builtins
import collections
import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import model.foreign
from model import PConvUNet, load_model, settle_encoder_batch_norm
from model.foreign import in_our_form, network_for
from model.loading import read_network
from model.tensors_only import LEGACY_MAGIC
from tests import foreign
from tests.foreign import MMAGIC, NAOTO, PROJECTS, SNEAKY
from utils.checkpoint import load_checkpoint, save_weights
from utils.errors import UserError

VECTORS = Path(__file__).resolve().parent / "vectors"
NAMES = {NAOTO: "naoto0804/", SNEAKY: "SneakySketchers", MMAGIC: "open-mmlab/mmagic"}
DEPTH, BASE = 3, 4


def small(project, depth=DEPTH, base=BASE):
    return foreign.weights(project, foreign.shapes(project, depth, base))


def converted(state):
    ours, _ = in_our_form(state)
    net = network_for(ours)
    net.load_state_dict(ours)
    return net.eval()


def inputs(n=2, size=32, dtype=torch.float32):
    """Return an image and masks with empty windows on every level; one mask is nearly all hole."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(n, 3, size, size, generator=generator, dtype=dtype)
    mask = (torch.rand(n, 1, size, size, generator=generator) < 0.7).to(dtype)
    mask[:, :, 3:26, 5:29] = 0
    mask[0, :, :, 9:] = 0
    return image, mask


def difference(ours, theirs):
    """Return the largest difference, relative to the range."""
    return ((ours - theirs).abs().max() / (theirs.max() - theirs.min())).item()


# --- equal outputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", PROJECTS)
def test_the_published_size_gives_the_projects_output(project):
    description = json.loads((VECTORS / f"{project}.json").read_text())
    state = foreign.weights(project, {key: json.loads(shape) for key, shape in description["state_dict"].items()})
    vector = {name: torch.from_numpy(array) for name, array in np.load(VECTORS / f"{project}.npz").items()}
    net = converted(state)
    assert (net.depth, net.base_channels) == (7, 64)
    with torch.no_grad():
        assert difference(net(vector["image"], vector["mask"]), vector["output"]) < 1e-5


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize(("depth", "base"), [(1, 3), (2, 4), (4, 3), (5, 2)])
def test_other_sizes_are_read_off_the_tensors(project, depth, base):
    state = small(project, depth, base)
    image, mask = inputs(dtype=torch.float64)
    net = converted(state).double()
    assert (net.depth, net.base_channels) == (depth, base)
    assert isinstance(net, PConvUNet)
    with torch.no_grad():
        assert difference(net(image, mask), foreign.network(project, state, depth, image, mask)) < 1e-6


@pytest.mark.parametrize(
    ("project", "changes"),
    [
        (NAOTO, {"mean": (0, 0, 0)}),
        (NAOTO, {"std": (1, 1, 1)}),
        (NAOTO, {"no_sum_1": False}),
        (SNEAKY, {"ratio_twice": False}),
        (MMAGIC, {"mean": (0, 0, 0)}),
        (MMAGIC, {"std": (1, 1, 1)}),
    ],
)
def test_without_a_deviation_the_numbers_differ(monkeypatch, project, changes):
    state = small(project)
    changed = [
        dataclasses.replace(known, **changes) if NAMES[project] in known.name else known
        for known in model.foreign.PROJECTS
    ]
    monkeypatch.setattr(model.foreign, "PROJECTS", changed)
    image, mask = inputs()
    with torch.no_grad():
        assert difference(converted(state)(image, mask), foreign.network(project, state, DEPTH, image, mask)) > 1e-3


def test_levels_beyond_seven_are_unused_where_they_always_exist():
    state = small(SNEAKY, 8, 2)
    image, mask = inputs(1, 128)
    net = converted(state)
    assert net.depth == 7
    with torch.no_grad():
        assert difference(net(image, mask), foreign.network(SNEAKY, state, 7, image, mask)) < 1e-5
    assert converted(small(NAOTO, 8, 2)).depth == 8


def test_files_from_before_num_batches_tracked():
    state = small(NAOTO)
    old = {key: tensor for key, tensor in state.items() if "num_batches" not in key}
    assert torch.equal(converted(old)(*inputs()), converted(state)(*inputs()))


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -1e30])
def test_what_lies_in_a_hole_never_matters(project, junk):
    net = converted(small(project))
    image, mask = inputs()
    assert torch.equal(net(image, mask), net(image.masked_fill(mask == 0, junk), mask))


def test_a_grey_image_is_not_taken_for_three_channels():
    with pytest.raises(ValueError, match=r"image must be \(N,3,H,W\)"):
        converted(small(MMAGIC))(torch.rand(1, 1, 32, 32), torch.ones(1, 1, 32, 32))


# --- an ordinary PConvUNet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", PROJECTS)
def test_it_trains_with_its_deviations_fixed(project):
    net = converted(small(project)).train()
    settle_encoder_batch_norm(net, iter([inputs()]))
    assert net.freeze_encoder_batch_norm() is net
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(*inputs()).square().mean().backward()
    torch.optim.SGD(net.parameters(), 1e-4).step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert {f"{side}.{level}.conv.weight" for side in ("encoder", "decoder") for level in range(DEPTH)} <= changed
    assert not changed & {"mean", "std", "ratio_twice", "encoder.1.bn.weight", "encoder.1.bn.running_mean"}
    assert (sum(1 for _ in net.encoder_batch_norms()) == 0) == (project == SNEAKY)


# --- files -------------------------------------------------------------------------------------------------------


class Optimizer:
    """Stands for an optimizer that was pickled as an object."""

    def __init__(self):
        self.state = {0: {"exp_avg": torch.ones(2), "step": np.float64(3)}}


def published(project, state):
    """Return the complete checkpoint that the project saves."""
    if project == MMAGIC:
        return {"meta": {"epoch": 1}, "state_dict": {**state, "loss_percep.vgg.mean": torch.zeros(3)}}
    return {"n_iter": 5, "model": state, "optimizer": {"state": {}, "param_groups": []}}


@pytest.mark.parametrize("project", PROJECTS)
def test_published_files_load_as_they_are_and_say_so(tmp_path, capsys, project):
    state = small(project)
    torch.save(published(project, state), tmp_path / "published.pth")
    loaded = load_model(tmp_path / "published.pth")
    assert not loaded.training
    assert torch.equal(loaded(*inputs()), converted(state)(*inputs()))
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert NAMES[project] in line
    assert "converted on load" in line


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("form", ["safetensors", "checkpoint"])
def test_our_forms_keep_the_deviations(tmp_path, capsys, project, form):
    net = converted(small(project))
    if form == "safetensors":
        path = tmp_path / "net.safetensors"
        save_weights(path, net.state_dict())
    else:
        path = tmp_path / "net.pt"
        torch.save({"model": net.state_dict(), "optimizer": {}, "step": 1, "config": {}}, path)
    loaded = load_model(path)
    assert torch.equal(loaded(*inputs()), net(*inputs()))
    assert loaded.state_dict().keys() == net.state_dict().keys()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wrap", ["bare", "model", "state_dict", "module.", "generator"])
def test_common_wrappings(tmp_path, wrap):
    state = small(MMAGIC)
    file = {
        "bare": state,
        "module.": {f"module.{key}": tensor for key, tensor in state.items()},
        "generator": {"generator": {key.removeprefix("generator."): tensor for key, tensor in state.items()}},
    }.get(wrap, {wrap: state})
    torch.save(file, tmp_path / "net.pth")
    assert torch.equal(load_model(tmp_path / "net.pth")(*inputs()), converted(state)(*inputs()))


def spoiled(state, project, how):
    """Return a state_dict with one fault, and the faulty key."""
    state = dict(state)
    key = foreign.conv_key(project, *{"first": ("enc", 1), "bias": ("dec", 1)}.get(how, ("enc", 2)))
    key += ".bias" if how == "bias" else ".weight"
    if how == "shape":
        state[key] = torch.zeros(1, 2, 3, 3)
    elif how == "unexpected":
        key = key.replace("weight", "extra")
        state[key] = torch.zeros(1)
    else:
        del state[key]
    return state, key.removeprefix("generator.")


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("how", ["first", "missing", "bias", "shape", "unexpected"])
def test_a_nearly_right_file_is_named_with_project_and_key(tmp_path, project, how):
    state, key = spoiled(small(project), project, how)
    torch.save(published(project, state), tmp_path / "nearly.pth")
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "nearly.pth")
    for part in ("nearly.pth", NAMES[project], key, {"shape": "(1, 2, 3, 3), not (8, 4, 5, 5)"}.get(how, "")):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# --- only tensors are loaded, whatever the file contains -----------------------------------------------------------


class Evil:
    """An object whose pickle creates a folder, through one of several functions used in exploits."""

    def __init__(self, path, way):
        self.path, self.way = str(path), way

    def __reduce__(self):
        if self.way == "system":
            return os.system, (f"mkdir -p {self.path}",)
        if self.way == "eval":
            return builtins.eval, (f"__import__('os').makedirs({self.path!r}, exist_ok=True)",)
        return os.makedirs, (self.path, 0o777, True)


def everything(path, way="makedirs"):
    """Return typical contents of checkpoints other than the weights, including Evil."""
    optimizer = Optimizer()
    optimizer.evil = Evil(path, way)
    return {
        "optimizer": optimizer,
        "groups": [{"lr": np.float64(1e-4), "evil": Evil(path, way)}],
        "args": argparse.Namespace(lr=1, evil=Evil(path, way)),
        "message_hub": {"history": collections.deque([1, 2]), "counts": collections.Counter("aab"), "set": {1, 2}},
        "array": np.arange(3),
        "path": Path("here"),
        "adam": torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]),
    }


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("way", ["system", "eval", "makedirs"])
@pytest.mark.parametrize("project", PROJECTS)
def test_no_code_of_a_file_is_run_and_its_tensors_load(tmp_path, project, way, new_format):
    made = tmp_path / "made"
    state = small(project, 2, 2)
    # Evil comes both before and after the weights.
    file = {"a": everything(made, way), **published(project, state), "z": everything(made, way)}
    torch.save(file, tmp_path / "evil.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(pickle.UnpicklingError):  # torch's safe loading refuses the file
        torch.load(tmp_path / "evil.pth", weights_only=True)
    tensors = read_network(tmp_path / "evil.pth")
    assert all(torch.equal(tensors[key], tensor) for key, tensor in state.items())
    load_model(tmp_path / "evil.pth")
    assert not made.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert made.exists()  # the exploit works if objects are loaded


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_of_every_kind_beside_objects(tmp_path, new_format):
    shared = torch.arange(24.0).reshape(4, 6)
    state = {
        "shared": shared,
        "part": shared[1:3, ::2],
        "turned": shared.t(),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        **{str(dtype): torch.tensor([1, 0, 1]).to(dtype) for dtype in (torch.bool, torch.uint8, torch.int8)},
    }
    torch.save({"model": state, "object": Optimizer()}, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    tensors = read_network(tmp_path / "a.pt")
    assert tensors.keys() == state.keys()
    for key, tensor in state.items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor.detach()), key


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("content", [{"model": Optimizer()}, {"model": {"a": Optimizer()}}, Optimizer(), {}])
def test_a_file_without_tensors_is_named(tmp_path, content, new_format):
    torch.save(content, tmp_path / "none.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match=r"neither a training checkpoint nor a weights file.*none\.pt"):
        load_model(tmp_path / "none.pt")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_damaged_file_is_named(tmp_path, new_format):
    path = tmp_path / "cut.pt"
    torch.save({"model": small(NAOTO), "object": Optimizer()}, path, _use_new_zipfile_serialization=new_format)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pt"):
            load_model(path)


class _OldPickler(pickle.Pickler):
    """Write a 2×2 tensor as torch before 0.4 did: its storage is elements 3 to 6 of a storage of 10."""

    def persistent_id(self, obj):
        return ("storage", torch.FloatStorage, "whole", "cpu", 10, ("part", 3, 4)) if obj == "a storage" else None

    def reducer_override(self, obj):
        if obj is torch.FloatStorage:  # by its name, regardless of the class's current definition
            return "FloatStorage"
        if isinstance(obj, torch.Tensor):
            return torch._utils._rebuild_tensor, ("a storage", 0, (2, 2), (1, 2))
        return NotImplemented


def test_old_files_with_parts_of_storages(tmp_path):
    with open(tmp_path / "old.pt", "wb") as file:
        for header in (LEGACY_MAGIC, 1001, {"little_endian": True}):
            pickle.dump(header, file, 2)
        _OldPickler(file, 2).dump({"model": {"a": torch.zeros(1)}, "object": Optimizer})
        pickle.dump(["whole"], file, 2)
        file.write((10).to_bytes(8, "little") + np.arange(10, dtype="<f4").tobytes())
    assert torch.equal(read_network(tmp_path / "old.pt")["a"], torch.tensor([[3.0, 5], [4, 6]]))


def test_a_file_can_not_change_the_functions_that_it_names(tmp_path):
    """A pickle may set attributes, even those of a function; here its defaults."""
    key = b"X\x0c\x00\x00\x00__defaults__"
    trick = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}" + key + b")stb."
    header = pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (tmp_path / "trick.pt").write_bytes(header + trick + pickle.dumps([], 2))
    with pytest.raises(UserError, match="loaded safely"):
        read_network(tmp_path / "trick.pt")


def test_a_resumed_run_takes_no_file_with_objects(tmp_path):
    net = PConvUNet(2, 2)
    file = {"model": net.state_dict(), "optimizer": {"object": Optimizer()}, "step": 1, "config": {}}
    torch.save(file, tmp_path / "last.pt")
    assert load_model(tmp_path / "last.pt").depth == 2
    with pytest.raises(UserError, match="loaded safely"):
        load_checkpoint(tmp_path / "last.pt")
