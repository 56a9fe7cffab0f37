"""ONNX files and torch.export programs: they equal `inpaint` at any size, without this code."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from model import PConvUNet, inpaint
from model.export import export_onnx, export_program
from model.foreign import ForeignUNet
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent

pytest.importorskip("torch.fx.experimental.dynamic_spec", reason="exporting needs torch 2.14")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Batch, height, width: below, at and beyond multiples of 2**depth; none is the export's example size.
SIZES = [(1, 1, 1), (1, 2, 3), (3, 4, 4), (2, 8, 4), (2, 5, 1), (1, 37, 53)]


def ours():
    torch.manual_seed(0)
    net = PConvUNet(2, 4)
    net(torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16))  # gives batch norm non-trivial statistics
    return net


def with_base():
    torch.manual_seed(0)
    net = PConvUNet(3, 4, base="thin_plate")
    torch.nn.init.normal_(net.decoder[-1].conv.weight, std=0.05)  # it is initialised to 0
    net(torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16))
    return net


def foreign():
    torch.manual_seed(0)
    net = ForeignUNet(1, 4, batch_norm=False, ratio_twice=True)
    net.mean.fill_(0.4)
    net.std.fill_(0.2)
    return net


NETWORKS = {"ours": ours, "foreign": foreign, "with base": with_base}


def inputs(n, height, width):
    """Return an image with NaN in its holes and its mask. The first mask of a batch is all hole, the last all valid."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(n, 3, height, width, generator=generator)
    mask = (torch.rand(n, 1, height, width, generator=generator) > 0.4).float()
    if n > 1:
        mask[0], mask[-1] = 0, 1
    return image.masked_fill(mask == 0, float("nan")), mask


def check(result, net, image, mask, tolerance):
    valid = mask.expand_as(image) == 1
    assert result.dtype == torch.float32
    assert torch.equal(result[valid], image[valid])
    torch.testing.assert_close(result, inpaint(net, image, mask), rtol=0, atol=tolerance)


class Exported(NamedTuple):
    """A network in training mode, its two exported files, and the output printed while they were written."""

    name: str
    net: PConvUNet
    onnx: Path
    program: Path
    said: str


@pytest.fixture(
    scope="module", params=["ours", *(pytest.param(name, marks=pytest.mark.slow) for name in ("foreign", "with base"))]
)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    it = Exported(request.param, NETWORKS[request.param](), folder / "network.onnx", folder / "network.pt2", "")
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        export_onnx(it.net, it.onnx)
        export_program(it.net, it.program)
    return it._replace(said=said.getvalue())


def test_onnx_gives_what_inpaint_gives_at_any_size(exported):
    session = onnxruntime.InferenceSession(exported.onnx, providers=["CPUExecutionProvider"])
    for size in SIZES:
        image, mask = inputs(*size)
        (result,) = session.run(["composite"], {"image": image.numpy(), "mask": mask.numpy()})
        check(torch.from_numpy(result), exported.net, image, mask, tolerance=1e-5)


def test_onnx_is_one_file_that_names_its_axes(exported):
    model = onnx.load(exported.onnx, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert axes == {name: ["batch", c, "height", "width"] for name, c in [("image", 3), ("mask", 1), ("composite", 3)]}
    assert {node.domain for node in model.graph.node} == {""}  # only standard ONNX operators
    assert "1 = valid, 0 = hole" in model.doc_string


WITHOUT_OUR_CODE = """
import sys, torch
pairs = torch.load("in.pt")
results = []
for path in sys.argv[1:]:
    run = torch.export.load(path).module()
    results.append([run(image, mask) for image, mask in pairs])
    image, mask = pairs[-1]
    for wrong in (mask[..., 1:], mask[..., :1, :1], mask.expand_as(image)):
        try:
            run(image, wrong)
        except (AssertionError, RuntimeError):
            continue
        raise SystemExit(f"accepted a mask of {tuple(wrong.shape)} for an image of {tuple(image.shape)}")
assert not {"model", "utils"} & set(sys.modules)
torch.save(results, "out.pt")
"""


def test_programs_give_what_inpaint_gives_without_our_code(exported, tmp_path):
    pairs = [inputs(*size) for size in SIZES]
    torch.save(pairs, tmp_path / "in.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", WITHOUT_OUR_CODE, exported.program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (results,) = torch.load(tmp_path / "out.pt")
    for (image, mask), result in zip(pairs, results, strict=True):
        assert not result.requires_grad
        check(result, exported.net, image, mask, tolerance=1e-6)


def test_two_files_and_no_word(exported):
    assert exported.said == ""
    assert sorted(exported.onnx.parent.iterdir()) == [exported.onnx, exported.program]


def test_files_do_not_tell_where_they_were_made(exported):
    for path in (exported.onnx, exported.program):
        assert b"layer.py" not in path.read_bytes()
        assert str(PROJECT).encode() not in path.read_bytes()


def test_the_network_is_left_as_it_was(exported):
    net, before = exported.net, NETWORKS[exported.name]()
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("export", "module"),
    [
        (export_onnx, "onnxscript"),
        (export_onnx, "torch.fx.experimental.dynamic_spec"),
        (export_program, "torch.fx.experimental.dynamic_spec"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, export, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{module} is missing; `pip install -r requirements-export.txt`"):
        export(PConvUNet(1, 1), tmp_path / "network")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    def cut_off(_, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "network.pt2").write_bytes(b"old")
    monkeypatch.setattr("model.export.to_program", lambda net: None)
    monkeypatch.setattr(torch.export, "save", cut_off)
    with pytest.raises(OSError, match="No space left"):
        export_program(PConvUNet(1, 1), tmp_path / "network.pt2")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
