"""Training batches as a pure function of (seed, step): the same for any number of workers, and after any resume.

Images are (B, C, D, H, W), labels (B, D, H, W), or (B, K, D, H, W) for regions. Augmentation comes in as a callable.
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from volseg.config import Plan, Triple
from volseg.data.cache import CachedCase
from volseg.data.preprocess import training_target
from volseg.errors import TrainingError, UsageError

# Two kinds of random streams under one seed: the order of the cases in an epoch, and what happens to a sample.
ORDER, SAMPLE = 0, 1


class Augmentation(Protocol):
    """What turns a case into a patch, as `monai.transforms.Compose` does."""

    def set_random_state(self, seed: int) -> Any:
        """Make what follows repeatable."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A patch from {"image": (C, D, H, W), "label": (1, D, H, W), "centre": (D, H, W) voxel}."""


@dataclass(frozen=True)
class BatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Batches by step: `dataset[step]` is {"image": (B, C, D, H, W) float32, "label": as of `training_target`}.

    Samples are numbered over the whole run; in every run of `len(cases)` samples each case comes once, in an order
    of its own.

    Args:
        cases: to draw from.
        plan: batch size, over all ranks together, and patch size.
        foreground: share of patches centred on a labelled voxel.
        augment: makes a patch, changed at random.
        seed: of the run, not negative.
        rank: this process takes the samples rank, rank + world, ... of each batch.
        world: the number of processes that share a batch.
        crop: makes a patch of a case as it is; needed where `passes` is not 0.
        passes: over the cases until every patch is a changed one; until then their share rises linearly from 0.
    """

    cases: Sequence[CachedCase]
    plan: Plan
    foreground: float
    augment: Augmentation
    seed: int = 0
    rank: int = 0
    world: int = 1
    crop: Augmentation | None = None
    passes: float = 0.0

    def __post_init__(self) -> None:
        check_shared(self.plan, self.world)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """This process's part of the batch of one step."""
        first = step * self.plan.batch_size
        samples = [self.sample(first + index) for index in range(self.rank, self.plan.batch_size, self.world)]
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "label": training_target(torch.stack([sample["label"][0] for sample in samples]), self.plan),
        }

    def sample(self, number: int) -> dict[str, Any]:
        """One patch: {"image": (C, D, H, W) float32, "label": (1, D, H, W) class indices}."""
        epoch, place = divmod(number, len(self.cases))
        order = np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self.cases))
        case = self.cases[order[place]]
        rng = np.random.default_rng([self.seed, SAMPLE, number])
        centre = draw_centre(rng, case, self.plan.patch_size, self.foreground)
        as_it_is = rng.random() * self.passes * len(self.cases) > number
        pipeline = self.crop if self.crop and as_it_is else self.augment
        pipeline.set_random_state(seed=int(rng.integers(2**32)))
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


class Labelled(Protocol):
    """What patches are cut out of: a `CachedCase`, or a larger patch."""

    @property
    def shape(self) -> Triple:
        """(D, H, W)."""

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur, counted from 1."""

    @property
    def known(self) -> np.ndarray | None:
        """(N, 3) voxels that are not ignored; None where none or all are."""

    def foreground(self, index: int) -> np.ndarray:
        """(N, 3) voxels of label `index`."""


def draw_centre(rng: np.random.Generator, case: Labelled, size: Triple, foreground: float) -> Triple:
    """Where a patch lies: the case voxel at its index size // 2.

    With probability `foreground` the patch is centred on a random voxel of a random label of the case, else it lies
    anywhere, or, where a part of the case is ignored, is centred on a random voxel of the rest, as nnU-Net does. In
    any case it is moved as little as needed to lie inside the case, or, along an axis where the case is the smaller
    one, around it.
    """
    whole, shape = np.array(case.shape), np.array(size)
    low, high = np.minimum(0, whole - shape), np.maximum(0, whole - shape)
    classes = case.classes if rng.random() < foreground else ()
    voxels = case.foreground(int(rng.choice(classes))) if classes else case.known
    if voxels is None:
        start = rng.integers(low, high + 1)
    else:
        start = np.clip(voxels[rng.integers(len(voxels))] - shape // 2, low, high)
    centre = start + shape // 2
    return (int(centre[0]), int(centre[1]), int(centre[2]))


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
