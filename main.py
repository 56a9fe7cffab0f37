"""Train a partial-convolution U-Net. `python main.py --help` says how; config.yml holds every value."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, reports_user_errors

if TYPE_CHECKING:  # torch takes seconds to import: --help and mistakes in the config are answered before
    import numpy as np
    import torch
    from torch.optim.swa_utils import AveragedModel

    from data.samples import Batches, Pair
    from model import PConvUNet
    from training.run_folder import RunFolder
    from utils.config import Config

PICTURES = 6  # rows of the sheet of an evaluation
LONGEST_WAIT = timedelta(hours=1)  # of a process for one that hangs
SMALLEST_SCALE = 2.0**-16  # of the loss; it starts at 2**16 and is halved where float16 overflows


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    from training.run_folder import RunFolder
    from utils.config import DEFAULT_CONFIG, load_config
    from utils.processes import processes, wait_for_all

    if args.check_data:
        from data.check import check_data

        return check_data(load_config(args.config or DEFAULT_CONFIG, args.overrides))
    with processes(LONGEST_WAIT):
        resume = bool(args.resume)
        if args.resume:
            run = RunFolder(args.resume)
            run.check_resumable()
            config = load_config(run.config, args.overrides)
            config = replace(config, run=replace(config.run, dir=str(run.path)))  # the folder may have been moved
        else:
            config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
            run = RunFolder(config.run.dir)
            resume = has_begun(config, run)
            if not resume:
                run.check_new()
        wait_for_all()  # until each has seen the folder as it was
        with contextlib.closing(run):
            return train(config, run, resume, args.init_from, args.rescan)


def has_begun(config: Config, run: RunFolder) -> bool:
    """Whether torchrun starts this run again, after a failure, and its folder holds what it had written."""
    from utils.config import load_config
    from utils.processes import restarted

    return restarted() and run.config.exists() and load_config(run.config) == config


def train(
    config: Config, run: RunFolder, resume: bool = False, init_from: str | None = None, rescan: bool = False
) -> int:
    """Train as the config says; what is written lies in the run folder. Returns the exit code."""
    from utils.startup import import_torch

    import_torch()
    import torch
    from tqdm import tqdm

    from data.faults import BadFiles
    from data.listing import kept_or_found
    from data.samples import (
        reports_killed_workers,
        training_batches,
        training_samples,
        validation_batches,
        validation_pairs,
    )
    from loss import InpaintingLoss
    from model import VGG16Features, synchronise_batch_norm
    from training.stopping import StopRequest
    from utils.checkpoint import save_weights
    from utils.config import config_to_dict
    from utils.processes import (
        data_parallel,
        device_of,
        from_first,
        largest,
        mean_over_processes,
        place,
        wait_for_all,
        without_exchange,
    )
    from utils.startup import keep_freed_memory

    # All processes do the same, each with its share of every batch; the first alone writes.
    process, count = place()
    check_shares(config, count)

    # Data first: a wrong path is found before anything is built or written.
    train_images = from_first(lambda: kept_or_found(config.data.train, "data.train", run.train_list, rescan))
    val_images = from_first(lambda: kept_or_found(config.data.val, "data.val", run.val_list, rescan))
    samples = training_samples(config, train_images)
    pairs = validation_batches(validation_pairs(config, val_images), config, process, count)
    bad_files = BadFiles(run.bad_files, config, len(samples.images))
    first_steps, total_steps = config.train.initial_steps, config.train.initial_steps + config.train.finetune_steps

    # Network, loss, optimizer.
    device = device_of(config.run.device)
    torch.backends.cudnn.deterministic = True  # so that a resumed run equals a straight one on CUDA too
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.run.seed)
    if resume and process == 0:
        run.lock()
    checkpoint = run.load_newest() if resume else None
    net = resumed_network(config, run, checkpoint) if checkpoint else starting_network(config, init_from)
    net.to(device).train()
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    net.to(memory_format=layout)
    if count > 1:
        synchronise_batch_norm(net)
    criterion: torch.nn.Module = InpaintingLoss(VGG16Features(config.loss.vgg16), asdict(config.loss.weights))
    criterion.to(device)
    optimizer = make_optimizer(config, net)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")  # its gradients would underflow
    average = moving_average(net, config.train.ema_decay)  # None where there is to be none
    shown = average.module if average else net  # what validation and prediction use

    # Where the run stands: a new one saves its first weights, a resumed one takes up its last.
    step, best = 0, math.inf  # best: the lowest held-out L1 so far, in percent

    def save(improved: bool = False) -> None:
        if process > 0:
            return
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "best": best}
        if average:
            state["ema"] = shown.state_dict()
        if scaler.is_enabled():
            state["scaler"] = scaler.state_dict()
        run.save_checkpoint({**state, "config": config_to_dict(config)}, config.train.keep_checkpoints, improved)

    if checkpoint:
        step, best = restore(run, checkpoint, optimizer, average, scaler)
        del checkpoint  # as large as the network and its optimizer
        if process == 0:
            run.rewind(step)
            bad_files.rewind(step)
        if step > first_steps:
            net.freeze_encoder_batch_norm()
    elif process == 0:
        run.create()
        save()
    if process == 0:
        train_images.save(run.train_list)
        val_images.save(run.val_list)
        run.start(config, step)
        print(f"{run.path}: step {step} to {total_steps} on {device}, {len(samples.images)} images")
    model = compiled(data_parallel(net), config)  # what trains; net itself validates as it is
    criterion = compiled(criterion, config)

    with (
        reports_killed_workers(),
        reports_failed_compilation(),
        StopRequest() as stop,
        tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=process > 0) as bar,
    ):
        since, images_seen = time.perf_counter(), 0
        for batch in training_batches(samples, config, step, total_steps, bad_files.note, process, count, device):
            # Second phase: lower learning rate, encoder batch norm frozen (§4.2).
            if step == first_steps:
                last_step = step + config.train.settle_batches
                settling = training_batches(
                    samples, config, step, last_step, process=process, count=count, device=device
                )
                begin_finetuning(net, settling, config.train.accumulate)
                model = compiled(data_parallel(net), config)  # anew: what is frozen has no gradients to wait for
            lr = config.optim.initial_lr if step < first_steps else config.optim.finetune_lr
            for group in optimizer.param_groups:
                group["lr"] = lr

            # One step: the gradient of the mean over the batch's parts, of which the last exchanges it.
            optimizer.zero_grad(set_to_none=True)
            losses = []
            for part, (image, mask) in enumerate(parts_of(batch, config.train.accumulate), start=1):
                with without_exchange(model, part < config.train.accumulate):
                    image = image.contiguous(memory_format=layout)
                    with mixed_precision(config.train.amp, device):
                        output = model(image, mask)
                        total, terms = criterion(output, image, mask)
                    scaler.scale(total / config.train.accumulate).backward()
                losses.append(torch.stack([total, *terms.values()]).detach())
            means = mean_over_processes(torch.stack(losses).mean(0)).tolist()
            values = dict(zip(["total", *terms], means, strict=True))
            stop_unless_finite(values, step + 1, run)
            scaler.step(optimizer)  # or not, where a gradient has overflowed: then the scale is halved
            scaler.update()
            stop_unless_scalable(scaler, step + 1, run)
            if average:
                average.update_parameters(net)
            step += 1
            bad_files.check(step)

            # What is told of it, kept of it.
            images_seen += config.train.batch_size
            bar.update()
            speed = f"{(bar.format_dict['rate'] or 0) * config.train.batch_size:.1f} images/s"
            bar.set_postfix_str(f"loss {values['total']:.3f}, lr {lr:g}, {speed}", refresh=False)
            if step % config.train.log_every == 0 or step == total_steps:
                now = time.perf_counter()
                told = {"lr": lr, "images_per_second": images_seen / (now - since), "bad_files": bad_files.count(step)}
                if process == 0:
                    run.record(step, "train", {**values, **told})
                since, images_seen = now, 0
            improved = False
            if step % config.train.eval_every == 0 or step == total_steps:
                metrics, picture = evaluate(shown, pairs, device)
                if picture is not None:  # the first process's
                    run.record(step, "val", metrics)
                    run.save_picture(step, picture)
                    improved = metrics["l1_percent"] < best
                    best = min(best, metrics["l1_percent"])
                    told_of = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
                    bar.write(f"step {step}: held-out {told_of}")
            stopped_by = largest(stop.signum)  # 0, or the signal that one of the processes got
            if step % config.train.save_every == 0 or step == total_steps or stopped_by or improved:
                save(improved)
            if stopped_by:
                break

    if step < total_steps:
        if process == 0:
            print(f"stopped at step {step} and saved. To go on: python main.py --resume {run.path}")
        wait_for_all()  # torchrun ends all processes as soon as one ends so
        return 128 + stopped_by  # what a shell expects of a process that a signal ended
    if process == 0:
        save_weights(run.weights, shown.state_dict())
        print(f"done. To repair a picture: python predict.py --model {run.weights} --image IMAGE --mask MASK")
    return 0


def check_shares(config: Config, count: int) -> None:
    """UserError where the batch can't be shared equally by so many processes."""
    size, parts = config.train.batch_size, config.train.accumulate
    if size % (parts * count):
        parts_too = f" in {parts} parts (train.accumulate)" if parts > 1 else ""
        raise UserError(
            f"train.batch_size: {size} images can't be shared equally by {count} processes{parts_too};"
            f" it must be a multiple of {parts * count}"
        )


def parts_of(batch: Pair, count: int) -> Iterator[Pair]:
    """So many equal parts of a batch of images and masks."""
    yield from zip(*(tensor.chunk(count) for tensor in batch), strict=True)


def mixed_precision(amp: str, device: torch.device) -> torch.autocast:
    """Within it convolutions are computed in a half type, or not where train.amp is `none`; masks and sums never."""
    import torch

    return torch.autocast(device.type, torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "none")


def compiled(module: torch.nn.Module, config: Config) -> torch.nn.Module:
    """The module itself, or where the config says so, one that computes the same by code made for it at first use."""
    import torch

    return torch.compile(module) if config.train.compile else module  # type: ignore[return-value]


@contextlib.contextmanager
def reports_failed_compilation() -> Iterator[None]:
    """A UserError where torch.compile finds no compiler, or fails otherwise."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed

        if not isinstance(error, BackendCompilerFailed):
            raise
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"train.compile: torch can't compile the network ({reason}). It needs a C++ compiler, as g++;"
            " install one, or set train.compile=false"
        ) from None


def begin_finetuning(net: PConvUNet, batches: Batches, parts: int) -> None:
    """Freeze the encoder's batch norm, with statistics taken anew from these batches if there are any."""
    from model import settle_encoder_batch_norm

    if len(batches):
        settle_encoder_batch_norm(net, (part for batch in batches for part in parts_of(batch, parts)))
    net.freeze_encoder_batch_norm()


def evaluate(net: torch.nn.Module, pairs: Batches, device: torch.device) -> tuple[dict[str, float], np.ndarray | None]:
    """Mean metrics of the composites over the held-out pairs, and a sheet of the first of them, uint8 (H,W,3).

    Of several processes the first returns this, for the pairs of all; the others return {} and None.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from evaluation.metrics import picture_metrics
    from evaluation.pictures import masked, sheet
    from model.composite import composite
    from utils.processes import gathered, place

    numbers = iter(pairs.sampler)
    scores: dict[int, dict[str, float]] = {}  # by the number of the pair
    rows: dict[int, list[np.ndarray]] = {}
    net.eval()
    with torch.no_grad():
        for images, masks in tqdm(pairs, desc="evaluating", unit="batch", leave=False, disable=place()[0] > 0):
            outputs = net(images.to(device), masks.to(device)).float().cpu().clamp(0, 1)
            composites = composite(images, outputs, masks)
            for batch in zip(images, masks, outputs, composites, strict=True):
                image, mask, output, comp = (tensor.permute(1, 2, 0).numpy() for tensor in batch)  # (H,W,C)
                number = next(numbers)
                scores[number] = picture_metrics(comp, image)
                if number < PICTURES:
                    rows[number] = [masked(image, mask), mask, output, comp, image]
    net.train()
    scores, rows = dict(gathered([*scores.items()])), dict(gathered([*rows.items()]))
    if not scores:
        return {}, None
    means = {name: float(np.mean([scores[number][name] for number in sorted(scores)])) for name in scores[0]}
    return means, sheet([rows[number] for number in sorted(rows)])


def starting_network(config: Config, source: str | None) -> PConvUNet:
    """A new network, or that of the file `source`: another project's then computes as it did there.

    UserError where its size is not the config's.
    """
    from model import PConvUNet, load_model

    if source is None:
        return PConvUNet(config.model.depth, config.model.base_channels)
    return of_size(config, load_model(source), source)


def resumed_network(config: Config, run: RunFolder, checkpoint: dict[str, Any]) -> PConvUNet:
    """The network of the run's checkpoint. UserError where its size is not the config's."""
    from model import network_of

    return of_size(config, network_of(checkpoint["model"], run.path), run.path)


def of_size(config: Config, net: PConvUNet, source: str | Path) -> PConvUNet:
    """The network itself. UserError where its size is not the config's."""
    size = (config.model.depth, config.model.base_channels)
    if (net.depth, net.base_channels) != size:
        raise UserError(
            f"{source}: its model.depth is {net.depth} and its model.base_channels {net.base_channels},"
            f" the config says {size[0]} and {size[1]}; they must be the same"
        )
    return net


def restore(
    run: RunFolder,
    checkpoint: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    scaler: torch.amp.GradScaler,
) -> tuple[int, float]:
    """Take up a checkpoint's optimizer, average and loss scale. Returns the steps behind it, and the best L1 in %.

    Where the average was switched on since, it starts from the network as it is.
    """
    try:
        for group in checkpoint["optimizer"]["param_groups"]:
            group["fused"] = optimizer.defaults["fused"]  # the config's, not the checkpoint's
        optimizer.load_state_dict(checkpoint["optimizer"])
        lay_out_as_weights(optimizer)
        if average and "ema" in checkpoint:
            average.module.load_state_dict(checkpoint["ema"])
        if scaler.is_enabled() and "scaler" in checkpoint:
            scaler.load_state_dict(checkpoint["scaler"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run.path} does not fit its config; optim.name can't change: {reason}") from None
    if average:
        average.n_averaged.fill_(checkpoint["step"])  # at 0 the first update would copy the network
    return checkpoint["step"], checkpoint.get("best", math.inf)  # none in older checkpoints


def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Let what the optimizer keeps of each weight lie in memory as the weight does.

    The fused forms go through both from front to back, and train.channels_last may have been another before.
    """
    import torch

    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                kept[name] = torch.empty_like(weight, requires_grad=False).copy_(value)


def moving_average(net: PConvUNet, decay: float) -> AveragedModel | None:
    """An exponential moving average of weights and of batch norm's statistics; None for a decay of 0."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


def make_optimizer(config: Config, net: PConvUNet) -> torch.optim.Optimizer:
    """The optimizer that the config names. The loop sets its learning rate at every step."""
    import torch

    optim = config.optim
    options: dict[str, Any] = {"weight_decay": optim.weight_decay, "fused": config.train.fused}
    if optim.name == "SGD":
        return torch.optim.SGD(net.parameters(), optim.initial_lr, momentum=optim.momentum, **options)
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[optim.name]
    return kind(net.parameters(), optim.initial_lr, betas=(optim.momentum, 0.999), **options)


def stop_unless_finite(values: dict[str, float], step: int, run: RunFolder) -> None:
    """UserError where the loss is not finite: before the step is taken, so that no weight has seen it."""
    broken = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"step {step}: the loss is not finite ({', '.join(broken)}); the last checkpoint is {run.last}."
            " A lower optim.initial_lr or optim.finetune_lr may help; so may train.amp=bf16 instead of fp16"
        )


def stop_unless_scalable(scaler: torch.amp.GradScaler, step: int, run: RunFolder) -> None:
    """UserError where a small scale of the loss has not made the gradients finite: no step would be taken any more."""
    if scaler.get_scale() < SMALLEST_SCALE:
        raise UserError(
            f"step {step}: the gradients overflow float16 even with the loss scaled by {scaler.get_scale():g}, so"
            f" nothing is learnt; the last checkpoint is {run.last}. Set train.amp to bf16 or none"
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
    parser.add_argument(
        "--check-data", action="store_true", help="train nothing: read all images and masks, list what is broken"
    )
    parser.add_argument(
        "--rescan", action="store_true", help="list the images anew; without it a resumed run keeps its list"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values instead of the config's")
    args = parser.parse_args(argv)
    if args.resume and (args.config or args.init_from):
        parser.error("--resume goes on with the run's own config and weights: leave --config and --init-from out")
    if args.check_data and (args.resume or args.init_from):
        parser.error("--check-data trains nothing: leave --resume and --init-from out")
    return args


if __name__ == "__main__":
    sys.exit(main())
