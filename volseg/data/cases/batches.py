"""Training batches as a pure function of (seed, step): the same for any number of workers, and after any resume.

Images are (B, C, D, H, W), labels (B, D, H, W), or (B, K, D, H, W) for regions. Augmentation comes in as a callable.
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from volseg.config import Plan
from volseg.data.cases.cache import CachedCase
from volseg.data.cases.patch_sampling import ORDER, SAMPLE, PatchSampler
from volseg.data.grid.preprocess import training_target
from volseg.errors import TrainingError, UsageError


class Augmentation(Protocol):
    """What turns a case into a patch, as `monai.transforms.Compose` does."""

    def set_random_state(self, seed: int) -> Any:
        """Make what follows repeatable."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A patch from {"image": (C, D, H, W), "label": (1, D, H, W), "centre": (D, H, W) voxel}."""


@dataclass(frozen=True)
class AugmentationWarmup:
    """How augmentation sets in: few patches are changed at first.

    Args:
        crop: makes a patch of a case as it is.
        passes: over the cases until every patch is a changed one; until then their share rises linearly from 0.
    """

    crop: Augmentation
    epochs: float


@dataclass(frozen=True)
class BatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Batches by step: `dataset[step]` is {"image": (B, C, D, H, W) float32, "label": as of `training_target`}.

    In every run of `len(cases)` samples each case comes once, in an order of its own.

    Args:
        cases: to draw from.
        plan: batch size, over all ranks together, and patch size.
        draws: which samples are this process's, and where their patches lie.
        augment: makes a patch, changed at random.
        onset: how that sets in; None: every patch is a changed one from the start.
    """

    cases: Sequence[CachedCase]
    plan: Plan
    draws: PatchSampler
    augment: Augmentation
    warmup: AugmentationWarmup | None = None

    def __post_init__(self) -> None:
        check_shared(self.plan, self.draws.world)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """This process's part of the batch of one step."""
        samples = [self.sample(number) for number in self.draws.numbers(step, self.plan.batch_size)]
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "label": training_target(torch.stack([sample["label"][0] for sample in samples]), self.plan),
        }

    def sample(self, number: int) -> dict[str, Any]:
        """One patch: {"image": (C, D, H, W) float32, "label": (1, D, H, W) class indices}."""
        epoch, place = divmod(number, len(self.cases))
        order = self.draws.stream(ORDER, epoch).permutation(len(self.cases))
        case = self.cases[order[place]]
        rng = self.draws.stream(SAMPLE, number)
        start = self.draws.start(rng, case, self.plan.patch_size)
        pipeline = self.augment
        if self.warmup and rng.random() * self.warmup.epochs * len(self.cases) > number:
            pipeline = self.warmup.crop
        pipeline.set_random_state(seed=int(rng.integers(2**32)))
        centre = tuple(first + edge // 2 for first, edge in zip(start, self.plan.patch_size, strict=True))
        return pipeline({"image": case.image, "label": case.label, "centre": centre})


def check_shared(plan: Plan, world: int) -> None:
    """Refuse to share the batches of `plan` among `world` processes where that cannot be done.

    Raises:
        UsageError: fewer samples than processes, or a norm over samples that lie on several processes.
    """
    if world > plan.batch_size:
        raise UsageError(
            f"A batch of {plan.batch_size} cannot be shared by {world} processes. "
            f"Start at most {plan.batch_size}, or set plan.batch_size higher."
        )
    if world > 1 and plan.network.norm == "batch":
        raise UsageError(
            f"Batch norm needs the whole batch in one process, found {world} processes. "
            "Start one process, or set plan.norm to instance."
        )


def batch_loader(dataset: BatchDataset, start_step: int, workers: int) -> DataLoader[dict[str, torch.Tensor]]:
    """Batches from `start_step` on, without end; `workers` processes prepare them, each on one thread.

    The workers end with the iterator. They leave Ctrl-C and SIGTERM to the process that reads the batches.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start_step, sys.maxsize),
        num_workers=workers,
        worker_init_fn=_leave_signals_to_parent,
    )


@contextmanager
def lost_workers() -> Iterator[None]:
    """Say in one sentence that a process of `batch_loader` died; torch says so wherever the main thread then is.

    Raises:
        TrainingError: one did, for example killed by the system for lack of memory.
    """
    try:
        yield
    except RuntimeError as error:
        # torch has no type of its own for a lost worker; an error inside a worker begins otherwise.
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise TrainingError(
            f"A process that prepares batches was lost: {str(error).splitlines()[0]} Memory or shared memory may be "
            "short; go on with --resume, or begin with --set training.workers=0."
        ) from error


def _leave_signals_to_parent(worker: int) -> None:  # noqa: ARG001 - torch's interface
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
