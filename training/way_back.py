"""Advice for a run whose loss is no longer finite."""

from __future__ import annotations

import math
from pathlib import Path

from data.schedule import Phase
from training.run_folder import RunFolder

# If the loss is this many times the first one, the weights have exploded and no learning rate rescues them.
_EXPLODED = 10
# Upper limit of the advised learning rate.
_HIGHEST_LR = 1e-4


def way_back(run: RunFolder, phase: Phase, step: int) -> str:
    """Return advice after a non-finite loss or gradient in `step`: a command that resumes from before, or restarts."""
    if step == 1:
        return (
            "It is the first step, so the learning rate is not the cause: look at loss.weights, at the weights that"
            " the run began with, and at train.amp"
        )
    lr = min(phase.lr / 10, _HIGHEST_LR)
    change = f"phases.{phase.number}.lr={lr:g}"
    if phase.end_lr > lr:
        change += f" phases.{phase.number}.end_lr={lr / 10:g}"
    path = newest_healthy(run, step)
    if path:
        return (
            f"The newest checkpoint before that is {path}. To resume there: `python main.py --resume {path} {change}`"
        )
    number = 2
    while Path(f"{run.path}_{number}").exists():
        number += 1
    begin = f"`python main.py --config {run.config} run.dir={run.path}_{number} {change}`"
    return f"No checkpoint of the run is from before the loss exploded. To start again: {begin}"


def newest_healthy(run: RunFolder, step: int) -> Path | None:
    """Return the newest checkpoint whose next recorded loss, before `step`, is at most ten times the first; or None."""
    losses = run.train_losses()
    if not losses or not math.isfinite(losses[0][1]):
        return None
    for saved, path in sorted(run.checkpoints_newest_first(), key=lambda item: -item[0]):
        after = [loss for at, loss in losses if saved < at < step]
        if after and after[0] <= _EXPLODED * losses[0][1]:
            return path
    return None
