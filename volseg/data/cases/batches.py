"""Training batches as a pure function of (seed, step): the same for any number of workers, and after any resume.

Images are (B, C, D, H, W), labels (B, D, H, W), or (B, K, D, H, W) for regions. Augmentation comes in as a callable.
"""

import math
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from volseg.config import Plan
from volseg.data.cases.cache import CachedCase
from volseg.data.cases.patch_sampling import ORDER, SAMPLE, PatchSampler
from volseg.data.cases.sources.shares import DatasetTurns
from volseg.data.cases.workers import READY, end_workers, possible_workers, serve
from volseg.data.grid.preprocess import classes_of, training_target
from volseg.errors import TrainingError, UsageError, VolsegError


class Augmentation(Protocol):
    """A transform that cuts a patch out of a case and augments it, such as a `monai.transforms.Compose`."""

    def set_random_state(self, seed: int) -> Any:
        """Seed the random numbers of the next call."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A patch from {"image": (C, D, H, W), "label": (1, D, H, W), "centre": (D, H, W) voxel}."""


@dataclass(frozen=True)
class AugmentationWarmup:
    """Augmentation warm-up: the fraction of augmented patches rises from 0 to 1.

    Args:
        crop: cuts out a patch without augmenting it: the voxels of the case, which may be flipped.
        epochs: the length of the warm-up. The fraction rises linearly; afterwards every patch is augmented.
    """

    crop: Augmentation
    epochs: float


@dataclass(frozen=True)
class BatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Batches by step: `dataset[step]` is {"image": (B, C, D, H, W) float32, "label": see `training_target`,
    "foreground": (B,) int64}, the label that each foreground patch holds, counted from 1, and 0 for the others. Where
    cases have partial labels, also "annotated": (B, labels) bool, the labels that somebody looked for in each patch.

    An epoch has `len(cases)` samples: every case once, in an order that differs between epochs. The label of a
    foreground patch is any of those in the training cases with the same probability, so that rare labels are seen as
    often as frequent ones; if the case whose turn it is lacks the label, a random case that has it takes its place.
    With shares of several datasets, all of this holds within each of them, see `DatasetTurns`.

    Args:
        cases: to sample patches from.
        plan: patch size, and batch size over all ranks.
        sampler: decides which samples this process computes, and where their patches lie.
        augment: cuts out a patch and augments it at random.
        shares: of the samples by dataset; None: as many as cases.
        warmup: of the augmentation. Its `crop` also cuts out a foreground patch whose label augmentation would lose.
    """

    cases: Sequence[CachedCase]
    plan: Plan
    sampler: PatchSampler
    augment: Augmentation
    warmup: AugmentationWarmup
    shares: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_shared(self.plan, self.sampler.world)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """This process's samples of the batch of one step."""
        samples = [self.sample(number) for number in self.sampler.sample_numbers(step, self.plan.batch_size)]
        partial = {}
        if self._is_partial:
            partial["annotated"] = torch.tensor([sample["annotated"] for sample in samples])
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "label": training_target(torch.stack([sample["label"][0] for sample in samples]), self.plan),
            "foreground": torch.tensor([sample["foreground"] for sample in samples]),
            **partial,
        }

    @property
    def batch_bytes(self) -> int:
        """The size of this process's part of a batch, at most: float32 images, labels of at most two bytes."""
        samples = len(self.sampler.sample_numbers(0, self.plan.batch_size))
        labels = len(self.plan.labels) if self.plan.regions else 1
        return samples * math.prod(self.plan.patch_size) * (4 * len(self.plan.channels) + 2 * labels)

    def sample(self, number: int) -> dict[str, Any]:
        """One patch: {"image": (C, D, H, W) float32, "label": (1, D, H, W) class indices, "foreground": label or 0,
        "annotated": for each label, whether somebody looked for it}."""
        case, label = self._turn(number), 0
        rng = self.sampler.rng(SAMPLE, number)
        if self.sampler.is_foreground(number, self.plan.batch_size) and self._by_label.get(self._pool(case)):
            case, label = self._with_label(rng, case)
        start = self.sampler.patch_start(rng, case, self.plan.patch_size, label)
        crop = rng.random() * self.warmup.epochs * len(self.cases) > number
        centre = tuple(first + edge // 2 for first, edge in zip(start, self.plan.patch_size, strict=True))
        seed = int(rng.integers(2**32))

        def cut(pipeline: Augmentation) -> dict[str, Any]:
            pipeline.set_random_state(seed=seed)
            patch = pipeline({"image": case.image, "label": case.label, "centre": centre})
            return {**patch, "foreground": label, "annotated": case.looked_for}

        found = cut(self.warmup.crop if crop else self.augment)
        # A rotation or scaling may have moved the label out of the patch.
        return cut(self.warmup.crop) if label and not crop and not self._holds(found["label"], label) else found

    @cached_property
    def _is_partial(self) -> bool:
        """Whether a case has labels that nobody looked for; the same on all ranks."""
        return not all(all(case.looked_for) for case in self.cases)

    @cached_property
    def _by_label(self) -> dict[str, dict[int, list[CachedCase]]]:
        """The cases that have each label that occurs, in each pool."""
        found: dict[str, dict[int, list[CachedCase]]] = {}
        for case in self.cases:
            for label in case.classes:
                found.setdefault(self._pool(case), {}).setdefault(label, []).append(case)
        return {pool: dict(sorted(cases.items())) for pool, cases in found.items()}

    def _pool(self, case: CachedCase) -> str:
        """The name of the cases of which one may take the place of another: those of a dataset that has a share."""
        return case.case.source if self.shares else ""

    @cached_property
    def _turns(self) -> tuple[DatasetTurns, dict[str, list[CachedCase]]] | None:
        """With shares, whose turn it is, and the cases of each dataset."""
        if not self.shares:
            return None
        pools = {name: [case for case in self.cases if case.case.source == name] for name in self.shares}
        counts = {name: len(cases) for name, cases in pools.items()}
        return DatasetTurns(self.shares, counts, self.sampler), pools

    def _turn(self, number: int) -> CachedCase:
        """The case whose turn it is in sample `number`."""
        if self._turns:
            turns, pools = self._turns
            name, index = turns.turn(number)
            return pools[name][index]
        epoch, position = divmod(number, len(self.cases))
        order = self.sampler.rng(ORDER, epoch).permutation(len(self.cases))
        return self.cases[int(order[position])]

    def _with_label(self, rng: np.random.Generator, case: CachedCase) -> tuple[CachedCase, int]:
        """A random label, and `case` or else a random case that has it."""
        by_label = self._by_label[self._pool(case)]
        label = int(rng.choice(list(by_label)))
        if label in case.classes:
            return case, label
        return by_label[label][rng.integers(len(by_label[label]))], label

    def _holds(self, patch: torch.Tensor, label: int) -> bool:
        """Whether a patch of class indices has a voxel of a label."""
        values = classes_of(np.array(self.plan.labels[label - 1].stored_values), self.plan)
        return bool(torch.isin(patch, torch.from_numpy(values.astype(np.int64)).to(patch.dtype)).any())


def check_shared(plan: Plan, world: int) -> None:
    """Check that the batches of `plan` can be split over `world` processes.

    Raises:
        UsageError: fewer samples than processes, or batch norm over samples of several processes.
    """
    if world > plan.batch_size:
        raise UsageError(
            f"A batch of {plan.batch_size} cannot be split over {world} processes. "
            f"Start at most {plan.batch_size}, or increase plan.batch_size."
        )
    if world > 1 and plan.network.norm == "batch":
        raise UsageError(
            f"Batch norm needs the whole batch in one process, found {world} processes. "
            "Start one process, or set plan.norm to instance."
        )


class BatchLoader:
    """An endless iterator of batches, which `workers` processes prepare, each on one thread.

    A context: the workers end with it, whatever ends it, or with this process. They ignore Ctrl-C and SIGTERM, which
    the main process handles.

    Args:
        dataset: of the batches.
        start_step: the first batch.
        workers: the number of processes; 0: this process prepares the batches.
        pinned: copy batches to memory that a GPU can read while it computes, in a thread.
    """

    def __init__(self, dataset: BatchDataset, start_step: int, workers: int, pinned: bool = False) -> None:
        self._told, self._end = multiprocessing.Pipe(duplex=False)
        self._loader = DataLoader(
            _Reported(dataset),
            batch_size=None,
            sampler=range(start_step, sys.maxsize),
            num_workers=(possible := possible_workers(workers, dataset, dataset.batch_bytes)),
            prefetch_factor=READY if possible else None,
            worker_init_fn=partial(serve, self._told),
            pin_memory=pinned,
        )
        self._batches: Iterator[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_workers(self._end, getattr(self._batches, "_workers", ()))
        self._batches = None
        self._told.close()
        self._end.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        """The next batch.

        Raises:
            VolsegError: what a worker raised.
        """
        if self._batches is None:
            self._batches = iter(self._loader)
        batch = next(self._batches)
        if isinstance(batch, VolsegError):
            raise batch
        return dict(batch)


@dataclass(frozen=True)
class _Reported(Dataset[Any]):
    """The batches of a dataset, or the error of volseg that one ends in: PyTorch would make another one of it."""

    dataset: BatchDataset

    def __getitem__(self, step: int) -> Any:
        try:
            return self.dataset[step]
        except Exception as error:
            # MONAI raises another error from the one of a step.
            cause: BaseException | None = error
            while cause and not isinstance(cause, VolsegError):
                cause = cause.__cause__
            if cause is None:
                raise
            return cause


@contextmanager
def lost_workers() -> Iterator[None]:
    """Report a dead worker of `BatchLoader` in one sentence; PyTorch raises anywhere in the main thread.

    Raises:
        TrainingError: a worker died, for example because the system killed it for lack of memory.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # PyTorch has no exception type for a dead worker; an error raised inside a worker has another message. Where a
        # batch is being taken from shared memory at that moment, the connection breaks instead.
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"A data loader worker died: {reason.rstrip('.')}. Memory or shared memory may be short; "
            "resume with --resume, or start with --set training.workers=0."
        ) from error
