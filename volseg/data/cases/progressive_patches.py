"""Small patches first: a run begins with half their edges and ends with the whole.

Most steps are cheap then, so there are more of them, and the last ones still see all that the network will be shown.
On ten datasets nnU-Net reaches about the same or more in half the time with patches that grow: Fischer et al. 2024,
Progressive Growing of Patch Size, doi 10.1007/978-3-031-72114-4_49. Ours is in benchmarks/EXPERIMENTS.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volseg.config import IGNORED, Plan, Triple
from volseg.data.cases.patch_sampling import CUT, PatchSampler


@dataclass(frozen=True)
class ProgressivePatches:
    """Cuts batches down to the size that patches have patch_size_at to.

    A cut is drawn by the rules by which the patch was placed.

    Args:
        plan: batch size, over all ranks together, and what the edges of a patch have to be multiples of.
        draws: those of the `BatchDataset`.
        share: of the run, over which patches grow; 0: they are whole from the start.
    """

    plan: Plan
    draws: PatchSampler
    share: float

    def __call__(self, batch: dict[str, Tensor], progress: float, step: int) -> dict[str, Tensor]:
        """A part of each patch.

        Args:
            batch: {"image": (B, C, D, H, W), "label": (B, D, H, W) or (B, K, D, H, W)}.
            progress: of the run, from 0 to 1.
            step: the number of the batch.

        Returns:
            The same with D, H and W of `patch_size_at`; the batch itself where they are whole.
        """
        images, labels = batch["image"], batch["label"]
        whole = images.shape[2:]
        size = patch_size_at(whole, self.plan.network.divisor, progress / self.share if self.share else 1.0)
        if size == tuple(whole):
            return batch
        numbers = self.draws.numbers(step, self.plan.batch_size)
        cuts = [self._cut(label, size, number) for label, number in zip(labels, numbers, strict=True)]
        return {
            "image": torch.stack([image[(..., *cut)] for image, cut in zip(images, cuts, strict=True)]),
            "label": torch.stack([label[(..., *cut)] for label, cut in zip(labels, cuts, strict=True)]),
        }

    def _cut(self, label: Tensor, size: Triple, number: int) -> list[slice]:
        """The part of sample `number` that is taken."""
        starts = self.draws.start(self.draws.stream(CUT, number), LabelledPatch(label.numpy()), size)
        return [slice(start, start + edge) for start, edge in zip(starts, size, strict=True)]


def patch_size_at(whole: Sequence[int], divisor: Triple, progress: float) -> Triple:
    """What a patch has patch_size_at to, (D, H, W): its edges rise linearly from half to the whole, rounded up to the divisor.

    No edge is below two divisors, if the whole has that many: instance norm needs a few voxels in the deepest stage.
    """
    share = min(1.0, 0.5 + 0.5 * progress)
    sizes = [min(edge, max(2, math.ceil(share * edge / one)) * one) for edge, one in zip(whole, divisor, strict=True)]
    return sizes[0], sizes[1], sizes[2]


@dataclass(frozen=True)
class LabelledPatch:
    """The target of one sample, (D, H, W) class indices or (K, D, H, W) regions, as `PatchSampler.start` asks for it."""

    target: np.ndarray

    @property
    def shape(self) -> Triple:
        """(D, H, W)."""
        depth, height, width = self.target.shape[-3:]
        return depth, height, width

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels or regions that occur, counted from 1."""
        if self.target.ndim == 3:
            return tuple(int(index) for index in np.unique(self.target) if index > 0)
        return tuple(index for index, region in enumerate(self.target, start=1) if (region > 0).any())

    def foreground(self, index: int) -> np.ndarray:
        """(N, 3) voxels of label `index`."""
        return np.argwhere(self.target == index if self.target.ndim == 3 else self.target[index - 1] > 0)

    @property
    def known(self) -> np.ndarray | None:
        """(N, 3) voxels that are not ignored; None where none or all are."""
        ignored = self.target == IGNORED
        if not ignored.any() or ignored.all():
            return None
        # Of regions all are ignored or none.
        return np.argwhere(~(ignored if ignored.ndim == 3 else ignored[0]))
