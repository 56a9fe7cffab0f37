"""Which config values may change when a run is resumed.

Each changed value takes effect, or is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from utils.config import Config, LossWeights, PhaseConfig, Section
from utils.errors import UserError

# When a changed value takes effect.
AT_ONCE = "at once"  # even if all steps are done
IN_STEPS_TO_COME = "in the steps to come"
WITH_RESCAN = "with --rescan, which lists images and masks again"  # data/kept_lists.py refuses the change without it

# Why a value cannot change.
_WEIGHTS = "the weights are made for it"
_ORDER = "the weights and the order of the images depend on it"
_SAME_PAIRS = "best.pt is the best on the same held-out pairs, which depend on it"
_OF_MASKS_PY = (
    "only masks.py reads it: make masks with it in another folder, then --resume with masks.train_dir and --rescan"
)
_MOMENTS = "the optimizer's moments depend on it"

# One of the three constants above, or the reason why the value cannot change.
RESUMABLE = {
    "run.dir": AT_ONCE,  # the folder may have moved
    "run.seed": _ORDER,
    "run.device": AT_ONCE,
    "data.train": WITH_RESCAN,
    "data.val": WITH_RESCAN,
    "data.val_pairs": _SAME_PAIRS,
    "data.image_size": _SAME_PAIRS + "; `image_size` of a phase changes the training's",
    "data.crop_scale": IN_STEPS_TO_COME,
    "data.crop_unit": IN_STEPS_TO_COME,
    "data.workers": AT_ONCE,
    "data.max_bad": AT_ONCE,
    "masks.train_dir": WITH_RESCAN,
    "masks.val_dir": WITH_RESCAN,
    "masks.train_count": _OF_MASKS_PY,
    "masks.val_count": _OF_MASKS_PY,
    "masks.size": _OF_MASKS_PY,
    "masks.style": _OF_MASKS_PY,
    "masks.hole_ratio": _OF_MASKS_PY,
    "masks.hole": _SAME_PAIRS,
    "masks.augment": IN_STEPS_TO_COME,
    "masks.dilate": IN_STEPS_TO_COME,
    "masks.crop": IN_STEPS_TO_COME,
    "masks.outlines": IN_STEPS_TO_COME,
    "model.depth": _WEIGHTS,
    "model.base_channels": _WEIGHTS,
    "model.base": _WEIGHTS,
    "loss.vgg16": IN_STEPS_TO_COME,
    **{f"loss.weights.{term}": IN_STEPS_TO_COME for term in LossWeights.model_fields},
    "optim.name": _MOMENTS,
    "optim.momentum": IN_STEPS_TO_COME,
    "optim.weight_decay": IN_STEPS_TO_COME,
    "train.batch_size": IN_STEPS_TO_COME,  # only of phases that have not begun: see _faults_of_phases
    "train.accumulate": IN_STEPS_TO_COME,
    "train.amp": IN_STEPS_TO_COME,
    "train.channels_last": AT_ONCE,
    "train.checkpoint_activations": AT_ONCE,
    "train.compile": AT_ONCE,
    "train.fused": AT_ONCE,
    "train.ema_decay": IN_STEPS_TO_COME,
    "train.log_every": AT_ONCE,
    "train.eval_every": AT_ONCE,
    "train.save_every": AT_ONCE,
    "train.export": AT_ONCE,
    "train.keep_checkpoints": AT_ONCE,
    "phases": IN_STEPS_TO_COME,  # checked per phase: see _faults_of_phases
}


def check_changes(before: Config, now: Config, step: int) -> None:
    """Raise UserError if a run with `step` completed steps under the config `before` cannot resume under `now`."""
    faults = [*_faults_of_phases(before, now, step), *_faults_of_keys(before, now, step)]
    if not faults:
        return
    if len(faults) > 1:
        faults.insert(0, f"{len(faults)} values can't change when a run resumes:")
    raise UserError("--resume: " + "\n  ".join(faults))


def values_of(section: Section, prefix: str = "") -> dict[str, Any]:
    """Return the values of a config by dotted path. The list of phases is one value."""
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        values.update(values_of(value, f"{prefix}{name}.") if isinstance(value, Section) else {prefix + name: value})
    return values


def _faults_of_keys(before: Config, now: Config, step: int) -> Iterator[str]:
    old, new = values_of(before), values_of(now)
    all_done = step >= sum(phase.steps for phase in now.phases)
    for key, value in new.items():
        if value == old[key] or key == "phases":
            continue
        when = RESUMABLE[key]
        if when not in (AT_ONCE, IN_STEPS_TO_COME, WITH_RESCAN):
            yield f"{key}: {value} must stay {old[key]}: {when}"
        elif when == IN_STEPS_TO_COME and all_done:
            yield f"{key}: would take effect in later steps, but all {step} are done; give a phase more `steps` as well"


def _faults_of_phases(before: Config, now: Config, step: int) -> Iterator[str]:
    """Completed phases must not change. A running phase keeps its batch size and at least its completed steps."""
    first = 0
    for number, old in enumerate(before.phases):
        if first >= step:
            return  # this phase and the later ones have not begun
        path, last = f"phases.{number}", first + old.steps
        if number >= len(now.phases):
            yield f"{path}: is missing, but {min(step, last) - first} of its steps are done"
            return
        new = now.phases[number]
        over, done = last < step, min(step - first, old.steps)
        size, old_size = new.batch_size or now.train.batch_size, old.batch_size or before.train.batch_size
        if size != old_size:
            key = f"{path}.batch_size" if new.batch_size or old.batch_size else "train.batch_size"
            yield (
                f"{key}: {size} must stay {old_size} in a phase that has begun: it determines which samples were used;"
                f" end {path} at {path}.steps={done} and add a phase with another `batch_size` after it"
            )
        yield from _faults_of_fields(path, old, new, over, done)
        first = last


def _faults_of_fields(path: str, old: PhaseConfig, new: PhaseConfig, over: bool, done: int) -> Iterator[str]:
    for name in PhaseConfig.model_fields:
        value = getattr(new, name)
        if value == getattr(old, name) or name == "batch_size":
            continue
        if over or (name != "steps" and new.steps <= done):
            yield f"{path}.{name}: {value} would change nothing: the steps of {path} are done"
        elif name == "steps" and new.steps < done:
            yield f"{path}.steps: {new.steps} are fewer than the {done} that are done"
        elif name == "settle_batches":
            yield f"{path}.{name}: {value} would change nothing: that is done before the first step of {path}"
        elif name == "warmup" and new.schedule == old.schedule == "constant" and done >= max(value, old.warmup):
            yield f"{path}.{name}: {value} would change nothing: {done} steps of {path} are done"
        elif name == "end_lr" and new.schedule == "constant":
            yield f"{path}.{name}: {value} would change nothing: {path}.schedule is constant"
