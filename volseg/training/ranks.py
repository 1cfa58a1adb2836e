"""Distributed training: the ranks that torchrun starts for one run, and the collective operations between them.

A single process makes the same calls, which then do nothing: no process group, no copies, the same bits.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from volseg.device import choose_device
from volseg.errors import INTERRUPTED, OtherProcessError, TrainingError, UsageError, VolsegError
from volseg.text import shortened, whole_number
from volseg.training.signals import ignore_signals, stop_with_parent

Item = TypeVar("Item")

# A process that dies closes its connections, which the others notice at once. The timeouts are for a process that
# hangs: within a step, and while one process works and the others wait (preprocessing, validation).
TORCHRUN = "Start several processes with torchrun --nproc-per-node N -m volseg train ..."
STEP_TIMEOUT = timedelta(minutes=10)
WAIT_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and the number of ranks; all ranks must call each method, in the same order.

    Args:
        rank: of this process, 0 to world - 1. Only rank 0 writes files.
        world: the number of ranks (the world size).
        cpu_group: the process group for barriers, flags and Python objects; None for a single process.
    """

    rank: int = 0
    world: int = 1
    cpu_group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's shard of `items`: every `world`-th one, starting at `rank`."""
        return items[self.rank :: self.world]

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap `module` so that the backward pass averages gradients over the ranks; a single process gets it as it is.

        The backward pass must start from every output of the module, and the parameters without a gradient must be the
        same in every step.
        """
        return DistributedDataParallel(module, static_graph=True) if self.world > 1 else module

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the ranks, the same bits on each.

        For a loss that every rank computes from such sums. The gradient of each rank is multiplied by `world`, because
        `parallel` then averages over the ranks: the mean of `world` times each part is the sum of the parts.
        """
        total: Tensor = SumOverRanks.apply(value, self.world) if self.world > 1 else value
        return total

    def sum_all(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The sums of several tensors of one type over the ranks, as from `sum`, in a single all-reduce."""
        if self.world == 1:
            return list(values)
        total = self.sum(torch.cat([value.flatten() for value in values]))
        parts = total.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def broadcast(self, value: float) -> float:
        """The value of rank 0."""
        if self.world == 1:
            return value
        sent = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(sent, src=0, group=self.cpu_group)
        return sent.item()

    def any(self, value: bool) -> bool:
        """Whether `value` is true on any rank."""
        if self.world == 1:
            return value
        found = torch.tensor(int(value))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.cpu_group)
        return bool(found)

    def on_first_rank(self, function: Callable[[], Item]) -> Item:
        """Call `function` on rank 0 only; every rank waits for what it returns and returns that."""
        if self.world == 1:
            return function()
        returned = [function() if self.first else None]
        dist.broadcast_object_list(returned, src=0, group=self.cpu_group)
        return returned[0]  # type: ignore[return-value]

    def gather(self, part: dict[str, Item]) -> dict[str, Item]:
        """The entries of all ranks in one dict."""
        parts = [part] * self.world
        if self.world > 1:
            dist.all_gather_object(parts, part, group=self.cpu_group)
        return {name: value for one in parts for name, value in one.items()}

    def wait(self) -> None:
        """Wait until all ranks have made this call."""
        if self.world > 1:
            dist.barrier(group=self.cpu_group)


SINGLE_PROCESS = Ranks()


class SumOverRanks(torch.autograd.Function):
    """A sum over the ranks, from which every rank computes the same scalar."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world: int) -> Tensor:
        """Add up `value`, which has the same shape on all `world` ranks."""
        ctx.world = world
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The sum of the gradients over the ranks. All ranks have the same gradient, so no communication is needed."""
        return gradient * ctx.world, None


def local_device(name: str) -> torch.device:
    """The device called `name` as `choose_device` finds it; with several processes each one gets its own GPU.

    Raises:
        UsageError: the device does not exist, or one device is named for several processes.
    """
    device = choose_device(name)
    if _world_size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UsageError(
            f"Device {str(device)!r} is one device, found {_world_size()} processes. Use --device cuda or --device cpu."
        )
    return choose_device(f"cuda:{_required_variable('LOCAL_RANK')}")


def local_world_size() -> int:
    """The number of ranks on this machine, from torchrun's LOCAL_WORLD_SIZE; without it, all ranks."""
    return min(_count("LOCAL_WORLD_SIZE") or _world_size(), _world_size())


@contextmanager
def join_process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the process group of the ranks that torchrun started; a single process gets `SINGLE_PROCESS`.

    Args:
        device: where this process computes. GPUs communicate with NCCL, all other devices with gloo.

    Raises:
        UsageError: an environment variable that torchrun sets is missing.
        TrainingError: another rank cannot be reached, or was lost.
        OtherProcessError: another rank failed first and reports the error.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun that is killed cannot stop its processes, not even a single one.
        stop_with_parent()
    if _world_size() == 1:
        yield SINGLE_PROCESS
        return
    ranks, store = _connect(device)
    try:
        yield ranks
    except BaseException as error:
        # When one process fails, torchrun sends SIGTERM to the others, which must not hide the error.
        with ignore_signals():
            reported = _error_to_report(error, store)
        # Destroying the groups would wait for ranks that still compute, and so would a normal exit of the interpreter.
        atexit.register(_exit_immediately, _exit_code(reported))
        if reported is error:
            raise
        raise reported from error
    dist.destroy_process_group()


def _connect(device: torch.device) -> tuple[Ranks, Store]:
    """Start the process groups; returns the rank of this process and the key-value store of all ranks."""
    _required_variable("MASTER_ADDR")
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        number = _number(name, _required_variable(name))
        if name != "MASTER_PORT" and number >= _world_size():
            raise UsageError(f"{name} is {number}, but WORLD_SIZE is {_world_size()}. {TORCHRUN}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, world = next(rendezvous("env://", timeout=STEP_TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=STEP_TIMEOUT)
        return Ranks(rank, world, dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)), store
    except dist.DistError as error:
        raise TrainingError(
            f"Could not reach the other processes of this run: {error}. Start all processes again."
        ) from error


def _error_to_report(error: BaseException, store: Store) -> BaseException:
    """The error this process ends with: the first rank that fails reports its own, the others an OtherProcessError."""
    try:
        first = store.add("volseg/failed", 1) == 1
    except RuntimeError:
        # The process that held the store has ended.
        first = True
    if not first:
        return OtherProcessError(_exit_code(error))
    if not _comes_from_lost_rank(error):
        return error
    return TrainingError(
        "A process of this run was lost, perhaps killed for lack of memory. Resume with the same command and --resume."
    )


def _exit_immediately(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _comes_from_lost_rank(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes is what torch raises when another rank does not respond."""
    while error:
        # Gloo raises a plain RuntimeError.
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _exit_code(error: BaseException) -> int:
    """The exit code of the command line after `error`."""
    if isinstance(error, VolsegError):
        return error.exit_code
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _world_size() -> int:
    return _count("WORLD_SIZE") or 1


def _count(name: str) -> int | None:
    """The number of processes that an environment variable of torchrun states; None where it is not set or empty."""
    text = os.environ.get(name, "").strip()
    if text and not _number(name, text):
        raise UsageError(f"{name} is {text}, expected at least 1. {TORCHRUN}")
    return _number(name, text) if text else None


def _number(name: str, text: str) -> int:
    """An environment variable of torchrun as a number."""
    number = whole_number(text.strip())
    if number is None:
        raise UsageError(f"{name} is {shortened(text, 100)!r}, expected a whole number. Unset it. {TORCHRUN}")
    return number


def _required_variable(name: str) -> str:
    """An environment variable that torchrun sets."""
    if not os.environ.get(name, "").strip():
        raise UsageError(f"WORLD_SIZE is {_world_size()}, but {name} is not set. {TORCHRUN}")
    return os.environ[name]
