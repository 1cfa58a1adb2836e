"""Sums over voxels of a mask and its calibrated probabilities, gathered while logits stream past.

The sums are those of network space, before logits are resampled to the scan. No probability is kept: a slab is reduced
to a few numbers per label.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from volseg.config import Plan

# A voxel whose largest foreground probability is below exp(-FAINT) is skipped: it counts as certain background. Sums of
# very many such voxels would otherwise outweigh a small label.
FAINT = 7.0
# Logits at a time: few enough for a processor's cache, many enough to keep a GPU busy.
BLOCK_LOGITS = {"cpu": 1 << 19, "cuda": 1 << 25}
# Blocks whose sums wait on the device before they are fetched together.
WAITING = 256


class Sums(NamedTuple):
    """Over all voxels, of each label, float64 (..., labels): of its mask m in {0, 1} and its probability p.

    Args:
        mask: sum of m.
        probability: sum of p.
        overlap: sum of m p.
        variance: sum of p (1 - p).
    """

    mask: np.ndarray
    probability: np.ndarray
    overlap: np.ndarray
    variance: np.ndarray


class SumsObserver:
    """Takes slabs of logits in any order, and adds up `Sums` at each of several temperatures.

    Args:
        plan: labels, and whether they are regions.
        temperatures: logits are divided by each in turn; the sums are in ascending order of them.
        everywhere: compute voxels that are skipped too, and leave them out of the sums; None: on a GPU, where the host
            would wait in every block to be told which they are.
    """

    def __init__(self, plan: Plan, temperatures: Sequence[float], everywhere: bool | None = None) -> None:
        self.everywhere = everywhere
        self.temperatures = tuple(sorted(temperatures))
        self.regions = plan.regions
        self.member = _membership(plan)
        self.total = np.zeros((len(self.temperatures), len(Sums._fields), len(self.member)))
        # Small tensors on the device of the logits, so that no block waits for a transfer.
        self.waiting: list[Tensor] = []

    def __call__(self, _first: int, logits: Tensor) -> None:
        """Add a slab.

        Args:
            _first: index of its first plane.
            logits: (K, planes, rows, columns) float32, finite; not changed.
        """
        member = self.member.to(logits.device)
        size = max(1, BLOCK_LOGITS.get(logits.device.type, BLOCK_LOGITS["cpu"]) // len(logits))
        for block in logits.flatten(1).split(size, 1):
            self.waiting.append(self._sums_of(block, member))
            if len(self.waiting) == WAITING:
                self._fetch()

    def _sums_of(self, voxels: Tensor, member: Tensor) -> Tensor:
        """(temperatures, sums, labels) of logits (K, voxels)."""
        found = []
        everywhere = voxels.is_cuda if self.everywhere is None else self.everywhere
        # The highest first, which leaves the most voxels.
        for temperature in sorted(self.temperatures, reverse=True):
            notable = are_notable(voxels, self.regions, temperature)
            if not everywhere:
                voxels = voxels[:, notable.nonzero().squeeze(1)]
            mask = member[:, decided(voxels, self.regions)].to(torch.float32)
            p = probabilities(voxels, self.regions, temperature)
            if everywhere:
                mask, p = mask * notable, p * notable
            found.append(torch.stack([mask.sum(1), p.sum(1), (mask * p).sum(1), (p * (1 - p)).sum(1)]))
        return torch.stack(found[::-1])

    def _fetch(self) -> None:
        if self.waiting:
            self.total += torch.stack(self.waiting).cpu().numpy().sum(0, dtype=np.float64)
            self.waiting = []

    @property
    def sums(self) -> Sums:
        """What was added up so far, (temperatures, labels)."""
        self._fetch()
        return Sums(*self.total.transpose(1, 0, 2).copy())


def probabilities(logits: Tensor, regions: bool, temperature: float) -> Tensor:
    """The probabilities of the labels, (labels, ...), of logits (K, ...): without that of background."""
    scaled = logits / temperature
    return torch.sigmoid(scaled) if regions else torch.softmax(scaled, 0)[1:]


def are_notable(voxels: Tensor, regions: bool, temperature: float) -> Tensor:
    """Of logits (K, voxels) where a label has a probability above exp(-FAINT), roughly, at a temperature: (voxels,)."""
    best = voxels.amax(0) if regions else voxels[1:].amax(0) - voxels[0]
    return best > -FAINT * temperature


def decided(voxels: Tensor, regions: bool) -> Tensor:
    """The class of each voxel as in the label image, 0 for background: see `volseg.inference.upsample`."""
    if not regions:
        return voxels.argmax(0)
    rank = torch.arange(1, len(voxels) + 1, device=voxels.device)
    return ((voxels > 0) * rank[:, None]).amax(0)


def _membership(plan: Plan) -> Tensor:
    """(labels, 1 + labels) bool: whether a voxel of a class belongs to a label; regions share voxels."""
    values = [0, *(label.value for label in plan.labels)]
    return torch.tensor([[value in label.stored_values for value in values] for label in plan.labels])
