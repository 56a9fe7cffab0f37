"""convert.py on the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import convert
from model import PConvUNet, load_model
from tests import foreign
from tests.foreign import PROJECTS
from utils.checkpoint import save_weights

PROJECT = Path(__file__).resolve().parent.parent


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, 16, 16, generator=generator), (torch.rand(1, 1, 16, 16, generator=generator) < 0.6).float()


@pytest.fixture
def published(tmp_path):
    """Write a published checkpoint of another project."""
    path = tmp_path / "published.pth"
    torch.save({"model": foreign.weights(foreign.NAOTO, foreign.shapes(foreign.NAOTO, 2, 3))}, path)
    return path


def run(*args):
    return convert.main([str(arg) for arg in args])


def fails(capsys, *args):
    assert run(*args) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


@pytest.mark.parametrize("project", PROJECTS)
def test_another_projects_file_becomes_ours(tmp_path, capsys, project):
    path, out = tmp_path / "published.pth", tmp_path / "folder" / "ours.safetensors"
    torch.save({"state_dict": foreign.weights(project, foreign.shapes(project, 2, 3))}, path)
    before = path.read_bytes()
    assert run(path, out) == 0
    said = capsys.readouterr()
    assert f"{path}: weights of " in said.err
    assert said.out == f"{out}: weights file of this project, 2 levels, 3 base channels, from {path}\n"
    assert torch.equal(load_model(out)(*inputs()), load_model(path)(*inputs()))
    assert path.read_bytes() == before
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]


def test_two_networks_become_a_mean_of_their_weights(tmp_path, capsys):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    states = []
    for seed, path in enumerate(files):
        torch.manual_seed(seed)
        net = PConvUNet(2, 3)
        net.encoder[1].bn.running_var.fill_(1 + seed)
        net.hole_radius.fill_(10)
        save_weights(path, net.state_dict())
        states.append(net.state_dict())
    assert run(files[0], tmp_path / "c.safetensors", "--mix", files[1], "0.25") == 0
    mixed = load_model(tmp_path / "c.safetensors").state_dict()
    for key, tensor in mixed.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * states[0][key] + 0.25 * states[1][key])
    capsys.readouterr()
    save_weights(tmp_path / "wider.safetensors", PConvUNet(2, 4).state_dict())
    more = fails(capsys, files[0], tmp_path / "d.safetensors", "--mix", tmp_path / "wider.safetensors", "0.5")
    assert "different architectures" in more
    for share in ("1.5", "nan", "half"):
        with pytest.raises(SystemExit):
            run(files[0], tmp_path / "d.safetensors", "--mix", files[1], share)
    assert not (tmp_path / "d.safetensors").exists()


def test_our_own_checkpoint_becomes_a_weights_file(tmp_path, capsys):
    net = PConvUNet(2, 3)
    torch.save({"model": net.state_dict(), "optimizer": {}, "step": 3, "config": {}}, tmp_path / "last.pt")
    assert run(tmp_path / "last.pt", tmp_path / "ours.safetensors") == 0
    assert capsys.readouterr().err == ""
    assert torch.equal(load_model(tmp_path / "ours.safetensors")(*inputs()), net.eval()(*inputs()))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exports_are_written(tmp_path, capsys, published, suffix, monkeypatch):
    """Checks that the right exporter gets the network of IN; test_export.py checks what the exports compute."""
    import model.export

    def export(name):
        return lambda net, path: path.write_text(f"{name} {net(*inputs()).sum():.6f}")

    monkeypatch.setattr(model.export, "export_onnx", export(".onnx"))
    monkeypatch.setattr(model.export, "export_program", export(".pt2"))
    out = tmp_path / f"net{suffix}"
    assert run(published, out) == 0
    assert out.read_text() == f"{suffix} {load_model(published)(*inputs()).sum():.6f}"
    assert f"{out}: " in capsys.readouterr().out


@pytest.mark.parametrize("way", ["same", "symlink", "hard link", "other path"])
def test_the_input_is_never_overwritten(tmp_path, capsys, published, way):
    source = published.rename(tmp_path / "net.safetensors")
    out = {"same": source, "other path": tmp_path / "folder" / ".." / source.name}.get(way, tmp_path / "l.safetensors")
    (tmp_path / "folder").mkdir()
    if way == "symlink":
        out.symlink_to(source)
    elif way == "hard link":
        os.link(source, out)
    before = source.read_bytes()
    assert "would be overwritten" in fails(capsys, source, out)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["net.pth", "net", "net.ONNX", "safetensors"])
def test_another_form_is_refused_before_anything_is_read(tmp_path, capsys, name):
    line = fails(capsys, tmp_path / "none.pth", tmp_path / name)
    assert ".safetensors or .onnx or .pt2" in line
    assert name in line


def test_mistakes_are_named(tmp_path, capsys, published):
    assert "no such file" in fails(capsys, tmp_path / "none.pth", tmp_path / "net.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "OUT is an existing folder" in fails(capsys, published, tmp_path / "folder.safetensors")
    (tmp_path / "text.pth").write_text("text")
    assert "text.pth" in fails(capsys, tmp_path / "text.pth", tmp_path / "new" / "net.safetensors")
    assert not (tmp_path / "new").exists()


def test_help_and_mistakes_need_no_torch():
    code = (
        "import sys, convert\n"
        "try: convert.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert convert.main(['a.pth', 'b.pth']) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
