"""All that a training run changes: network, average, optimizer, loss scale, and where it stands."""

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
from model import PConvUNet, load_model, network_of, synchronise_batch_norm
from training.checking import all_finite
from training.run_folder import RunFolder
from training.way_back import way_back
from utils.config import Config
from utils.errors import UserError
from utils.processes import rank_and_world_size

Tensors = tuple[Tensor, ...] | list[Tensor]

SMALLEST_SCALE = 2.0**-16  # of the loss; it starts at 2**16 and is halved where float16 overflows


class TrainState:
    """The pieces of a run's state, each named once. `state_dict` is what a checkpoint holds of them."""

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
            # use_buffers: batch norm's statistics are averaged, too.
            self.average = AveragedModel(net, multi_avg_fn=self._update_average, use_buffers=True)
        self.step = 0  # steps that are done
        self.best = math.inf  # the lowest held-out L1 so far, in percent
        self.diverged = Diverged(device)

    @property
    def eval_net(self) -> PConvUNet:
        """The network that is validated and saved for prediction: the average, where there is one."""
        return cast(PConvUNet, self.average.module) if self.average else self.net

    def note_hole_radius(self, radius: float) -> None:
        """Keep in the weights which holes they are trained on, px: prediction fills larger ones in octaves."""
        self.net.hole_radius.fill_(radius)
        self.eval_net.hole_radius.fill_(radius)

    def set_lr(self, lr: float) -> float:
        """Set the learning rate of the next step, and return it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def is_best(self, metrics: dict[str, float]) -> bool:
        """Whether these held-out metrics have the lowest L1 so far, which is kept. Never on other ranks than 0."""
        improved = bool(metrics) and metrics["l1_percent"] < self.best
        if improved:
            self.best = metrics["l1_percent"]
        return improved

    def take_step(self, losses: dict[str, Tensor]) -> None:
        """One step of the optimizer, and of the average. No weight changes where a loss or a gradient is not finite.

        Whether they are is judged on the device: nothing here waits for it, if the optimizer is fused.
        """
        loss_is_finite = torch.stack([*losses.values()]).isfinite().all()
        gradients = [weight.grad for weight in self.net.parameters() if weight.grad is not None]
        self._taken = loss_is_finite & nn.utils.get_total_norm(gradients).isfinite()
        if self.scaler.is_enabled():  # it skips steps whose gradient overflows float16, and halves its scale
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
        """average ← average + (1 − train.ema_decay)·(value − average), unless the step was skipped."""
        share = torch.where(self._taken, self._new_share, 0.0)
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share.to(average.dtype))
            else:  # batch norm's counts
                average.copy_(value)

    def _step_if(self, finite: Tensor) -> None:
        if self.optimizer.defaults["fused"]:
            # The protocol of GradScaler: the fused kernels leave all as it is where found_inf is 1.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
        elif finite:  # the host waits here
            self.optimizer.step()

    def check_finite(self, run: RunFolder, schedule: Schedule) -> None:
        """UserError where a step since the start has met a loss or a gradient that is not finite, or where a weight is
        not. Waits for the device.
        """
        step, what = self.diverged.first()
        changed_by = step - 1  # the step that made the weights which diverged: its learning rate is to be lowered
        if not step and not all_finite(self.eval_net.state_dict().values()):
            step = changed_by = self.step
            what = "a weight of the network is not finite"
        if step:
            phase = schedule.phase_of(max(0, changed_by - 1))
            raise UserError(f"step {step}: {what}. {way_back(run, phase, step)}")
        if self.scaler.get_scale() < SMALLEST_SCALE:
            raise UserError(
                f"step {self.step}: the gradients overflow float16 even with the loss scaled by"
                f" {self.scaler.get_scale():g}, so nothing is learnt; the last checkpoint is {run.last}."
                " Set train.amp to bf16 or none"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the config."""
        state = {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.average:
            state["ema"] = self.average.module.state_dict()
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return {**state, "step": self.step, "best": self.best}

    def load_state_dict(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint, whose network this state has already. UserError where the rest does not fit.

        An average that was switched on since starts from the network as it is.
        """
        # The options are the config's, the moments the checkpoint's.
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
        self.step, self.best = checkpoint["step"], checkpoint.get("best", math.inf)  # none in older checkpoints
        if self.average:
            self.average.n_averaged.fill_(self.step)  # at 0 the first update would copy the network


class Diverged:
    """The first step whose loss or gradient was not finite, kept on the device until somebody asks."""

    names = ("total", *TERMS)

    def __init__(self, device: torch.device) -> None:
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # 0: none so far
        self.losses = torch.zeros(len(self.names), device=device)  # of that step, in the order of `names`
        self.no_loss = torch.zeros((), device=device)

    def note(self, step: int, finite: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Note whether a step was finite. losses: `total`, and the terms that have a weight in the step's phase."""
        first = ~finite & (self.step == 0)
        stacked = torch.stack([losses.get(name, self.no_loss) for name in self.names])
        self.losses = torch.where(first, stacked, self.losses)
        self.step = torch.where(first, step, self.step)

    def first(self) -> tuple[int, str]:
        """The step, 0 where there was none, and what was not finite. Waits for the device."""
        step = int(self.step)
        if not step:
            return 0, ""
        values = zip(self.names, self.losses.tolist(), strict=True)
        broken = [f"{name} = {value}" for name, value in values if not math.isfinite(value)]
        return step, f"the loss is not finite ({', '.join(broken)})" if broken else "the gradient is not finite"


def memory_format(config: Config) -> torch.memory_format:
    return torch.channels_last if config.train.channels_last else torch.contiguous_format


def make_optimizer(config: Config, net: PConvUNet) -> torch.optim.Optimizer:
    """The optimizer that the config names. The loop sets its learning rate at every step."""
    optim = config.optim
    options: dict[str, Any] = {"weight_decay": optim.weight_decay, "fused": config.train.fused}
    lr = config.phases[0].lr
    if optim.name == "SGD":
        sgd = torch.optim.SGD(net.parameters(), lr, momentum=optim.momentum, **options)
        if optim.momentum:  # torch's fused form would leave it uninitialised where the first step is skipped
            for weight in net.parameters():
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)
        return sgd
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[optim.name]
    return kind(net.parameters(), lr, betas=(optim.momentum, 0.999), **options)


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's moments the memory format of their weights.

    The fused forms read both in the order of memory, and train.channels_last may have changed since.
    """
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                moments[name] = torch.empty_like(weight, requires_grad=False).copy_(value)


def make_network(config: Config, checkpoint: dict[str, Any] | None, source: str | Path | None) -> PConvUNet:
    """A network of the config: with the weights of a run's checkpoint, of the file `source`, or new ones.

    Another project's file computes as it did there. UserError where its architecture is not the config's.
    """
    wanted = config.model.model_dump()
    if checkpoint is None and source is None:
        return PConvUNet(**wanted)
    net = network_of(checkpoint["model"], source) if checkpoint else load_model(source)  # type: ignore[arg-type]
    for name, value in wanted.items():
        if getattr(net, name) != value:
            raise UserError(
                f"{source}: its model.{name} is {getattr(net, name)}, the config says {value}; they must be the same"
            )
    return net
