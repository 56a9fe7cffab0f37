"""Train a partial-convolution U-Net. See `python main.py --help` for the options and config.yml for all values."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.config import Config
from utils.config_files import CONFIG_NAME, DEFAULT_CONFIG, load_config
from utils.errors import UserError, reports_user_errors
from utils.startup import import_torch


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    config = read_config(args)
    if args.check_data:
        from data.check import check_data

        return check_data(config)
    import_torch()  # takes seconds, so --help and config errors are handled first
    return train(config, args.resume, args.init_from, args.rescan)


def train(config: Config, resume: str | None = None, init_from: str | None = None, rescan: bool = False) -> int:
    """Train as configured and return the exit code. All output goes to the folder run.dir.

    resume: the folder of a run, or one of its checkpoints. init_from: a checkpoint or weights file to start from.
    rescan: list images and masks again when resuming.
    """
    from training import (
        Meter,
        Schedule,
        StopRequest,
        TrainState,
        all_reduce_max,
        begin_phase,
        begin_run,
        end_run,
        load_newest,
        make_network,
        mean_losses,
        micro_batches,
        no_sync,
        open_data,
        open_run,
        prepare_device,
        reports_failures,
        training_steps,
        validate,
    )

    with open_run(config, resume) as (run, rank, goes_on):
        # Data first, so that a wrong path fails before anything is built or written.
        schedule = Schedule(config)
        data = open_data(config, schedule, run, goes_on, rescan)

        # Network, optimizer and progress of the run.
        device = prepare_device(config)
        checkpoint = load_newest(config, run) if goes_on else None
        state = TrainState(config, make_network(config, checkpoint, run.path if goes_on else init_from), device)
        if checkpoint:
            state.load_state_dict(checkpoint, run.path)
            del checkpoint  # as large as the network and optimizer together
        begin_run(config, schedule, run, state, data, goes_on)
        phase, stopped_by = None, 0

        with reports_failures(), StopRequest() as stop, Meter(state.step, schedule.total_steps, device) as meter:
            for phase_of_batch, batch in training_steps(config, schedule, data, state.step, device):
                if phase_of_batch is not phase:
                    phase = phase_of_batch
                    model, losses_of = begin_phase(config, phase, state, data, device)

                # One step on the mean loss of the micro-batches. Only the last backward pass all-reduces gradients.
                lr = state.set_lr(phase.lr_at(state.step))
                state.optimizer.zero_grad(set_to_none=True)
                parts = []
                for number, (image, mask) in enumerate(micro_batches(batch, config.train.accumulate), start=1):
                    with no_sync(model, number < config.train.accumulate):
                        losses = losses_of(image, mask)
                        state.scaler.scale(losses["total"] / config.train.accumulate).backward()
                    parts.append(losses)
                losses = mean_losses(parts)
                state.take_step(losses)
                meter.update(phase.batch_size)
                data.bad_files.check(state.step)

                # Log, validate, checkpoint. The host waits for the device only here.
                stopped_by = all_reduce_max(stop.signum)  # 0, or the signal that a rank received
                every = (config.train.log_every, config.train.eval_every, config.train.save_every)
                done = state.step == schedule.total_steps
                logs, evaluates, saves = (done or state.step % steps == 0 for steps in every)
                if logs or evaluates or saves or stopped_by:
                    state.check_finite(run, schedule)
                if logs:
                    values = {name: float(loss) for name, loss in losses.items()}
                    stats = {"lr": lr, "images_per_second": meter.rate(), "bad_files": data.bad_files.count(state.step)}
                    meter.show({**values, **stats})
                    if rank == 0:
                        run.record(state.step, "train", {**values, **stats})
                improved = False
                if evaluates:
                    metrics, picture = validate(state.eval_net, data.pairs, device)
                    improved = state.is_best(metrics)
                    if rank == 0:
                        run.record_validation(state.step, metrics, picture)
                if rank == 0 and (saves or stopped_by or improved):
                    run.save_state(state.state_dict(), config, improved)
                if stopped_by:
                    break
        return end_run(config, schedule, run, state, data, stopped_by)


def read_config(args: argparse.Namespace) -> Config:
    """Return the config that the arguments select. A resumed run uses its own, with run.dir set to its current path.

    Raises UserError if the config is invalid or --resume names no run.
    """
    if args.resume is None:
        return load_config(DEFAULT_CONFIG if args.config is None else args.config, args.overrides)
    path = Path(args.resume)
    folder = path.parent.parent if path.is_file() else path  # a checkpoint is RUN_DIR/checkpoints/NAME.pt
    if path.name == CONFIG_NAME and path.is_file():
        raise UserError(f"--resume {path}: this is the config of a run; name the run's folder, {path.parent}")
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"--resume {path}: no run to resume: {folder / CONFIG_NAME} does not exist")
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"--resume {path}: the folder's name is not UTF-8, which a config requires; rename it"
        ) from None
    config = load_config(folder / CONFIG_NAME, args.overrides, resume=True)
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": str(folder)})})


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a partial-convolution U-Net.",
        epilog="example: python main.py --config configs/demo.yml train.batch_size=2",
    )
    parser.add_argument("--config", metavar="FILE", help="config file (default: config.yml beside this script)")
    parser.add_argument(
        "--resume", metavar="RUN", help="resume the run in this folder, or from this checkpoint of a run"
    )
    parser.add_argument(
        "--init-from", metavar="CHECKPOINT", help="start from the weights in this file, of this or another project"
    )
    parser.add_argument(
        "--check-data", action="store_true", help="do not train: read all images and masks, and list the broken ones"
    )
    parser.add_argument(
        "--rescan",
        action="store_true",
        help="list images and masks again; otherwise a resumed run keeps its lists",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override values of the config")
    args = parser.parse_intermixed_args(argv)
    for name in ("config", "resume", "init_from"):
        if getattr(args, name) == "":
            parser.error(f"--{name.replace('_', '-')} is empty")
    if args.resume and (args.config or args.init_from):
        parser.error("--resume uses the run's own config and weights: leave out --config and --init-from")
    if args.resume and any(re.match(r"\s*run(\.dir\s*=|\s*=.*\bdir\b)", override) for override in args.overrides):
        parser.error("--resume continues in the folder that it names: leave out run.dir")
    if args.check_data and (args.resume or args.init_from):
        parser.error("--check-data does not train: leave out --resume and --init-from")
    return args


if __name__ == "__main__":
    sys.exit(main())
