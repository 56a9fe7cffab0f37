"""Prediction time of the network against its rivals, at 256×256 with seven levels and 64 base channels.

Run from the project's folder: python -m benchmarks.prediction
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.network import BATCHES, inputs
from benchmarks.reference import OrdinaryUNet, TextbookUNet
from benchmarks.tables import Row, medians, show
from model import PConvUNet


def rows() -> Iterator[Row]:
    """Yield (what was measured, figure, target)."""
    torch.manual_seed(0)
    net = PConvUNet(7, 64)
    for batch in BATCHES:
        yield from prediction_rows(net, batch)


def prediction_rows(net: PConvUNet, batch: int) -> Iterator[Row]:
    image, mask = inputs(batch)
    net = copy.deepcopy(net).eval()
    nhwc = OrdinaryUNet(copy.deepcopy(net)).to(memory_format=torch.channels_last)

    def predict(rival: nn.Module) -> Callable[[], object]:
        return torch.inference_mode()(lambda: rival(image, mask))

    rivals = [predict(n) for n in (net.folded(), OrdinaryUNet(net), nhwc, TextbookUNet(net))]
    what = f"prediction, batch of {batch}"
    ours, ordinary, ordinary_nhwc, textbook = medians(rivals, 25, what)
    yield f"{what}: ours / ordinary", f"{ours / ordinary:.2f}", "0.60"
    yield f"{what}: ours / ordinary in channels-last", f"{ours / ordinary_nhwc:.2f}", ""
    yield f"{what}: ours / textbook", f"{ours / textbook:.2f}", "0.28"


if __name__ == "__main__":
    show(rows())
