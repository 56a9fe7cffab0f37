"""Export networks to files that run without this code: ONNX and torch.export programs.

Both take `image`, float32 (N,3,H,W) in [0,1], and `mask`, float32 (N,1,H,W), 1 = valid, 0 = hole, and return
`composite`, (N,3,H,W) in [0,1], for any N, H, W of at least 1. Valid pixels are bit-identical; values in holes are
ignored.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from model.composite import composite
from model.inpainting import predict_padded
from model.loading import load_model
from model.network import PConvUNet
from utils.checkpoint import save_weights
from utils.errors import UserError
from utils.files import write_atomically

INPUTS = ("image", "mask")
DESCRIPTION = (
    "Image inpainting with partial convolutions. image: float32 (N,3,H,W), RGB in [0,1]; mask: float32 (N,1,H,W), "
    "1 = valid, 0 = hole; composite: (N,3,H,W) in [0,1], valid pixels as in image. Any N, H and W."
)


class Inpainter(nn.Module):
    """`inpaint` as one graph, without its input checks, which cannot be exported."""

    def __init__(self, net: PConvUNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return composite(image, predict_padded(self.net, image, mask).clamp(0, 1), mask)


def convert(
    source: Path,
    output: Path,
    half: bool = False,
    hole_radius: float | None = None,
    mix: tuple[Path, float] | None = None,
) -> PConvUNet:
    """Write the network of one file to another in the format of its suffix (.safetensors, .onnx, .pt2). Return it.

    half: store convolution weights as float16 (.safetensors only). They become float32 again on load.
    hole_radius: px, replaces the radius of the holes in training that the file records; None keeps it.
    mix: another file and its share; writes the weighted mean of both networks ("model soups", arXiv 2203.05482).
    Raises UserError like `load_model`, if the architectures differ, or if a package for the export is missing.
    """
    net = load_model(source)
    if mix is not None:
        mix_with(net, source, *mix)
    if hole_radius is not None:
        net.hole_radius.fill_(hole_radius)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".safetensors":
        state = net.state_dict()
        save_weights(output, {key: t.half() if half and t.ndim == 4 else t for key, t in state.items()})
    else:
        export = export_onnx if output.suffix == ".onnx" else export_program
        export(net, output)
    return net


def mix_with(net: PConvUNet, source: Path, other: Path, share: float) -> None:
    """Average the weights and statistics of `net` in place with those of another file.

    share: weight of `other`, 0 to 1. source: the file of `net`, for messages. Raises UserError if architectures differ.
    """
    ours, theirs = net.state_dict(), load_model(other).state_dict()
    if {key: t.shape for key, t in ours.items()} != {key: t.shape for key, t in theirs.items()}:
        raise UserError(
            f"--mix: {other} and {source} hold networks of different architectures, which can't be averaged"
        )
    for key, tensor in ours.items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[key], share)


def export_onnx(
    net: PConvUNet,
    path: Path,
    form: Callable[[PConvUNet], nn.Module] = Inpainter,
    inputs: Sequence[str] = INPUTS,
    output: str = "composite",
    description: str = DESCRIPTION,
) -> None:
    """Write the network as one ONNX file, weights included, opset 20. Raises UserError if a package is missing.

    form, inputs: see to_program. output: name of the ONNX output.
    """
    try:
        import onnxscript  # noqa: F401, torch.onnx needs it, and it needs onnx
    except ImportError as error:
        raise _missing(error) from None

    onnx_program = torch.onnx.export(
        to_program(net, form, inputs),
        dynamo=True,
        # Names of the axes; the other inputs share them.
        dynamic_shapes={**dict.fromkeys(inputs), "image": {0: "batch", 2: "height", 3: "width"}},
        output_names=[output],
        opset_version=20,
        verbose=False,
    )
    assert onnx_program is not None
    onnx_program.model.doc_string = description
    write_atomically(path, lambda temporary: onnx_program.save(temporary, external_data=False))


def export_program(net: PConvUNet, path: Path) -> None:
    """Write the network as a .pt2 file for `torch.export.load(path).module()`. Raises UserError if torch is too old."""
    # Into memory first: if the disk is full, torch.export.save aborts the process.
    file = io.BytesIO()
    torch.export.save(to_program(net), file)
    write_atomically(path, lambda temporary: temporary.write_bytes(file.getbuffer()))


def to_program(
    net: PConvUNet, form: Callable[[PConvUNet], nn.Module] = Inpainter, inputs: Sequence[str] = INPUTS
) -> ExportedProgram:
    """Trace the network for all sizes, in float32 on the CPU. The network itself stays unchanged.

    form: builds, from a copy of the network, a module that takes `inputs`: all (N,3,H,W) but the mask, (N,1,H,W).
    Raises UserError if torch is too old.
    """
    try:
        from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapesSpec, ShapeVar, TensorSpec
    except ImportError as error:  # torch is too old; its torch.export.Dim excludes sizes of 1
        raise _missing(error) from None

    folded = copy.deepcopy(net).cpu().float().folded().to(memory_format=torch.contiguous_format)
    n, h, w = (ShapeVar(name, min=1) for name in ("batch", "height", "width"))
    channels = {name: 1 if name == "mask" else 3 for name in inputs}
    sizes = ParamsSpec({name: TensorSpec([n, count, h, w]) for name, count in channels.items()})
    example = tuple(torch.ones(2, count, 5, 7) for count in channels.values())
    with torch.no_grad():
        program = torch.export.export(form(folded).eval(), example, dynamic_shapes=ShapesSpec(params=sizes))
    program = program.run_decompositions({})  # removes unused symbols, which cause warnings on load
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains local paths
    return program


def _missing(error: ImportError) -> UserError:
    return UserError(
        f"exporting needs torch 2.14, onnx and onnxscript, but {error.name} is missing;"
        " `pip install -r requirements-export.txt` installs them"
    )
