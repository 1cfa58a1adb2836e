"""Which samples a process draws, and where patches lie: functions of the run's seed and a sample's number.

Samples are numbered over the whole run, batch after batch, whichever process takes them.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from volseg.config import Triple

# Kinds of random streams under one seed: the order of the cases in an epoch, what happens to a sample, and what is cut
# out of its patch.
ORDER, SAMPLE, CUT = range(3)


class PatchSource(Protocol):
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


@dataclass(frozen=True)
class PatchSampler:
    """How one process of a run draws.

    Args:
        foreground: share of patches centred on a labelled voxel.
        seed: of the run, not negative.
        rank: this process takes the samples rank, rank + world, ... of each batch.
        world: the number of processes that share a batch.
    """

    foreground: float
    seed: int = 0
    rank: int = 0
    world: int = 1

    def numbers(self, step: int, batch_size: int) -> range:
        """This process's samples of one step; a batch has `batch_size` samples over all processes."""
        first = step * batch_size
        return range(first + self.rank, first + batch_size, self.world)

    def stream(self, kind: int, number: int) -> np.random.Generator:
        """Random numbers of one kind for one sample or epoch."""
        return np.random.default_rng([self.seed, kind, number])

    def start(self, rng: np.random.Generator, case: PatchSource, size: Triple) -> Triple:
        """The voxel of a case at which a patch of `size` (D, H, W) begins.

        With probability `foreground` the patch is centred on a random voxel of a random label of the case, else it
        lies anywhere, or, where a part of the case is ignored, is centred on a random voxel of the rest, as nnU-Net
        does. In any case it is moved as little as needed to lie inside the case, or, along an axis where the case is
        the smaller one, around it.
        """
        whole, shape = np.array(case.shape), np.array(size)
        low, high = np.minimum(0, whole - shape), np.maximum(0, whole - shape)
        classes = case.classes if rng.random() < self.foreground else ()
        voxels = case.foreground(int(rng.choice(classes))) if classes else case.known
        if voxels is None:
            start = rng.integers(low, high + 1)
        else:
            start = np.clip(voxels[rng.integers(len(voxels))] - shape // 2, low, high)
        return (int(start[0]), int(start[1]), int(start[2]))
