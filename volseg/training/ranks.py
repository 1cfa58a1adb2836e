"""Processes that share a training run, as torchrun starts them: which one this is, and what they tell each other.

A process on its own makes the same calls, and they do nothing: no process group, no copies, the same bits.
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
from volseg.training.signals import ignore_signals

Made = TypeVar("Made")

# A process that dies closes its connections, which is noticed at once. The times are for one that hangs: within a
# step, and while one process works and the others wait (preprocessing, validation).
STEP_TIME = timedelta(minutes=10)
WAITING_TIME = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that share a run; every method is called by all of them, in one order.

    Args:
        rank: of this process, 0 to world - 1. Rank 0 is the one that writes.
        world: how many there are.
        waiting: the group in which they wait for each other and send objects; None for a process on its own.
    """

    rank: int = 0
    world: int = 1
    waiting: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, whole: Sequence[Made]) -> Sequence[Made]:
        """This rank's part of `whole`: every `world`-th from `rank` on."""
        return whole[self.rank :: self.world]

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module`, or one that calls it and averages the gradients over the ranks during the backward pass.

        Backward has to start from all that the module returns, and the parameters that get no gradient have to be the
        same ones every time.
        """
        return DistributedDataParallel(module, static_graph=True) if self.world > 1 else module

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the ranks, the same bits on each.

        For a loss that all ranks compute alike from such sums. Its gradient is then right for each rank's share once
        `parallel` has averaged: the mean over the ranks of `world` times their part is the sum of the parts.
        """
        total: Tensor = SumOverRanks.apply(value, self.world) if self.world > 1 else value
        return total

    def broadcast(self, value: float) -> float:
        """What rank 0 says."""
        if self.world == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(said, src=0, group=self.waiting)
        return said.item()

    def any(self, value: bool) -> bool:
        """Whether it is so on any rank."""
        if self.world == 1:
            return value
        said = torch.tensor(int(value))
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self.waiting)
        return bool(said)

    def on_first_rank(self, make: Callable[[], Made]) -> Made:
        """What `make` returns on rank 0, where alone it is called; the others wait for it."""
        if self.world == 1:
            return make()
        made = [make() if self.first else None]
        dist.broadcast_object_list(made, src=0, group=self.waiting)
        return made[0]  # type: ignore[return-value]

    def gather(self, part: dict[str, Made]) -> dict[str, Made]:
        """The entries of all ranks together."""
        parts = [part] * self.world
        if self.world > 1:
            dist.all_gather_object(parts, part, group=self.waiting)
        return {name: value for one in parts for name, value in one.items()}

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            dist.barrier(group=self.waiting)


ALONE = Ranks()


class SumOverRanks(torch.autograd.Function):
    """A sum over the ranks, of which every rank uses the result for the same scalar."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world: int) -> Tensor:
        """Add up `value`, of one shape on all of the `world` ranks."""
        ctx.world = world
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The sum over the ranks of the gradients that arrive, which are equal: so nothing has to be sent."""
        return gradient * ctx.world, None


def local_device(name: str) -> torch.device:
    """The device called `name` as `choose_device` finds it; of several processes each one takes a GPU of its own.

    Raises:
        UsageError: no such device here, or one device is named for several processes.
    """
    device = choose_device(name)
    if _world() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UsageError(
            f"Device {str(device)!r} is one device, found {_world()} processes. Use --device cuda or --device cpu."
        )
    return choose_device(f"cuda:{_variable('LOCAL_RANK')}")


def ranks_here() -> int:
    """How many of the run's processes are on this machine, as torchrun says; all of them where it does not."""
    return min(int(os.environ.get("LOCAL_WORLD_SIZE", _world())), _world())


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started together with this one; a process on its own is `ALONE`.

    Args:
        device: where this process computes: GPUs talk over NCCL, all else over gloo.

    Raises:
        UsageError: the environment does not say where the other processes are.
        TrainingError: another process cannot be reached, or was lost.
        OtherProcessError: another process says why the run ends.
    """
    if _world() == 1:
        yield ALONE
        return
    ranks, store = _connect(device)
    try:
        yield ranks
    except BaseException as error:
        # Where one process ends badly, torchrun sends SIGTERM to the others; that is not what there is to say.
        with ignore_signals():
            said = _last_word(error, store)
        # The groups are not taken down: that would wait for those who still compute, and so would the interpreter.
        atexit.register(_leave_at_once, _exit_code(said))
        if said is error:
            raise
        raise said from error
    dist.destroy_process_group()


def _connect(device: torch.device) -> tuple[Ranks, Store]:
    """Start the process groups; this process's place, and what all processes can look up."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        _variable(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, world = next(rendezvous("env://", timeout=STEP_TIME))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=STEP_TIME)
        return Ranks(rank, world, dist.new_group(backend="gloo", timeout=WAITING_TIME)), store
    except dist.DistError as error:
        raise TrainingError(f"The other processes of this run cannot be reached: {error}. Start all anew.") from error


def _last_word(error: BaseException, store: Store) -> BaseException:
    """What this process ends with: the first one in trouble says what it is, and the others follow from it."""
    try:
        first = store.add("volseg/speaks", 1) == 1
    except RuntimeError:
        # Whoever kept the store is gone.
        first = True
    if not first:
        return OtherProcessError(_exit_code(error))
    if not _comes_from_lost_rank(error):
        return error
    return TrainingError(
        "A process of this run was lost, perhaps killed for lack of memory. Go on with the same command and --resume."
    )


def _leave_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _comes_from_lost_rank(error: BaseException | None) -> bool:
    """Whether it began with what torch raises where another process does not answer."""
    while error:
        # Gloo has no type of its own for this.
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _exit_code(error: BaseException) -> int:
    """What the command line would end with after `error`."""
    if isinstance(error, VolsegError):
        return error.exit_code
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _variable(name: str) -> str:
    """A variable of the environment that torchrun sets."""
    if name not in os.environ:
        raise UsageError(
            f"WORLD_SIZE is {_world()}, but {name} is not set. Start several processes with "
            "torchrun --nproc-per-node N -m volseg train ..."
        )
    return os.environ[name]
