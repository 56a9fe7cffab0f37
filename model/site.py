"""Export the network for the static web page: ONNX with half the bytes, and the facts that the page needs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from model.base import CHEBYSHEV_STEPS, plate_reach
from model.export import INPUTS, export_onnx
from model.inpainting import padded
from model.loading import load_model
from model.network import PConvUNet
from model.regions import reach
from utils.arguments import DEFAULT_WEIGHTS
from utils.errors import UserError

# Tensors with fewer values than this stay unchanged: biases, and constants for shapes.
_SMALL = 1024

NETWORK, FACTS = "network.onnx", "network.json"
DESCRIPTION = (
    "The U-Net of an image inpainting network. image: float32 (N,3,H,W), RGB in [0,1]; mask: float32 (N,1,H,W), "
    "1 = valid, 0 = hole; base: (N,3,H,W), if the network reads it; prediction: (N,3,H,W), to be added to the base if "
    "the network has one. Any N, H and W."
)


class WithoutBase(nn.Module):
    """The U-Net's output as one graph. The page computes the base, which reads more of an image."""

    def __init__(self, net: PConvUNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, mask: Tensor, base: Tensor | None = None) -> Tensor:
        height, width = image.shape[-2:]
        multiple = 2**self.net.depth
        image, mask = padded(multiple, image, mask)
        if base is not None:
            (base,) = padded(multiple, base)
        return self.net.unet(image, mask, base)[..., :height, :width]


def write_network(weights: Path | None, folder: Path) -> None:
    """Write the network of a file (None: the shipped one) to the page's folder. Raises UserError like load_model."""
    path = weights or DEFAULT_WEIGHTS
    net = load_model(path)
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / NETWORK
        inputs = (*INPUTS, "base") if net.decoder_reads_base else INPUTS
        export_onnx(net, exported, WithoutBase, inputs, "prediction", DESCRIPTION)
        halve_weights(exported, folder / NETWORK)
    facts = {"name": path.stem, "file": NETWORK, **facts_of(net)}
    (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def facts_of(net: PConvUNet) -> dict[str, Any]:
    """Return how the page cuts out a window: its corner at a `multiple`, `reach` px around the hole; and the base.

    plate: the relaxed levels of the base; None if the decoder reads no base.
    """
    levels = net.plate_levels
    plate = {"levels": levels, "steps": CHEBYSHEV_STEPS, "reach": plate_reach(levels)} if levels else None
    return {"multiple": 2**net.depth, "reach": reach(net), "base": net.base, "plate": plate}


def halve_weights(source: Path, target: Path) -> None:
    """Store an ONNX file's large weights as float16. They are cast back on load: the network computes in float32.

    Raises UserError if a weight is too large for float16.
    """
    import onnx

    model = onnx.load(source)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or values.size < _SMALL:
            continue
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise UserError("a weight is beyond float16; this network can't be written for the page")
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(halves, f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, target)
