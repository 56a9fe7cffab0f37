"""The state of a training run: network, average, optimizer, loss scale and progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from data.schedule import Schedule
from loss import TERMS
from model import PConvUNet, load_model, network_of, synchronise_batch_norm, with_base_in_decoder
from training.checking import all_finite
from training.muon import Muon
from training.run_folder import RunFolder
from training.way_back import way_back
from utils.config import Config
from utils.errors import UserError
from utils.processes import rank_and_world_size

Tensors = tuple[Tensor, ...] | list[Tensor]

SMALLEST_SCALE = 2.0**-16  # of the loss; it starts at 2**16 and halves whenever float16 overflows


class TrainState:
    """The state of a run. `state_dict` returns the part that a checkpoint stores."""

    def __init__(self, config: Config, net: PConvUNet, device: torch.device) -> None:
        self.net = net.to(device).to(memory_format=memory_format(config)).train()
        if rank_and_world_size()[1] > 1:
            self.net = synchronise_batch_norm(net, device)
        self.net.checkpoint_activations = config.train.checkpoint_activations
        self.optimizer = make_optimizer(config, net)
        uses_fp16 = "fp16" in {config.train.amp, *(phase.amp for phase in config.phases)}
        self.scaler = torch.amp.GradScaler(device.type, enabled=uses_fp16)  # float16 gradients would underflow
        self.average: AveragedModel | None = None
        if config.train.ema_decay:
            self._new_share = torch.tensor(1 - config.train.ema_decay, device=device)  # of the network in the average
            # use_buffers: batch norm statistics are averaged too.
            self.average = AveragedModel(net, multi_avg_fn=self._update_average, use_buffers=True)
        self.step = 0  # completed steps
        self.best = math.inf  # the lowest held-out L1 so far, in percent
        self.diverged = Diverged(device)

    @property
    def eval_net(self) -> PConvUNet:
        """The network for validation and export: the average if there is one."""
        return cast(PConvUNet, self.average.module) if self.average else self.net

    def note_hole_radius(self, radius: float) -> None:
        """Store the hole radius of the training masks (px) in the weights: prediction fills deep holes in octaves."""
        self.net.hole_radius.fill_(radius)
        self.eval_net.hole_radius.fill_(radius)

    def set_lr(self, lr: float) -> float:
        """Set and return the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def is_best(self, metrics: dict[str, float]) -> bool:
        """Return whether these held-out metrics have the lowest L1 so far, and keep it. False on ranks above 0."""
        improved = bool(metrics) and metrics["l1_percent"] < self.best
        if improved:
            self.best = metrics["l1_percent"]
        return improved

    def take_step(self, losses: dict[str, Tensor]) -> None:
        """Step the optimizer and the average. No weight changes if a loss or a gradient is not finite.

        The check runs on the device. With a fused optimizer the host does not wait for it.
        """
        loss_is_finite = torch.stack([*losses.values()]).isfinite().all()
        gradients = [weight.grad for weight in self.net.parameters() if weight.grad is not None]
        self._taken = loss_is_finite & nn.utils.get_total_norm(gradients).isfinite()
        if self.scaler.is_enabled():  # skips steps whose gradients overflow float16, and halves the scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._step_if(self._taken)
        if self.average:
            self.average.update_parameters(self.net)
        self.step += 1
        self.diverged.note(self.step, loss_is_finite if self.scaler.is_enabled() else self._taken, losses)

    @torch.no_grad()
    def _update_average(self, averages: Tensors, values: Tensors, _count: Tensor | int) -> None:
        """Update average ← average + (1 − train.ema_decay)·(value − average), unless the step was skipped."""
        share = torch.where(self._taken, self._new_share, 0.0)
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share.to(average.dtype))
            else:  # num_batches_tracked of batch norm
                average.copy_(value)

    def _step_if(self, finite: Tensor) -> None:
        if self.optimizer.defaults["fused"]:
            # GradScaler's protocol: the fused kernels change nothing if found_inf is 1.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
        elif finite:  # the host waits here
            self.optimizer.step()

    def check_finite(self, run: RunFolder, schedule: Schedule) -> None:
        """Raise UserError if a loss or gradient of any step since the start, or a weight, is not finite.

        Also if float16 gradients overflow even at SMALLEST_SCALE. Waits for the device.
        """
        step, what = self.diverged.first()
        changed_by = step - 1  # this step made the weights that diverged: its learning rate must be lowered
        if not step and not all_finite(self.eval_net.state_dict().values()):
            step = changed_by = self.step
            what = "a weight of the network is not finite"
        if step:
            phase = schedule.phase_of(max(0, changed_by - 1))
            raise UserError(f"step {step}: {what}. {way_back(run, phase, step)}")
        if self.scaler.get_scale() < SMALLEST_SCALE:
            raise UserError(
                f"step {self.step}: the gradients overflow float16 even with the loss scaled by"
                f" {self.scaler.get_scale():g}, so the network no longer learns; the last checkpoint is {run.last}."
                " Set train.amp to bf16 or none"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores besides the config."""
        state = {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.average:
            state["ema"] = self.average.module.state_dict()
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return {**state, "step": self.step, "best": self.best}

    def load_state_dict(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Resume from a checkpoint whose network this state already has. Raises UserError if the rest does not match.

        An average that was not in the checkpoint starts from the network.
        """
        # Options come from the config, moments from the checkpoint.
        optimizer = {**self.optimizer.state_dict(), "state": checkpoint["optimizer"]["state"]}
        try:
            self.optimizer.load_state_dict(optimizer)
            _match_memory_format(self.optimizer)
            if self.average and "ema" in checkpoint:
                self.average.module.load_state_dict(checkpoint["ema"])
            if self.scaler.is_enabled() and "scaler" in checkpoint:
                self.scaler.load_state_dict(checkpoint["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} does not fit its config: {reason}") from None
        self.step, self.best = checkpoint["step"], checkpoint.get("best", math.inf)  # missing in older checkpoints
        if self.average:
            self.average.n_averaged.fill_(self.step)  # at 0 the first update would copy the network


class Diverged:
    """Records the first step whose loss or gradient was not finite. The record stays on the device until it is read."""

    names = ("total", *TERMS)

    def __init__(self, device: torch.device) -> None:
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # 0: none so far
        self.losses = torch.zeros(len(self.names), device=device)  # of that step, in the order of `names`
        self.no_loss = torch.zeros((), device=device)

    def note(self, step: int, finite: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Record a step if it is the first non-finite one. losses: `total` and the terms with a weight in its phase."""
        first = ~finite & (self.step == 0)
        stacked = torch.stack([losses.get(name, self.no_loss) for name in self.names])
        self.losses = torch.where(first, stacked, self.losses)
        self.step = torch.where(first, step, self.step)

    def first(self) -> tuple[int, str]:
        """Return the step (0 if there was none) and a text that says what was not finite. Waits for the device."""
        step = int(self.step)
        if not step:
            return 0, ""
        values = zip(self.names, self.losses.tolist(), strict=True)
        broken = [f"{name} = {value}" for name, value in values if not math.isfinite(value)]
        return step, f"the loss is not finite ({', '.join(broken)})" if broken else "the gradient is not finite"


def memory_format(config: Config) -> torch.memory_format:
    return torch.channels_last if config.train.channels_last else torch.contiguous_format


def make_optimizer(config: Config, net: PConvUNet) -> torch.optim.Optimizer:
    """Return the configured optimizer. The training loop sets its learning rate at every step."""
    optim = config.optim
    options: dict[str, Any] = {"weight_decay": optim.weight_decay, "fused": config.train.fused}
    lr = config.phases[0].lr
    if optim.name == "SGD":
        sgd = torch.optim.SGD(net.parameters(), lr, momentum=optim.momentum, **options)
        if optim.momentum:  # the fused SGD leaves it uninitialised if the first step is skipped
            for weight in net.parameters():
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)
        return sgd
    if optim.name == "Muon":
        return Muon(net.parameters(), lr, optim.momentum, optim.weight_decay)
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[optim.name]
    return kind(net.parameters(), lr, betas=(optim.momentum, 0.999), **options)


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's moments the memory format of their weights.

    Fused optimizers read both in memory order, and train.channels_last may have changed since the checkpoint.
    """
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                moments[name] = torch.empty_like(weight, requires_grad=False).copy_(value)


def make_network(config: Config, checkpoint: dict[str, Any] | None, source: str | Path | None) -> PConvUNet:
    """Return the configured network, with the weights of `checkpoint`, or of the file `source`, or new ones.

    A file of another project keeps its behaviour. A network of base `push_pull` can continue as one of
    `thin_plate`. Raises UserError if its architecture differs from the config.
    """
    wanted = config.model.model_dump()
    if checkpoint is None and source is None:
        return PConvUNet(**wanted)
    net = network_of(checkpoint["model"], source) if checkpoint else load_model(source)  # type: ignore[arg-type]
    if checkpoint is None and (net.base, wanted["base"]) == ("push_pull", "thin_plate"):
        net = with_base_in_decoder(net)
    for name, value in wanted.items():
        if getattr(net, name) != value:
            raise UserError(
                f"{source}: its model.{name} is {getattr(net, name)}, the config says {value}; they must be the same"
            )
    return net
