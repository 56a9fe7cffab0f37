"""Begin a run, change its phase, end it: everything that main.py's loop calls besides the step itself."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from data.check import look_at_some_masks
from data.faults import BadFiles
from data.image_list import ImageList
from data.kept_lists import images_of_run, is_kept, masks_of_run
from data.loader import Batches, Pair, reports_killed_workers, training_batches, validation_batches
from data.samples import training_samples, validation_pairs
from data.schedule import Phase, Schedule
from loss import InpaintingLoss, needs_features
from model import VGG16Features, settle_encoder_batch_norm
from training.checking import all_finite, check_checkpoint
from training.resume import check_changes
from training.run_folder import RunFolder
from training.state import TrainState, memory_format
from utils.checkpoint import load_checkpoint, save_weights
from utils.config import Config
from utils.config_files import config_of_run, load_config
from utils.errors import UserError
from utils.output import optional_output
from utils.processes import (
    all_reduce_mean,
    data_parallel,
    device_of_rank,
    from_rank_0,
    processes,
    rank_and_world_size,
    restarted,
    wait_for_all,
)
from utils.startup import keep_freed_memory

LONGEST_WAIT = timedelta(hours=1)  # timeout of collectives: how long a rank waits for one that hangs

Losses = dict[str, Tensor]  # scalars: `total` and the terms with a nonzero weight


class Lists(NamedTuple):
    """The lists of images and masks that the run folder keeps."""

    train_images: ImageList
    val_images: ImageList
    train_masks: ImageList
    val_masks: ImageList


@dataclass
class Data:
    """The data of a run."""

    lists: Lists
    pairs: Batches  # this rank's share of the validation pairs
    bad_files: BadFiles
    features: VGG16Features | None  # None if no phase's loss needs them


# --- begin -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_run(config: Config, resume: str | Path | None) -> Iterator[tuple[RunFolder, int, bool]]:
    """Context manager that yields the run folder, the rank of this process, and whether the run is resumed.

    A run is resumed if `resume` names its folder or one of its checkpoints, or if the torchrun that began it restarts
    it after a failure. Raises UserError if the folder does not fit.
    """
    with optional_output(), processes(LONGEST_WAIT) as (rank, _):
        run = RunFolder(config.run.dir)
        goes_on = resume is not None or from_rank_0(lambda: _restarts(run, config))
        if resume is not None:
            run.check_resumable()
            run.chosen = Path(resume) if Path(resume).is_file() else None
        elif not goes_on:
            run.check_new()
        wait_for_all()  # until every rank has checked the unchanged folder
        with contextlib.closing(run):
            yield run, rank, goes_on


def _restarts(run: RunFolder, config: Config) -> bool:
    """Return whether torchrun has restarted this process for a run that the same torchrun began."""
    return restarted() and run.begun_by_launcher() and load_config(run.config, resume=True) == config


def open_data(config: Config, schedule: Schedule, run: RunFolder, begun: bool, rescan: bool) -> Data:
    """List images and masks, and load the loss's network.

    Raises UserError if something is missing, no mask has a hole, or the ranks cannot share the batches equally.
    """
    rank, world_size = rank_and_world_size()
    check_batches(config, schedule, world_size)
    lists = from_rank_0(lambda: _lists(config, run, begun, rescan))
    train_masks, val_pairs = lists.train_masks, validation_pairs(config, lists.val_images, lists.val_masks)
    train, val = (os.path.realpath(path) for path in (config.data.train, config.data.val))
    if rank == 0 and val == train and os.path.exists(val):  # `sample` is not a path
        print("data.val is data.train: the held-out metrics are measured on training pictures", file=sys.stderr)
    from_rank_0(lambda: look_at_some_masks("masks.train_dir", train_masks, config.masks.hole))
    from_rank_0(lambda: look_at_some_masks("masks.val_dir", val_pairs.masks, config.masks.hole))
    pairs = validation_batches(val_pairs, config, rank, world_size)
    bad_files = BadFiles(run.bad_files, config, len(lists.train_images))
    needed = any(needs_features(phase.loss_weights) for phase in schedule.phases)
    features = VGG16Features(config.loss.vgg16) if needed else None
    return Data(lists, pairs, bad_files, features)


def _lists(config: Config, run: RunFolder, begun: bool, rescan: bool) -> Lists:
    """Return the lists that the run made when it began, or new ones. Raises UserError if too many files are missing."""
    data, masks = config.data, config.masks
    lists = Lists(
        images_of_run(data.train, "data.train", run.train_list, begun, rescan, data.max_bad),
        images_of_run(data.val, "data.val", run.val_list, begun, rescan, 1),
        masks_of_run(masks.train_dir, "masks.train_dir", run.train_masks, begun, rescan),
        masks_of_run(masks.val_dir, "masks.val_dir", run.val_masks, begun, rescan),
    )
    pairs = validation_pairs(config, lists.val_images, lists.val_masks)
    lost = [path for path, _ in map(pairs.paths, range(len(pairs))) if begun and not os.path.isfile(path)]
    if lost:
        raise UserError(
            f"data.val: {len(lost)} of the held-out pictures are missing, such as {lost[0]}. Put them back, or"
            " list the images again with --rescan"
        )
    return lists


def check_batches(config: Config, schedule: Schedule, world_size: int) -> None:
    """Raise UserError if a batch cannot be shared equally by the ranks and micro-batches."""
    multiple = config.train.accumulate * world_size
    for phase in schedule.phases:
        if phase.batch_size % multiple:
            parts = (
                f" in {config.train.accumulate} micro-batches (train.accumulate)" if config.train.accumulate > 1 else ""
            )
            raise UserError(
                f"train.batch_size: {phase.batch_size} images can't be shared equally by {world_size} processes{parts};"
                f" it must be a multiple of {multiple}"
            )


def prepare_device(config: Config) -> torch.device:
    """Set torch up for training, and return the device of this rank."""
    device = device_of_rank(config.run.device)
    torch.backends.cudnn.deterministic = True  # resumed and uninterrupted runs match on CUDA too
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.run.seed)
    return device


def load_newest(config: Config, run: RunFolder) -> dict[str, Any]:
    """Load the checkpoint to resume from; rank 0 locks the run. Raises UserError if the config does not match it."""
    if rank_and_world_size()[0] == 0:
        run.lock()
    checkpoint, path = run.load_newest(check_checkpoint)
    check_changes(config_of_run(checkpoint["config"], str(path)), config, checkpoint["step"])
    return checkpoint


def begin_run(config: Config, schedule: Schedule, run: RunFolder, state: TrainState, data: Data, resumed: bool) -> None:
    """Bring the run folder to the state's step. A new run saves its initial weights. Only rank 0 writes."""
    if rank_and_world_size()[0] > 0:
        return
    if resumed:
        run.rewind(state.step, config.train.keep_checkpoints)
        same_pairs = is_kept(data.lists.val_images, run.val_list) and is_kept(data.lists.val_masks, run.val_masks)
        if not same_pairs or not run.best_is_of(state.step):  # best.pt is of later steps, or lost
            state.best = math.inf
        data.bad_files.rewind(state.step)
    else:
        run.create()
        run.save_state(state.state_dict(), config)
    for files, path in zip(data.lists, run.lists, strict=True):
        files.save(path)
    run.start(config, state.step)
    device = next(state.net.parameters()).device
    print(f"{run.path}: step {state.step} to {schedule.total_steps} on {device}, {len(data.lists.train_images)} images")


# --- steps -----------------------------------------------------------------------------------------------------------


def training_steps(
    config: Config, schedule: Schedule, data: Data, step: int, device: torch.device
) -> Iterator[tuple[Phase, Pair]]:
    """Yield, from `step` on, the phase of each step and this rank's share of its batch, on the device."""
    rank, world_size = rank_and_world_size()
    for phase in schedule.phases:
        first = max(step, phase.first_step)
        if first < phase.last_step:
            samples = training_samples(config, data.lists.train_images, data.lists.train_masks, phase)
            batches = training_batches(
                samples, config, first, phase.last_step, data.bad_files.note, rank, world_size, device
            )
            for batch in batches:
                yield phase, batch


def begin_phase(
    config: Config, phase: Phase, state: TrainState, data: Data, device: torch.device
) -> tuple[nn.Module, Callable[[Tensor, Tensor], Losses]]:
    """Prepare the state for a phase, some of whose steps may be done.

    Returns the network to train, with gradients averaged over the ranks, and the function from image (N,3,H,W) and
    mask (N,1,H,W) to the losses.
    """
    if phase.freeze_encoder_batch_norm and state.step == phase.first_step and phase.settle_batches:
        rank, world_size = rank_and_world_size()
        samples = training_samples(config, data.lists.train_images, data.lists.train_masks, phase)
        last = state.step + phase.settle_batches
        batches = training_batches(samples, config, state.step, last, None, rank, world_size, device, beside=True)
        parts = (part for batch in batches for part in micro_batches(batch, config.train.accumulate))
        settle_encoder_batch_norm(state.net, parts)
    state.net.freeze_encoder_batch_norm(phase.freeze_encoder_batch_norm)
    state.note_hole_radius(training_samples(config, [], data.lists.train_masks, phase).hole_radius())

    model = data_parallel(state.net)  # per phase: DDP fixes at construction which weights have gradients
    criterion = InpaintingLoss(data.features, phase.loss_weights).to(device)
    layout = memory_format(config)
    amp = ("bf16" if device.type == "cuda" else "none") if phase.amp == "auto" else phase.amp
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16

    def losses_of(image: Tensor, mask: Tensor) -> Losses:
        image = image.contiguous(memory_format=layout)
        # Convolutions compute in the half-precision dtype; masks and the sums of the loss do not.
        with torch.autocast(device.type, dtype, enabled=amp != "none"):
            total, terms = criterion(model(image, mask), image, mask)
        return {"total": total, **terms}

    if config.train.compile == "none":
        return model, losses_of
    return model, torch.compile(losses_of, mode=config.train.compile)  # network and loss in one graph


def micro_batches(batch: Pair, count: int) -> Iterator[Pair]:
    """Yield `count` equal parts of a batch of images and masks."""
    yield from zip(*(tensor.chunk(count) for tensor in batch), strict=True)


def mean_losses(parts: Sequence[Losses]) -> Losses:
    """Return the mean of the micro-batches' losses over all ranks, detached, on the device."""
    names = list(parts[0])
    stacked = torch.stack([torch.stack([*losses.values()]).detach() for losses in parts]).mean(0)
    return dict(zip(names, all_reduce_mean(stacked), strict=True))


@contextlib.contextmanager
def reports_failures() -> Iterator[None]:
    """Context manager that raises UserError if a data worker is killed or torch.compile fails."""
    try:
        with reports_killed_workers():
            yield
    except BackendCompilerFailed as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"train.compile: torch can't compile the network ({reason}). It needs a C++ compiler, such as g++;"
            " install one, or set train.compile=none"
        ) from None


# --- end -------------------------------------------------------------------------------------------------------------


def end_run(config: Config, schedule: Schedule, run: RunFolder, state: TrainState, data: Data, stopped_by: int) -> int:
    """Write the trained network, or print how to resume a stopped run. Returns the exit code."""
    rank, _ = rank_and_world_size()
    if state.step < schedule.total_steps:
        if rank == 0:
            print(f"stopped at step {state.step} and saved. To resume: python main.py --resume {run.path}")
        wait_for_all()  # torchrun ends all processes once one ends with this code
        return 128 + stopped_by  # the shell's convention for a process ended by a signal
    if rank == 0:
        step, weights, which = _trained(config, run, state)
        if not all_finite(weights.values()):
            raise UserError(f"step {step}: a weight of the network is not finite; {run.weights} is not written")
        save_weights(run.weights, weights)
        print(f"done: {run.weights} is the network of step {step}, {which}")
        print(f"To repair a picture: python predict.py --model {run.weights} --image IMAGE --mask MASK")
    return 0


def _trained(config: Config, run: RunFolder, state: TrainState) -> tuple[int, dict[str, Tensor], str]:
    """Return the step and the weights of the network to export, and a text that says which one it is."""
    if config.train.export == "best":
        try:
            best = load_checkpoint(run.best)
            words = f"the best of the run: held-out L1 {best['best']:.3f} % (train.export: best)"
            return best["step"], best.get("ema", best["model"]), words
        except UserError as error:
            run.warn(f"{error}; the last network is exported instead of the best")
    return state.step, state.eval_net.state_dict(), "the last of the run (train.export: last)"
