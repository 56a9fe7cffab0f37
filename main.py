"""Train a partial-convolution U-Net. `python main.py --help` says how; config.yml holds every value."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, reports_user_errors

if TYPE_CHECKING:  # torch takes seconds to import: --help and mistakes in the config are answered before
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from torch.utils.tensorboard import SummaryWriter

    from data.samples import Pair
    from model import PConvUNet
    from utils.config import Config, OptimConfig
    from utils.run_folder import RunFolder

PICTURES = 6  # rows of the sheet of an evaluation


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    from utils.config import DEFAULT_CONFIG, load_config
    from utils.run_folder import RunFolder

    if args.resume:
        run = RunFolder(args.resume)
        run.check_resumable()
        config = load_config(run.config, args.overrides)
        config = replace(config, run=replace(config.run, dir=str(run.path)))  # the folder may have been moved
    else:
        config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
        run = RunFolder(config.run.dir)
        run.check_new()
    return train(config, run, resume=bool(args.resume), init_from=args.init_from)


def train(config: Config, run: RunFolder, resume: bool = False, init_from: str | None = None) -> int:
    """Train as the config says; what is written lies in the run folder. Returns the exit code."""
    import torch
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    from data.samples import training_batches, training_samples, validation_batches, validation_pairs
    from loss import InpaintingLoss
    from model import VGG16Features
    from utils.checkpoint import save_weights
    from utils.config import config_to_dict
    from utils.device import pick_device
    from utils.stopping import StopRequest

    # Data first: a wrong path is found before anything is built or written.
    samples = training_samples(config)
    pairs = validation_batches(validation_pairs(config), config)
    first_steps, total_steps = config.train.initial_steps, config.train.initial_steps + config.train.finetune_steps

    # Network, loss, optimizer.
    device = pick_device(config.run.device)
    torch.backends.cudnn.deterministic = True  # so that a resumed run equals a straight one on CUDA too
    torch.manual_seed(config.run.seed)
    net = starting_network(config, run.last if resume else init_from).to(device).train()
    criterion = InpaintingLoss(VGG16Features(config.loss.vgg16), asdict(config.loss.weights)).to(device)
    optimizer = make_optimizer(config.optim, net)

    # Where the run stands: a new one saves its first weights, a resumed one takes up its last.
    step = 0

    def save() -> None:
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
        run.save_checkpoint({**state, "step": step, "config": config_to_dict(config)}, config.train.keep_checkpoints)

    if resume:
        step = restore(run, optimizer)
        run.rewind(step)
        if step > first_steps:
            net.freeze_encoder_batch_norm()
    run.create(config)
    if not resume:
        save()

    print(f"{run.path}: step {step} to {total_steps} on {device}, {len(samples.images)} images")
    with (
        StopRequest() as stop,
        SummaryWriter(str(run.path), purge_step=step + 1) as board,
        tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True) as bar,
    ):
        since, images_seen = time.perf_counter(), 0
        for image, mask in training_batches(samples, config, step, total_steps):
            # Second phase: lower learning rate, encoder batch norm frozen (§4.2).
            if step == first_steps:
                begin_finetuning(net, training_batches(samples, config, step, step + config.train.settle_batches))
            lr = config.optim.initial_lr if step < first_steps else config.optim.finetune_lr
            for group in optimizer.param_groups:
                group["lr"] = lr

            # One step.
            image, mask = image.to(device, non_blocking=True), mask.to(device, non_blocking=True)
            output = net(image, mask)
            total, terms = criterion(output, image, mask)
            values = dict(zip(["total", *terms], torch.stack([total, *terms.values()]).tolist(), strict=True))
            stop_unless_finite(values, step + 1, run)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            step += 1

            # What is told of it, kept of it.
            images_seen += len(image)
            bar.update()
            speed = f"{(bar.format_dict['rate'] or 0) * len(image):.1f} images/s"
            bar.set_postfix_str(f"loss {values['total']:.3f}, lr {lr:g}, {speed}", refresh=False)
            if step % config.train.log_every == 0 or step == total_steps:
                now = time.perf_counter()
                log(run, board, step, "train", {**values, "lr": lr, "images_per_second": images_seen / (now - since)})
                since, images_seen = now, 0
            if step % config.train.eval_every == 0 or step == total_steps:
                metrics, picture = evaluate(net, pairs, device)
                log(run, board, step, "val", metrics)
                board.add_image("val/pictures", picture, step, dataformats="HWC")
                run.save_picture(step, picture)
                shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
                bar.write(f"step {step}: held-out {shown}")
            if step % config.train.save_every == 0 or step == total_steps or stop:
                save()
            if stop:
                break

    if step < total_steps:
        print(f"stopped at step {step} and saved. To go on: python main.py --resume {run.path}")
        return stop.exit_code
    save_weights(run.weights, net.state_dict())
    print(f"done. To repair a picture: python predict.py --model {run.weights} --image IMAGE --mask MASK")
    return 0


def begin_finetuning(net: PConvUNet, batches: DataLoader[Pair]) -> None:
    """Freeze the encoder's batch norm, with statistics taken anew from these batches if there are any."""
    from model import settle_encoder_batch_norm

    if len(batches):
        device = next(net.parameters()).device
        settle_encoder_batch_norm(net, ((image.to(device), mask.to(device)) for image, mask in batches))
    net.freeze_encoder_batch_norm()


def evaluate(net: PConvUNet, pairs: DataLoader[Pair], device: torch.device) -> tuple[dict[str, float], np.ndarray]:
    """Mean metrics of the composites over the held-out pairs, and a sheet of the first of them, uint8 (H,W,3)."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from utils.composite import composite
    from utils.metrics import picture_metrics
    from utils.pictures import masked, sheet

    scores: list[dict[str, float]] = []
    rows: list[list[np.ndarray]] = []
    net.eval()
    with torch.no_grad():
        for images, masks in tqdm(pairs, desc="evaluating", unit="batch", leave=False):
            outputs = net(images.to(device), masks.to(device)).float().cpu().clamp(0, 1)
            composites = composite(images, outputs, masks)
            for batch in zip(images, masks, outputs, composites, strict=True):
                image, mask, output, comp = (tensor.permute(1, 2, 0).numpy() for tensor in batch)  # (H,W,C)
                scores.append(picture_metrics(comp, image))
                if len(rows) < PICTURES:
                    rows.append([masked(image, mask), mask, output, comp, image])
    net.train()
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}, sheet(rows)


def log(run: RunFolder, board: SummaryWriter, step: int, kind: str, values: dict[str, float]) -> None:
    """Write the same numbers to metrics.jsonl and to TensorBoard. kind: train or val."""
    run.record({"step": step, **{f"{kind}/{name}": value for name, value in values.items()}})
    for name, value in values.items():
        board.add_scalar(f"{kind}/{name}", value, step)


def starting_network(config: Config, source: str | Path | None) -> PConvUNet:
    """A new network, or that of the file `source`: another project's then computes as it did there.

    UserError where its size is not the config's.
    """
    from model import PConvUNet, load_model

    size = (config.model.depth, config.model.base_channels)
    if source is None:
        return PConvUNet(*size)
    net = load_model(source)
    if (net.depth, net.base_channels) != size:
        raise UserError(
            f"{source}: its model.depth is {net.depth} and its model.base_channels {net.base_channels},"
            f" the config says {size[0]} and {size[1]}; they must be the same"
        )
    return net


def restore(run: RunFolder, optimizer: torch.optim.Optimizer) -> int:
    """Take up the optimizer of the run's last checkpoint; returns the steps that the run has behind it."""
    checkpoint = run.load_last()
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run.last} does not fit its config; optim.name can't change: {reason}") from None
    return int(checkpoint["step"])


def make_optimizer(optim: OptimConfig, net: PConvUNet) -> torch.optim.Optimizer:
    """The optimizer that the config names. The loop sets its learning rate at every step."""
    import torch

    if optim.name == "SGD":
        return torch.optim.SGD(
            net.parameters(), optim.initial_lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[optim.name]
    return kind(net.parameters(), optim.initial_lr, betas=(optim.momentum, 0.999), weight_decay=optim.weight_decay)


def stop_unless_finite(values: dict[str, float], step: int, run: RunFolder) -> None:
    """UserError where the loss is not finite: before the step is taken, so that no weight has seen it."""
    broken = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"step {step}: the loss is not finite ({', '.join(broken)}); the last checkpoint is {run.last}."
            " A lower optim.initial_lr or optim.finetune_lr may help"
        )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a partial-convolution U-Net.",
        epilog="example: python main.py --config configs/demo.yml train.batch_size=2",
    )
    parser.add_argument("--config", metavar="FILE", help="the config (config.yml beside this script)")
    parser.add_argument("--resume", metavar="RUN_DIR", help="go on with the run in this folder, by its own config")
    parser.add_argument(
        "--init-from", metavar="CHECKPOINT", help="start from the weights of this file, ours or another project's"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values instead of the config's")
    args = parser.parse_args(argv)
    if args.resume and (args.config or args.init_from):
        parser.error("--resume goes on with the run's own config and weights: leave --config and --init-from out")
    return args


if __name__ == "__main__":
    sys.exit(main())
