"""Weights files in all common formats, and invalid ones."""

import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import convert
import evaluate
import predict
from data.image_list import ImageList
from model import PConvUNet, load_model
from tests import foreign
from utils.checkpoint import read_tensors, save_checkpoint, save_weights, step_of
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent


def network(seed=0):
    torch.manual_seed(seed)
    net = PConvUNet(2, 3)
    for name, tensor in net.state_dict().items():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return net.eval()


def prefixed(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def averaged(net):
    average = torch.optim.swa_utils.AveragedModel(net, use_buffers=True)
    average.update_parameters(net)
    return average.state_dict()


class Module(nn.Module):
    """A stand-in for a LightningModule: the network is an attribute, beside other parts."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.vgg = nn.Conv2d(3, 3, 3)


OWN, OTHER = network().state_dict(), network(1).state_dict()

FORMS = {
    "state_dict": OWN,
    "DataParallel": nn.DataParallel(network()).state_dict(),
    "torch.compile": torch.compile(network()).state_dict(),
    "DataParallel of torch.compile": nn.DataParallel(torch.compile(network())).state_dict(),
    "AveragedModel": averaged(network()),
    "AveragedModel of DataParallel": averaged(nn.DataParallel(network())),
    "model": {"model": OWN, "epoch": 3},
    "model_state_dict": {"model_state_dict": OWN, "optimizer_state_dict": {"state": {}}, "epoch": 3},
    "model_state_dict of DataParallel": {"model_state_dict": prefixed("module.", OWN)},
    "net": {"net": OWN},
    "network": {"network": OWN},
    "params": {"params": OWN},
    "params_ema before params": {"params": OTHER, "params_ema": OWN},
    "ema before model": {"model": OTHER, "ema": OWN},
    "state_dict in model": {"model": {"state_dict": OWN}},
    "model in state_dict": {"state_dict": {"model": OWN}},
    "Lightning": {"state_dict": Module(network()).state_dict(), "pytorch-lightning_version": "2.5", "epoch": 1},
    "Lightning, model": {"state_dict": prefixed("model.", OWN)},
    "Lightning with an average": {"state_dict": {**prefixed("net.", OTHER), **prefixed("ema_net.", OWN)}},
}


FLAT = [name for name, content in FORMS.items() if all(isinstance(value, torch.Tensor) for value in content.values())]


@pytest.mark.parametrize(
    ("name", "suffix"), [*((name, ".pt") for name in FORMS), *((name, ".safetensors") for name in FLAT)]
)
def test_any_form_of_our_own_network_is_read(tmp_path, name, suffix):
    content = FORMS[name]
    if suffix == ".safetensors":
        safetensors.torch.save_file({key: value.clone() for key, value in content.items()}, tmp_path / "a.safetensors")
    else:
        torch.save(content, tmp_path / "a.pt")
    state = load_model(tmp_path / f"a{suffix}").state_dict()
    assert state.keys() == OWN.keys()
    assert all(torch.equal(state[key], OWN[key]) for key in OWN)


@pytest.mark.parametrize("project", foreign.PROJECTS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net."])
def test_any_form_of_others_networks_is_read(tmp_path, project, prefix):
    weights = foreign.weights(project, foreign.shapes(project, 2, 3))
    torch.save({"model_state_dict": prefixed(prefix, weights)}, tmp_path / "a.pt")
    torch.save(weights, tmp_path / "plain.pt")
    wanted = load_model(tmp_path / "plain.pt").state_dict()
    state = load_model(tmp_path / "a.pt").state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_several_networks_in_a_file_are_a_choice_for_its_owner(tmp_path):
    torch.save({**prefixed("student.", OWN), **prefixed("teacher.", OTHER)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"several networks, student\., teacher\."):
        load_model(tmp_path / "a.pt")


# --- invalid weights files ---------------------------------------------------------------------------------------

FIRST = "encoder.0.conv.weight"
BROKEN = {
    "complex": (lambda tensor: tensor.to(torch.complex64), "complex"),
    "sparse": (lambda tensor: tensor.to_sparse(), "sparse"),
    "without values": (lambda tensor: tensor.to("meta"), "without values"),
    "NaN": (lambda tensor: tensor.index_fill(0, torch.tensor(0), float("nan")), "not finite"),
    "infinity": (lambda tensor: tensor.index_fill(0, torch.tensor(0), float("inf")), "not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_are_no_weights_are_one_line_in_every_script(tmp_path, capsys, name):
    change, word = BROKEN[name]
    torch.save({**OWN, FIRST: change(OWN[FIRST])}, tmp_path / "a.pt")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    image, mask = PROJECT / "docs" / "chelsea.jpg", PROJECT / "docs" / "chelsea_mask.png"
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "m.png").write_bytes(mask.read_bytes())
    for script, arguments in {
        predict: ["--image", image, "--mask", mask, "--model", tmp_path / "a.pt", "--output", tmp_path / "out.png"],
        convert: [tmp_path / "a.pt", tmp_path / "b.safetensors"],
        evaluate: ["--images", "sample", "--masks", tmp_path / "masks", "--model", tmp_path / "a.pt",
                   "--out", tmp_path / "out"],
    }.items():  # fmt: skip
        assert script.main([str(item) for item in arguments]) == 1
        err = capsys.readouterr().err.rpartition("\r")[2]  # after the progress bar
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert word in err
        assert str(tmp_path / "a.pt") in err
    (tmp_path / "masks" / "m.png").unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


# --- file systems with limits ------------------------------------------------------------------------------------


def no_device(*_, **__):
    raise OSError(errno.ENODEV, "No such device")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_whose_names_are_no_utf_8_are_read(tmp_path, suffix):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/w\xff" + suffix.encode()))
    state = PConvUNet(2, 2).state_dict()
    if suffix == ".pt":
        save_checkpoint(path, {"model": state, "optimizer": {}, "step": 3, "config": {}})
        assert step_of(path) == 3
    else:
        save_weights(path, state)
    assert read_tensors(path).keys() == state.keys()


def test_where_nothing_can_be_mapped_files_are_read(tmp_path, monkeypatch):
    torch.save(OWN, tmp_path / "a.pt")
    save_weights(tmp_path / "a.safetensors", OWN)
    images = ImageList.of(["a.png", "b.png"], "folder", "root", {})
    monkeypatch.setattr(mmap, "mmap", no_device)
    monkeypatch.setattr(safetensors.torch, "load_file", no_device)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", no_device)
    for name in ("a.pt", "a.safetensors"):
        assert torch.equal(load_model(tmp_path / name).state_dict()[FIRST], OWN[FIRST])
    images.save(tmp_path / "list")
    assert list(ImageList.open(tmp_path / "list")) == ["root/a.png", "root/b.png"]


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pt2", marks=pytest.mark.slow),
                                    pytest.param(".onnx", marks=pytest.mark.slow)])  # fmt: skip
def test_converting_without_room_is_one_line(tmp_path, suffix):
    save_weights(tmp_path / "a.safetensors", PConvUNet(3, 32).state_dict())

    def little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [sys.executable, PROJECT / "convert.py", tmp_path / "a.safetensors", tmp_path / f"b{suffix}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, preexec_fn=little_room)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: File too large")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]
