"""Progressive patch size: edges grow from half to full length over the first part of a run.

Steps on small patches are cheap, so a run of a given time has more of them; the last steps see full patches, as
inference does. On ten datasets nnU-Net reaches about the same scores or better in half the time: Fischer et al. 2024,
Progressive Growing of Patch Size, doi 10.1007/978-3-031-72114-4_49. Our measurements are in benchmarks/EXPERIMENTS.md.
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
    """Cuts the patches of a batch down to the current patch size.

    The smaller patch is sampled inside the full one by the rules of `PatchSampler.patch_start`; that of a foreground
    patch still holds its label.

    Args:
        plan: batch size over all ranks, and the divisor of patch edges.
        sampler: the one of the `BatchDataset`.
        fraction: of the run, over which patches grow; 0: full patches from the start.
    """

    plan: Plan
    sampler: PatchSampler
    fraction: float

    def __call__(self, batch: dict[str, Tensor], progress: float, step: int) -> dict[str, Tensor]:
        """Cut a smaller patch out of each patch of a batch.

        Args:
            batch: of `volseg.data.cases.batches.BatchDataset`.
            progress: of the run, from 0 to 1.
            step: the number of the batch.

        Returns:
            The same with D, H and W of `patch_size_at`, and "held", (B, labels) bool: the annotated labels in each
            patch.
        """
        cropped = self._cropped(batch, progress, step)
        held = torch.stack([LabelledPatch(one.numpy()).held(self.plan) for one in cropped["label"]])
        # With partial labels, those that somebody looked for.
        return {**cropped, "held": held & batch["annotated"] if "annotated" in batch else held}

    def _cropped(self, batch: dict[str, Tensor], progress: float, step: int) -> dict[str, Tensor]:
        images, labels = batch["image"], batch["label"]
        full = images.shape[2:]
        size = patch_size_at(full, self.plan.network.divisor, progress / self.fraction if self.fraction else 1.0)
        if size == tuple(full):
            return batch
        numbers = self.sampler.sample_numbers(step, self.plan.batch_size)
        foreground = batch["foreground"].tolist()
        cuts = [self._cut(*one, size) for one in zip(labels, foreground, numbers, strict=True)]
        return {
            **batch,
            "image": torch.stack([image[(..., *cut)] for image, cut in zip(images, cuts, strict=True)]),
            "label": torch.stack([label[(..., *cut)] for label, cut in zip(labels, cuts, strict=True)]),
        }

    def _cut(self, target: Tensor, label: int, number: int, size: Triple) -> list[slice]:
        """The slices of the smaller patch in sample `number`, a foreground patch of `label` unless that is 0."""
        starts = self.sampler.patch_start(self.sampler.rng(CUT, number), LabelledPatch(target.numpy()), size, label)
        return [slice(start, start + edge) for start, edge in zip(starts, size, strict=True)]


def patch_size_at(full: Sequence[int], divisor: Triple, progress: float) -> Triple:
    """The patch size (D, H, W): edges rise linearly from half to full length, rounded up to multiples of the divisor.

    No edge is shorter than two divisors unless the full one is: instance norm needs a few voxels in the deepest stage.

    Args:
        full: the full patch size (D, H, W).
        divisor: of the network, along D, H and W.
        progress: of the growth; 0 at its start, 1 or more when patches are full.
    """
    scale = min(1.0, 0.5 + 0.5 * progress)
    sizes = [min(edge, max(2, math.ceil(scale * edge / one)) * one) for edge, one in zip(full, divisor, strict=True)]
    return sizes[0], sizes[1], sizes[2]


def patch_sizes(plan: Plan, fraction: float) -> list[Triple]:
    """The patch sizes (D, H, W) of a run, the smallest first; `fraction` as for `ProgressivePatches`."""
    if not fraction:
        return [plan.patch_size]
    steps = (patch_size_at(plan.patch_size, plan.network.divisor, step / 1000) for step in range(1001))
    return list(dict.fromkeys(steps))


@dataclass(frozen=True)
class LabelledPatch:
    """A `PatchSource` over the target of one sample: (D, H, W) class indices or (K, D, H, W) regions."""

    target: np.ndarray

    @property
    def shape(self) -> Triple:
        """(D, H, W)."""
        depth, height, width = self.target.shape[-3:]
        return depth, height, width

    def foreground(self, index: int) -> np.ndarray:
        """(N, 3) foreground voxels of label `index`."""
        return np.argwhere(self.target == index if self.target.ndim == 3 else self.target[index - 1] > 0)

    def held(self, plan: Plan) -> Tensor:
        """(labels,) bool: whether each label occurs."""
        if self.target.ndim == 4:
            return torch.from_numpy((self.target > 0).any((1, 2, 3)))
        counts = np.bincount(self.target.clip(0).ravel(), minlength=len(plan.labels) + 1)
        return torch.from_numpy(counts[1:] > 0)

    @property
    def annotated(self) -> np.ndarray | None:
        """(N, 3) annotated voxels, which are those not ignored; None if none or all voxels are ignored."""
        ignored = self.target == IGNORED
        if not ignored.any() or ignored.all():
            return None
        # A voxel is ignored in all regions or in none.
        return np.argwhere(~(ignored if ignored.ndim == 3 else ignored[0]))
