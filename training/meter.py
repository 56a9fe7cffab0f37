"""The progress bar of a run, its throughput in images per second, and its remaining time."""

from __future__ import annotations

import time
from types import TracebackType

import torch
from tqdm import tqdm

from utils.processes import rank_and_world_size

# Steps since the start: the first WARM_UP are slower and not timed; after FORECAST_AT the run prints its forecast.
WARM_UP, FORECAST_AT = 5, 20
_DAY = 24 * 3600  # seconds


def forecast(seconds: float, steps: int, device: str) -> str:
    """Return a text: the time of `steps` steps of `seconds` each, with advice if a CPU needs more than a day."""
    left = seconds * steps
    text = f"{seconds:.2g} s per step: the remaining {steps} steps take about {_duration(left)}, without evaluations"
    if device == "cpu" and left > _DAY:
        text += "; configs/photos.yml suits a CPU and a few thousand photographs, and fewer `steps` take less time"
    return text


def _duration(seconds: float) -> str:
    for unit, length in (("years", 365 * _DAY), ("days", _DAY), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


class Meter:
    """Context manager that shows a progress bar of the steps on stderr, on rank 0 only."""

    def __init__(self, step: int, total_steps: int, device: torch.device) -> None:
        hidden = rank_and_world_size()[0] > 0
        self._device, self._left, self._done = device, total_steps - step, 0
        self._warm = 0.0  # time at which the warm-up ended
        self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=hidden)
        self._since, self._images, self._rate = time.perf_counter(), 0, 0.0

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.close()

    def update(self, batch_size: int) -> None:
        """Count a step of `batch_size` images."""
        self._images += batch_size
        self._bar.update()
        self._done += 1
        if self._done in (WARM_UP, FORECAST_AT):
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # CUDA steps run asynchronously
            if self._done == WARM_UP:
                self._warm = time.perf_counter()
            elif not self._bar.disable:
                seconds = (time.perf_counter() - self._warm) / (FORECAST_AT - WARM_UP)
                tqdm.write(forecast(seconds, self._left - self._done, self._device.type))

    def rate(self) -> float:
        """Return the images per second since the last call."""
        now = time.perf_counter()
        self._rate = self._images / (now - self._since)
        self._since, self._images = now, 0
        return self._rate

    def show(self, record: dict[str, float]) -> None:
        """Show the newest record beside the bar."""
        text = f"loss {record['total']:.3f}, lr {record['lr']:.2g}, {record['images_per_second']:.1f} images/s"
        broken = f", {record['bad_files']:.0f} broken pictures" if record["bad_files"] else ""
        self._bar.set_postfix_str(text + broken, refresh=False)
