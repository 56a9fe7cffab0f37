"""The progress bar of a run, and how many images a second it trains on."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

from utils.processes import rank_and_world_size


class Meter:
    """While entered, a bar of the steps on stderr, of rank 0 alone."""

    def __init__(self, step: int, total_steps: int) -> None:
        hidden = rank_and_world_size()[0] > 0
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
