"""The progress bar of a run, how many images a second it trains on, and how long it will take."""

from __future__ import annotations

import time
from types import TracebackType

import torch
from tqdm import tqdm

from utils.processes import rank_and_world_size

# Of the steps since the start: the first are slower, and behind FORECAST_AT the run says how long it will take.
WARM_UP, FORECAST_AT = 5, 20
_DAY = 24 * 3600  # seconds


def forecast(seconds: float, steps: int, device: str) -> str:
    """How long so many more steps of so many seconds take, in words; on a CPU what to do where that is days."""
    left = seconds * steps
    text = f"{seconds:.2g} s a step: the {steps} steps to come take about {_duration(left)}, evaluations not counted"
    if device == "cpu" and left > _DAY:
        text += "; for a CPU and some thousand photographs there is configs/photos.yml, and fewer `steps` take less"
    return text


def _duration(seconds: float) -> str:
    for unit, length in (("years", 365 * _DAY), ("days", _DAY), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


class Meter:
    """While entered, a bar of the steps on stderr, of rank 0 alone."""

    def __init__(self, step: int, total_steps: int, device: torch.device) -> None:
        hidden = rank_and_world_size()[0] > 0
        self._device, self._left, self._done = device, total_steps - step, 0
        self._warm = 0.0  # when the first steps were done
        self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=hidden)
        self._since, self._images, self._rate = time.perf_counter(), 0, 0.0

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.close()

    def update(self, batch_size: int) -> None:
        """Count a step."""
        self._images += batch_size
        self._bar.update()
        self._done += 1
        if self._done in (WARM_UP, FORECAST_AT):
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # steps are only queued there
            if self._done == WARM_UP:
                self._warm = time.perf_counter()
            elif not self._bar.disable:
                seconds = (time.perf_counter() - self._warm) / (FORECAST_AT - WARM_UP)
                tqdm.write(forecast(seconds, self._left - self._done, self._device.type))

    def rate(self) -> float:
        """Images per second since the last call."""
        now = time.perf_counter()
        self._rate = self._images / (now - self._since)
        self._since, self._images = now, 0
        return self._rate

    def show(self, record: dict[str, float]) -> None:
        """Put the newest record behind the bar."""
        text = f"loss {record['total']:.3f}, lr {record['lr']:.2g}, {record['images_per_second']:.1f} images/s"
        broken = f", {record['bad_files']:.0f} broken pictures" if record["bad_files"] else ""
        self._bar.set_postfix_str(text + broken, refresh=False)
