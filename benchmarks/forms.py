"""Gain of each faster form of the convolutions and of memory, at 256×256 with seven levels and 64 base channels.

Run from the project's folder: python -m benchmarks.forms
A figure is the share of a training step's or a prediction's time that is saved: 1 - with all forms / without this one.
CPU seconds of one thread are compared, because other work on the machine affects them least.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from tqdm import tqdm

import model.convolution
from benchmarks.network import WEIGHTS, inputs
from loss import InpaintingLoss
from model import PConvUNet, VGG16Features
from utils.startup import keep_freed_memory

BATCHES = {1: 4, 4: 3, 16: 2}  # batch size: how often it is measured; the first of several is warm-up
FORMS = ("transposed convolution", "packed weights")
ROUNDS = 2  # of processes per kind of memory
TRAINING, PREDICTION = "training step", "prediction"
PROJECT = Path(__file__).resolve().parent.parent

Times = dict[tuple[str, str, int], list[float]]  # by form, what is measured, and batch size


@contextlib.contextmanager
def without(form: str) -> Iterator[None]:
    """Context manager that disables a form of the convolutions. Any other text disables none."""
    replaced: dict[str, tuple[str, Callable[..., Any]]] = {
        "transposed convolution": ("model.convolution.fastest_form", lambda x: "plain"),
        "packed weights": ("model.convolution._can_pack", lambda x: False),
    }
    with contextlib.ExitStack() as stack:
        if form in replaced:
            stack.enter_context(mock.patch(*replaced[form]))
        yield


class PlainUpConvolution(nn.Module):
    """FixedUpConvolution, computed plainly: upsample, concatenate, convolve."""

    def __init__(self, weight: Tensor, channels: int) -> None:
        super().__init__()
        self.conv = model.convolution.FixedConvolution(weight)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.cat([model.convolution.upsample(x), skip], 1))
        return y


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(forms: list[str]) -> Iterator[tuple[str, str, int, float]]:
    """Yield (form, what, batch, CPU seconds), alternating between all forms ("") and without each of `forms`.

    "the rest" is the loss and the optimizer of a training step, which these forms do not affect.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = PConvUNet(7, 64).to(memory_format=torch.channels_last).train()
    criterion = InpaintingLoss(VGG16Features(), WEIGHTS)
    optimizer = torch.optim.Adam(net.parameters(), 2e-4, fused=True)
    folded = net.folded()
    with mock.patch("model.layer.FixedUpConvolution", PlainUpConvolution):
        not_transposed = net.folded()
    for batch, turns in BATCHES.items():
        image, mask = inputs(batch)
        image = image.contiguous(memory_format=torch.channels_last)

        def train(image: Tensor = image, mask: Tensor = mask) -> None:
            optimizer.zero_grad(set_to_none=True)
            net(image, mask).square().mean().backward()

        def predict(form: str, image: Tensor = image, mask: Tensor = mask) -> None:
            with torch.no_grad():
                (not_transposed if form == "transposed convolution" else folded)(image, mask)

        def rest(image: Tensor = image, mask: Tensor = mask) -> None:
            criterion(torch.rand_like(image).requires_grad_(), image, mask)[0].backward()
            optimizer.step()

        for turn in range(turns):
            for form in ("", *forms):
                found = {}
                with without(form):
                    if form != "packed weights":  # training does not use them
                        found[TRAINING] = seconds(train)
                    found[PREDICTION] = min(seconds(partial(predict, form)) for _ in range(2))
                if turn or turns == 1:
                    for what, value in found.items():
                        yield form, what, batch, value
        yield "", "the rest", batch, min(seconds(rest) for _ in range(2 if batch > 4 else 3))


def in_a_process(forms: list[str], freed: bool, pages: bool) -> Times:
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": str(int(pages))}
    command = [sys.executable, "-m", "benchmarks.forms", "--worker", json.dumps([forms, freed])]
    times: Times = defaultdict(list)
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in tqdm(process.stdout, desc="measurements", leave=False):
            form, what, batch, value = json.loads(line)
            times[form, what, batch].append(value)
    if process.returncode:
        sys.exit(process.returncode)
    return times


def show_gains(form: str, every: Times, but_one: Times, name: str) -> None:
    """Print one row for training and one for prediction. name: key of the form in `but_one`."""
    for what in (TRAINING, PREDICTION):
        if not but_one[name, what, 1]:
            continue
        gains = []
        for batch in BATCHES:
            with_it, without_it = (
                statistics.median(times[key, what, batch])
                + (statistics.median(times["", "the rest", batch]) if what == TRAINING else 0.0)
                for times, key in ((every, ""), (but_one, name))
            )
            gains.append(f"{1 - with_it / without_it:.1%}")
        print(f"| {form} | {what} | {' | '.join(gains)} |", flush=True)


def main() -> None:
    print("| form | of a | batch of 1 | batch of 4 | batch of 16 |\n|---|---|---|---|---|")
    times = in_a_process(list(FORMS), True, False)
    for form in FORMS:
        show_gains(form, times, times, form)
    # Processes of each kind take turns, since a machine's speed changes over minutes.
    kinds = {"kept": (True, False), "returned": (False, False), "large pages": (True, True)}
    found: dict[str, Times] = {kind: defaultdict(list) for kind in kinds}
    for _ in range(ROUNDS):
        for kind, (freed, pages) in kinds.items():
            for key, seconds_of_key in in_a_process([], freed, pages).items():
                found[kind][key] += seconds_of_key
    show_gains("freed memory", found["kept"], found["returned"], "")
    show_gains("large pages (not set by the scripts)", found["large pages"], found["kept"], "")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        wanted, freed = json.loads(sys.argv[2])
        if freed:
            keep_freed_memory()
        for found in measure(wanted):
            print(json.dumps(found), flush=True)
    else:
        main()
