"""Speed and memory on a GPU, against the ordinary U-Net and the textbook network: python -m benchmarks.gpu [FILE]

FILE: the table is also written here (runs/benchmarks_gpu.md). `make bench-gpu` calls it. With `--device cpu --quick`
it runs in seconds on any machine, to test the benchmark itself; its figures then mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import OrdinaryUNet, TextbookLoss, TextbookUNet
from benchmarks.tables import HEAD, Row
from data.holes import draw_mask
from data.loader import training_batches
from data.mask_files import write_mask
from data.samples import training_samples
from loss import InpaintingLoss
from model import PConvUNet, VGG16Features
from model.convolution import conv2d_of_upsampled
from model.network import encoder_channels
from training import TrainState, make_network
from utils.config import Config
from utils.config_files import load_config

MODES = {"float32": None, "TF32": None, "bf16": torch.bfloat16}
WORKERS = (1, 4, 8, 16)
FORMS = ("plain", "transposed")  # of the decoder's convolutions
LISTED = 0.03  # kernels with a larger share of a step's time are listed
PAPER_512 = Path(__file__).resolve().parent.parent / "configs" / "paper_512.yml"


class Setting(NamedTuple):
    device: torch.device
    rounds: int
    size: int  # px
    batch: int
    depth: int
    channels: int


def rows(setting: Setting) -> Iterator[Row]:
    """Yield (what was measured, figure, target)."""
    for mode, dtype in MODES.items():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode == "TF32"
        goals = mode == "bf16"
        yield from network_rows(setting, mode, dtype, goals)
        yield from form_rows(setting, mode, dtype)
    yield from step_rows(setting)
    yield from memory_rows(setting)
    yield from loader_rows(setting)


def network_rows(setting: Setting, mode: str, dtype: torch.dtype | None, goals: bool) -> Iterator[Row]:
    """Forward and backward of all three networks, and prediction of ours and the ordinary one, in one mode."""
    image, mask = inputs(setting)
    nets = networks(setting)

    def learn(net: nn.Module) -> Callable[[], object]:
        def run() -> None:
            net.zero_grad(set_to_none=True)
            with autocast(setting, dtype):
                loss = net(image, mask).float().square().mean()
            loss.backward()

        return run

    ours, ordinary, textbook = medians(setting, [learn(net.train()) for net in nets])
    what = f"{mode}: forward and backward, batch of {setting.batch}"
    yield f"{what}: ours / ordinary", f"{ours / ordinary:.2f} ({1e3 * ours:.2f} ms)", "0.80" if goals else ""
    yield f"{what}: ours / textbook", f"{ours / textbook:.2f}", "0.35" if goals else ""

    def predict(net: nn.Module) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad(), autocast(setting, dtype):
                net(image, mask)

        return run

    ours, ordinary = medians(setting, [predict(nets[0].folded()), predict(nets[1].eval())])
    yield f"{mode}: prediction: ours / ordinary", f"{ours / ordinary:.2f}", "0.75" if goals else ""


def form_rows(setting: Setting, mode: str, dtype: torch.dtype | None) -> Iterator[Row]:
    """Forward and backward of each decoder level's convolution in every form, in one mode.

    These rows decide the table in `fastest_form` of model/convolution.py.
    """
    widths = [3, *encoder_channels(setting.depth, setting.channels)]
    for level in range(setting.depth, 0, -1):
        side = setting.size >> level
        x = torch.rand(setting.batch, widths[level], side, side, device=setting.device)
        skip = torch.rand(setting.batch, widths[level - 1], 2 * side, 2 * side, device=setting.device)
        x, skip = (tensor.to(memory_format=torch.channels_last) for tensor in (x, skip))
        weight = torch.rand(widths[level - 1], x.shape[1] + skip.shape[1], 3, 3, device=setting.device)
        weight = weight.to(memory_format=torch.channels_last).requires_grad_()

        def run(form: str, x: Tensor = x, skip: Tensor = skip, weight: Tensor = weight) -> None:
            with mock.patch("model.convolution.fastest_form", return_value=form), autocast(setting, dtype):
                conv2d_of_upsampled(x.requires_grad_(), skip, weight).float().sum().backward()

        times = medians(setting, [lambda form=form: run(form) for form in FORMS])  # type: ignore[misc]
        figures = ", ".join(f"{form} {1e3 * seconds:.2f} ms" for form, seconds in zip(FORMS, times, strict=True))
        yield f"{mode}: decoder level {level}, {x.shape[1]} channels of {side}×{side}", figures, ""


def step_rows(setting: Setting) -> Iterator[Row]:
    """A complete step in bf16 with VGG-16 and fused Adam: its time, its matrix work at peak speed, its kernels."""
    image, mask = inputs(setting)
    weights = load_config().loss.weights.model_dump()
    vgg = VGG16Features().to(setting.device)
    ours_loss, textbook_loss = InpaintingLoss(vgg, weights), TextbookLoss(vgg, weights)
    nets = networks(setting)

    def learn(net: nn.Module, criterion: Callable[..., Tensor]) -> Callable[[], object]:
        optimizer = torch.optim.Adam(net.train().parameters(), 2e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(setting, torch.bfloat16):
                loss = criterion(net(image, mask), image, mask)
            loss.backward()
            optimizer.step()

        return step

    def total(*arguments: Tensor) -> Tensor:
        return ours_loss(*arguments)[0]

    step = learn(nets[0], total)
    ours, ordinary, textbook = medians(setting, [step, learn(nets[1], total), learn(nets[2], textbook_loss)])
    what = "bf16: training step with VGG-16"
    yield f"{what}: ours / ordinary", f"{ours / ordinary:.2f} ({1e3 * ours:.2f} ms)", "0.95"
    yield f"{what}: ours / textbook", f"{ours / textbook:.2f}", ""
    with FlopCounterMode(display=False) as counter:
        step()
    peak = matrix_peak(setting)
    share = counter.get_total_flops() / peak / ours
    yield f"{what}: matrix work at the peak of {peak / 1e12:.1f} TFLOP/s, share of the time", f"{share:.2f}", "0.45"
    yield from kernel_rows(setting, step)


def matrix_peak(setting: Setting) -> float:
    """Measure the FLOP/s of a large bf16 matrix product."""
    side = 8192 if setting.device.type == "cuda" else 256
    a, b = (torch.rand(side, side, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    (seconds,) = medians(setting, [lambda: a @ b])
    return 2 * side**3 / seconds


def kernel_rows(setting: Setting, step: Callable[[], object]) -> Iterator[Row]:
    """Kernels that take more than a share LISTED of a step."""
    cuda = setting.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        step()
        synchronise(setting)
    times = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    whole = sum(times.values())
    for name, microseconds in sorted(times.items(), key=lambda item: -item[1]):
        if microseconds > LISTED * whole:
            yield f"kernel `{name[:60]}`", f"{microseconds / whole:.0%} of a step", ""


def memory_rows(setting: Setting) -> Iterator[Row]:
    """Peak memory of forward and backward with config.yml and paper_512.yml. No rows on a CPU."""
    if setting.device.type != "cuda":
        return
    for name, config in (("config.yml", load_config()), ("paper_512.yml", load_config(PAPER_512))):
        size, batch = config.data.image_size, config.train.batch_size
        at = setting._replace(size=size, batch=batch, depth=config.model.depth, channels=config.model.base_channels)
        for mode, dtype in (("float32", None), ("bf16", torch.bfloat16)):
            figures = [f"{peak_memory(at, kind, dtype) / 2**30:.1f} GiB" for kind in ("ours", "ordinary", "textbook")]
            yield f"{name}, {mode}: peak memory of ours, ordinary, textbook", ", ".join(figures), ""
        figure = f"{peak_memory(at, 'checkpointed', torch.bfloat16) / 2**30:.1f} GiB"
        yield f"{name}, bf16, train.checkpoint_activations", figure, "8" if name == "paper_512.yml" else ""


def peak_memory(setting: Setting, kind: str, dtype: torch.dtype | None) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    image, mask = inputs(setting)
    ours, ordinary, textbook = networks(setting)
    ours.checkpoint_activations = kind == "checkpointed"
    net = {"ordinary": ordinary, "textbook": textbook}.get(kind, ours).train()
    with autocast(setting, dtype):
        loss = net(image, mask).float().square().mean()
    loss.backward()
    return torch.cuda.max_memory_allocated()


def loader_rows(setting: Setting) -> Iterator[Row]:
    """Images per second that the loader delivers to the device, and the share of a step that waits for it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for kind in ("images", "train", "val"):
            (folder / kind).mkdir()
        for i in range(8):
            noise = rng.normal(128, 30, (375, 500, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / "images" / f"{i}.jpg", quality=90)
            write_mask(folder / "train" / f"{i}.png", draw_mask(rng, 256, "mixed", 0.3))
        for workers in WORKERS[: 1 if setting.rounds < 5 else None]:
            speed = loader_speed(config_of(folder, workers, setting), setting)
            yield f"images a second from 500×375 JPEGs, {workers} workers", f"{speed:.0f}", ""
            if workers in (1, 8):
                share = waiting_share(config_of(folder, workers, setting), setting)
                yield f"share of a step, bf16, that waits for {workers} workers", f"{share:.3f}", "0.02"


def config_of(folder: Path, workers: int, setting: Setting) -> Config:
    masks = folder / "train"
    return load_config(
        overrides=[
            f"data.train={folder / 'images'}",
            f"masks.train_dir={masks}",
            f"data.image_size={setting.size}",
            f"model.depth={setting.depth}",
            f"data.workers={workers}",
            f"train.batch_size={setting.batch}",
        ]
    )


def loader_speed(config: Config, setting: Setting) -> float:
    steps = 10 * setting.rounds
    batches = iter(training_batches(training_samples(config), config, 0, steps, device=setting.device))
    for _ in range(steps // 4):
        next(batches)
    synchronise(setting)
    start = time.perf_counter()
    images = sum(len(image) for image, _ in batches)
    synchronise(setting)
    return images / (time.perf_counter() - start)


def waiting_share(config: Config, setting: Setting) -> float:
    """Return the share of a step's time that is spent waiting for the loader."""
    state = TrainState(config, make_network(config, None, None), setting.device)
    criterion = InpaintingLoss(VGG16Features(), config.loss.weights.model_dump()).to(setting.device)

    def step(image: Tensor, mask: Tensor) -> None:
        state.optimizer.zero_grad(set_to_none=True)
        with autocast(setting, torch.bfloat16):
            loss = criterion(state.net(image, mask), image, mask)[0]
        loss.backward()
        state.take_step({"total": loss.detach()})

    there = inputs(setting)
    (alone,) = medians(setting, [lambda: step(*there)])
    steps = 3 + 2 * setting.rounds
    batches = training_batches(training_samples(config), config, 0, steps, device=setting.device)
    for number, batch in enumerate(batches):
        if number == 3:  # workers and optimizer are warm
            synchronise(setting)
            start = time.perf_counter()
        step(*batch)
    synchronise(setting)
    fed = (time.perf_counter() - start) / (steps - 3)
    return max(0.0, 1 - alone / fed)


# --- what is measured ------------------------------------------------------------------------------------------------


def inputs(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return random images in channels-last, and masks with round holes that cover about a quarter."""
    torch.manual_seed(0)
    image = torch.rand(setting.batch, 3, setting.size, setting.size, device=setting.device)
    coarse = torch.rand(setting.batch, 1, 16, 16, device=setting.device)
    coarse = nn.functional.interpolate(coarse, image.shape[2:], mode="bicubic")
    return image.contiguous(memory_format=torch.channels_last), (coarse > coarse.quantile(0.25)).float()


def networks(setting: Setting) -> tuple[PConvUNet, OrdinaryUNet, TextbookUNet]:
    """Return ours, the ordinary U-Net and the textbook network, with separate parameters, in channels-last."""
    net = PConvUNet(setting.depth, setting.channels).to(setting.device).to(memory_format=torch.channels_last)
    return net, OrdinaryUNet(copy.deepcopy(net)), TextbookUNet(copy.deepcopy(net))


def autocast(setting: Setting, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(setting.device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def synchronise(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.synchronize()


def medians(setting: Setting, rivals: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each rival over interleaved rounds, after three warm-up rounds."""
    seconds: list[list[float]] = [[] for _ in rivals]
    for turn in range(3 + setting.rounds):
        for rival, times in zip(rivals, seconds, strict=True):
            synchronise(setting)
            start = time.perf_counter()
            rival()
            synchronise(setting)
            if turn >= 3:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs/benchmarks_gpu.md"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few rounds")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "error: torch finds no CUDA device here; --device cpu --quick tries the benchmark itself\n")
    setting = Setting(device, 1, 64, 2, 4, 8) if args.quick else Setting(device, 30, 256, 18, 7, 64)
    lines = HEAD.splitlines()
    print(HEAD, flush=True)
    for row in rows(setting):
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU"
    lines += ["", f"Measured with torch {torch.__version__} on {card}, {os.cpu_count()} cores."]
    print(lines[-1])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
