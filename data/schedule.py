"""The phases of a training run: their steps, samples and learning rates.

A sample depends only on the seed and the number of samples before it. So phases may differ in batch size, and a run can
resume at any step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from utils.config import Config, loss_weights_of


@dataclass(frozen=True)
class Phase:
    """Steps first_step … last_step − 1 and the settings that apply to them."""

    number: int  # in the config's list, from 0
    first_step: int
    last_step: int
    first_sample: int  # samples before the phase
    image_size: int  # px
    batch_size: int
    crop_scale: tuple[float, float]
    amp: str
    loss_weights: dict[str, float]
    lr: float
    schedule: str
    end_lr: float
    warmup: int
    freeze_encoder_batch_norm: bool
    settle_batches: int

    def lr_at(self, step: int) -> float:
        """Return the learning rate at a step of this phase: linear warm-up, then constant or half a cosine period."""
        done = step - self.first_step
        if done < self.warmup:
            return self.lr * (done + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        progress = (done - self.warmup) / max(1, self.last_step - self.first_step - self.warmup)
        return self.end_lr + (self.lr - self.end_lr) * (1 + math.cos(math.pi * progress)) / 2

    def first_sample_of(self, step: int) -> int:
        return self.first_sample + (step - self.first_step) * self.batch_size


class Schedule:
    """All phases of a config that have steps."""

    def __init__(self, config: Config) -> None:
        self.phases: list[Phase] = []
        step = sample = 0
        for number, phase in enumerate(config.phases):
            size = phase.batch_size or config.train.batch_size
            if not phase.steps:
                continue
            self.phases.append(
                Phase(
                    number=number,
                    first_step=step,
                    last_step=step + phase.steps,
                    first_sample=sample,
                    image_size=phase.image_size or config.data.image_size,
                    batch_size=size,
                    crop_scale=phase.crop_scale or config.data.crop_scale,
                    amp=phase.amp or config.train.amp,
                    loss_weights=loss_weights_of(config, phase),
                    lr=phase.lr,
                    schedule=phase.schedule,
                    end_lr=phase.end_lr,
                    warmup=phase.warmup,
                    freeze_encoder_batch_norm=phase.freeze_encoder_batch_norm,
                    settle_batches=phase.settle_batches,
                )
            )
            step += phase.steps
            sample += phase.steps * size
        self.total_steps = step

    def phase_of(self, step: int) -> Phase:
        """Return the phase of a step; after the last step, the last phase."""
        return next((phase for phase in self.phases if step < phase.last_step), self.phases[-1])

    def samples_before(self, step: int) -> int:
        """Return the number of samples that the run has used when `step` begins."""
        return self.phase_of(step).first_sample_of(step)

    def step_of(self, sample: int) -> int:
        """Return the step of a sample."""
        phase = next(phase for phase in reversed(self.phases) if phase.first_sample <= sample)
        return phase.first_step + (sample - phase.first_sample) // phase.batch_size
