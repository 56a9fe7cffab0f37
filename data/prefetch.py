"""Copy the next batch to the device while the current one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Batch = TypeVar("Batch", bound=tuple[Tensor, ...])


def copied_ahead(batches: Iterable[T], to_device: Callable[[T], Batch], device: torch.device) -> Iterator[Batch]:
    """Yield to_device(batch) for each batch, in order. On CUDA the next one is copied on a separate stream.

    Copies overlap with computation if the batches are in pinned memory. On a CPU nothing is fetched ahead.
    """
    if device.type != "cuda":
        yield from map(to_device, batches)
        return
    stream = torch.cuda.Stream(device)

    def start(batch: T) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return to_device(batch), stream.record_event()

    for tensors, copied in one_ahead(map(start, batches)):
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in tensors:
            tensor.record_stream(current)  # the next copy must not reuse its memory meanwhile
        yield tensors


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after fetching the next one. An error is raised after the items before it."""
    iterator = iter(items)
    held: list[T] = []
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            yield from held
            return
        except Exception:
            yield from held
            raise
        yield from held
        held = [item]
