"""Collectives over the processes that torchrun started. Without torchrun there is one process, rank 0."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError, report

T = TypeVar("T")


@contextlib.contextmanager
def processes(longest_wait: timedelta) -> Iterator[tuple[int, int]]:
    """Context manager that yields rank and world size. The collectives of this module work inside it.

    longest_wait: timeout of a collective, for a process that hangs. A process that dies is noticed at once.
    Only the first process that raises a UserError reports it; the others exit with code 1 and print nothing.
    """
    if _world_size_of_environment() == 1:
        yield 0, 1
        return
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=longest_wait))
        store = _cleared(store, rank, world_size)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the other processes can't be reached: {reason}. {_UNSET}") from None
    # gloo for numbers and objects, which stay on the CPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=longest_wait)
    try:
        yield rank, world_size
        wait_for_all()
    except (UserError, OSError, RuntimeError, KeyboardInterrupt) as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            reason = " ".join(str(error).split())[:200]
            error = UserError(f"another process of this run has ended, or can't be reached: {reason}")
        elif isinstance(error, RuntimeError):
            raise
        raise SystemExit(_report_once(error, store)) from None
    finally:
        # torch 2.6 hangs here one time in ten; without this call, 2.14 aborts when the process ends.
        if not torch.__version__.startswith("2.6."):
            dist.destroy_process_group()


_UNSET = "torchrun sets WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT; to start a single process: unset WORLD_SIZE"


def _world_size_of_environment() -> int:
    """Return the world size in the environment. Raises UserError if the variables are not as torchrun sets them."""
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    world_size, rank, _, port = values = [os.environ.get(name, "") for name in names]
    if world_size in ("", "1"):
        return 1
    if not all(values):
        lacking = ", ".join(name for name, value in zip(names, values, strict=True) if not value)
        raise UserError(f"WORLD_SIZE is {world_size}, but {lacking} missing. {_UNSET}")
    if not all(value.isdecimal() and len(value) < 10 for value in (world_size, rank, port)):
        raise UserError(f"WORLD_SIZE, RANK and MASTER_PORT must be numbers: {world_size}, {rank}, {port}. {_UNSET}")
    if int(rank) >= int(world_size):
        raise UserError(f"RANK is {rank}, but must be below WORLD_SIZE, {world_size}. {_UNSET}")
    return int(world_size)


def _cleared(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Return an empty part of the store, the same one for all ranks.

    After a restart torchrun's store still holds the addresses of the previous processes. So rank 0 opens a part with a
    new random name. Each other rank asks for it under its own random name until it gets an answer.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("opened", own)
        for other in range(1, world_size):
            store.set(store.get(f"{own}/{other}").decode(), "answered")
        return dist.PrefixStore(own, store)
    while True:
        opened = store.get("opened").decode()  # may be stale, and then nobody answers
        store.set(f"{opened}/{rank}", own)
        with contextlib.suppress(dist.DistStoreError):
            store.wait([own], timedelta(seconds=1))
            return dist.PrefixStore(opened, store)


def _report_once(error: UserError | OSError | KeyboardInterrupt, store: dist.Store) -> int:
    """Report an error unless another rank has done so. Returns the exit code.

    The other ranks wait until it is reported, because torchrun ends all processes once one ends with an error.
    """
    with contextlib.suppress(RuntimeError):  # torchrun, which hosts the store, or the reporting rank has ended
        if store.add("failed", 1) > 1:
            store.wait(["reported"], timedelta(seconds=10))
            return 1
    code = report(error)
    with contextlib.suppress(RuntimeError):
        store.set("reported", "")
    return code


def rank_and_world_size() -> tuple[int, int]:
    """Return rank and world size; (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)


def restarted() -> bool:
    """Return whether torchrun --max-restarts has restarted this process after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def pick_device(name: str) -> torch.device:
    """Return the device named auto (CUDA if available, else CPU), cpu, cuda or cuda:N. Raises UserError if missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    number = name.removeprefix("cuda:") if name.startswith("cuda:") else "0"
    if name.startswith("cuda") and number.isdecimal() and int(number) >= torch.cuda.device_count():
        raise UserError(f"no device {name:.20}: torch finds {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"no device {name:.20}: it may be auto, cpu, cuda or cuda:N") from None


def device_of_rank(name: str) -> torch.device:
    """Like `pick_device`, but under torchrun each process takes the CUDA device of its local rank."""
    device = pick_device(name)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


def data_parallel(net: nn.Module) -> nn.Module:
    """Wrap the network in DistributedDataParallel if there are several processes.

    Set requires_grad before: the wrapper ignores later changes.
    """
    return DistributedDataParallel(net) if _several() else net


def no_sync(net: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Return DDP's no_sync context if `wanted`: gradients accumulate on each rank without an all-reduce."""
    return net.no_sync() if wanted and _several() else contextlib.nullcontext()  # type: ignore[operator]


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks, on all ranks."""
    if not _several():
        return tensor
    tensor = tensor / dist.get_world_size()
    dist.all_reduce(tensor)
    return tensor


def all_reduce_max(value: int) -> int:
    """Return the maximum of an int over the ranks, on all ranks."""
    if not _several():
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def wait_for_all() -> None:
    """Barrier over all ranks."""
    all_reduce_max(0)


def from_rank_0(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 only and return its result on all ranks."""
    if not _several():
        return make()
    values = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]  # type: ignore[return-value]


def gather_on_rank_0(items: list[T]) -> list[T]:
    """Return the items of all ranks, in rank order, on rank 0; [] on the others."""
    if not _several():
        return items
    parts: list[list[T]] | None = [[]] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(items, parts)
    return [item for part in parts or [] for item in part]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
