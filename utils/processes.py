"""Several processes that compute one result together: those that torchrun started. One alone is the usual case."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from utils.errors import UserError, report

if TYPE_CHECKING:  # torch takes seconds to import: one process alone needs none of it to answer a wrong start
    import torch
    from torch import Tensor, nn

T = TypeVar("T")


@contextlib.contextmanager
def processes(longest_wait: timedelta) -> Iterator[tuple[int, int]]:
    """The number of this process and how many there are, which can talk to each other meanwhile.

    longest_wait: after which a process no longer waits for one that hangs. One that dies is noticed at once.
    An error that the user can mend is told by the process that meets it first: the others end with code 1, silently.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    import torch
    import torch.distributed as dist

    store, number, count = next(dist.rendezvous("env://", timeout=longest_wait))
    store = _cleared(store, number, count)
    # Tensors talk where they lie; gloo is for numbers and objects as well.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=longest_wait)
    try:
        yield number, count
        wait_for_all()
    except (UserError, OSError, RuntimeError, KeyboardInterrupt) as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            reason = " ".join(str(error).split())[:200]
            error = UserError(f"another process of this run has ended, or can't be reached: {reason}")
        elif isinstance(error, RuntimeError):
            raise
        raise SystemExit(_report_once(error, store)) from None
    finally:
        # In torch 2.6 this hangs one time in ten; 2.14 aborts at the end of the process without it.
        if not torch.__version__.startswith("2.6."):
            dist.destroy_process_group()


def _cleared(store: torch.distributed.Store, number: int, count: int) -> torch.distributed.Store:
    """A part of the store where nothing lies yet, the same part for all processes.

    When torchrun starts processes again its store still holds the addresses of those before. So the first process
    opens a part with a new name; each other asks there under a new name of its own until it is answered.
    """
    import torch.distributed as dist

    own = uuid.uuid4().hex
    if number == 0:
        store.set("opened", own)
        for other in range(1, count):
            store.set(store.get(f"{own}/{other}").decode(), "answered")
        return dist.PrefixStore(own, store)
    while True:
        opened = store.get("opened").decode()  # maybe what is no longer answered
        store.set(f"{opened}/{number}", own)
        with contextlib.suppress(dist.DistStoreError):
            store.wait([own], timedelta(seconds=1))
            return dist.PrefixStore(opened, store)


def _report_once(error: UserError | OSError | KeyboardInterrupt, store: torch.distributed.Store) -> int:
    """Tell of an error if no other process has told of one before. Returns the exit code.

    The others wait for it: as soon as one process ends with an error torchrun ends all.
    """
    with contextlib.suppress(RuntimeError):  # torchrun, which keeps the store, is gone; or so is who was to tell
        if store.add("failed", 1) > 1:
            store.wait(["told"], timedelta(seconds=10))
            return 1
    code = report(error)
    with contextlib.suppress(RuntimeError):
        store.set("told", "")
    return code


def rank_and_world_size() -> tuple[int, int]:
    """The number of this process and how many there are."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)


def restarted() -> bool:
    """Whether torchrun --max-restarts has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def pick_device(name: str) -> torch.device:
    """auto (CUDA where there is one, else CPU), cpu, cuda or cuda:N. UserError where there is no such device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"no device {name}: torch finds {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device


def device_of_rank(name: str) -> torch.device:
    """As `pick_device` says; of several processes on one machine each has a CUDA device of its own."""
    import torch

    device = pick_device(name)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


def data_parallel(net: nn.Module) -> nn.Module:
    """The network, or where there are several processes, one whose gradients are the mean over them.

    What no longer needs gradients must be known before.
    """
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(net) if _several() else net


def no_sync(net: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Where wanted, what `data_parallel` returned leaves gradients as each process has them; they add up meanwhile."""
    return net.no_sync() if wanted and _several() else contextlib.nullcontext()  # type: ignore[operator]


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean of the processes' tensors, on all of them."""
    import torch.distributed as dist

    if not _several():
        return tensor
    tensor = tensor / dist.get_world_size()
    dist.all_reduce(tensor)
    return tensor


def all_reduce_max(value: int) -> int:
    """The largest of the processes' values, on all of them."""
    import torch
    import torch.distributed as dist

    if not _several():
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def wait_for_all() -> None:
    """Return when every process has come here."""
    all_reduce_max(0)


def from_rank_0(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, on all; there alone it is called."""
    import torch.distributed as dist

    if not _several():
        return make()
    values = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]  # type: ignore[return-value]


def gather_on_rank_0(items: list[T]) -> list[T]:
    """What all processes hold, on the first one; nothing on the others."""
    import torch.distributed as dist

    if not _several():
        return items
    parts: list[list[T]] | None = [[]] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(items, parts)
    return [item for part in parts or [] for item in part]


def _several() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()
