"""Patch sampling: pure functions of the run's seed and the sample's number.

Samples are numbered through the whole run, batch after batch, independently of the process that computes them.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from volseg.config import Triple

# Independent random streams under one seed: the order of the cases in an epoch, the position and augmentation of a
# sample, the position of a smaller patch in it (see `progressive_patches`), and the order of several datasets.
ORDER, SAMPLE, CUT, SHARE = range(4)


class PatchSource(Protocol):
    """A volume that patches are cut out of: a `CachedCase`, or a larger patch."""

    @property
    def shape(self) -> Triple:
        """(D, H, W)."""

    @property
    def annotated(self) -> np.ndarray | None:
        """(N, 3) annotated voxels, which are those not ignored; None if none or all voxels are ignored."""

    def foreground(self, index: int) -> np.ndarray:
        """(N, 3) foreground voxels of label `index`."""


@dataclass(frozen=True)
class PatchSampler:
    """Patch sampling in one process of a run.

    Args:
        oversample_foreground: the least fraction of foreground patches, see `is_foreground`.
        seed: of the run, not negative.
        rank: this process computes the samples rank, rank + world, ... of each batch.
        world: the number of processes that a batch is split over.
    """

    oversample_foreground: float
    seed: int = 0
    rank: int = 0
    world: int = 1

    def sample_numbers(self, step: int, batch_size: int) -> range:
        """The samples of one step that this process computes; a batch has `batch_size` samples over all processes."""
        first = step * batch_size
        return range(first + self.rank, first + batch_size, self.world)

    def rng(self, kind: int, *numbers: int) -> np.random.Generator:
        """The random stream of one kind (`ORDER`, `SAMPLE`, `CUT` or `SHARE`) for one sample or epoch."""
        return np.random.default_rng([self.seed, kind, *numbers])

    def is_foreground(self, number: int, batch_size: int) -> bool:
        """Whether sample `number` is a foreground patch, which holds a voxel of a label chosen for it.

        In each batch these are the last ones, at least a fraction `oversample_foreground` of it, and so at least one of
        two; with batches of one patch, that fraction of the batches.
        """
        if batch_size == 1:
            return math.floor((number + 1) * self.oversample_foreground) > math.floor(
                number * self.oversample_foreground
            )
        return number % batch_size >= batch_size - math.ceil(self.oversample_foreground * batch_size)

    def patch_start(self, rng: np.random.Generator, case: PatchSource, size: Triple, label: int = 0) -> Triple:
        """The first voxel of a patch of `size` (D, H, W) in a case.

        With a `label` the patch is centred on a random voxel of it. Otherwise its position is random; in a case with
        ignored voxels it is centred on a random annotated voxel, as in nnU-Net. The patch is then shifted as little as
        necessary to lie inside the case or, along an axis where the case is smaller than the patch, to contain the
        case.

        Args:
            rng: of the sample.
            case: to cut the patch out of.
            size: (D, H, W).
            label: of the case, counted from 1; 0: none.
        """
        whole, shape = np.array(case.shape), np.array(size)
        low, high = np.minimum(0, whole - shape), np.maximum(0, whole - shape)
        voxels = case.foreground(label) if label else case.annotated
        if voxels is None:
            start = rng.integers(low, high + 1)
        else:
            start = np.clip(voxels[rng.integers(len(voxels))] - shape // 2, low, high)
        return (int(start[0]), int(start[1]), int(start[2]))
