"""Reliability diagrams and the likelihood of references, at several temperatures in one pass over the logits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from volseg.confidence.sums import probabilities
from volseg.config import IGNORED, Plan
from volseg.modelfile.calibration import BINS, Reliability

# Voxels count where a label has at least this probability at temperature 1: elsewhere nearly all is background, and
# would hide the errors. The choice does not depend on the reference.
LEAST = 0.01


class ReliabilityObserver:
    """Takes slabs of logits, and compares the probabilities of labels with a reference at each temperature.

    Args:
        plan: labels, and whether they are regions.
        temperatures: logits are divided by each in turn.
        target: the reference in network space in stream order: (planes, rows, columns) classes, or for regions
            (labels, planes, rows, columns); `IGNORED` voxels do not count.
        known: of each label, whether somebody looked for it in the reference.
    """

    def __init__(self, plan: Plan, temperatures: Sequence[float], target: Tensor, known: Sequence[bool]) -> None:
        self.regions, self.temperatures, self.target = plan.regions, tuple(temperatures), target
        self.known = torch.tensor(list(known))
        # (temperatures, bins, 3): voxels, sum of probabilities, voxels with the label.
        self.bins = np.zeros((len(self.temperatures), BINS, 3))
        self.loss = np.zeros(len(self.temperatures))

    def __call__(self, first: int, logits: Tensor) -> None:
        """Add a slab; see `volseg.confidence.sums.SumsObserver`."""
        planes = slice(first, first + logits.shape[1])
        true, labels = self._truth(planes, len(logits) - (not self.regions)), logits.flatten(1).cpu()
        chosen = (probabilities(labels, self.regions, 1.0) >= LEAST) & self.known[:, None] & (true != IGNORED)
        y = true[chosen].to(torch.float64)
        for index, temperature in enumerate(self.temperatures):
            p = probabilities(labels, self.regions, temperature)[chosen].to(torch.float64)
            inside = p.clamp(1e-7, 1 - 1e-7)
            self.loss[index] -= float((y * inside.log() + (1 - y) * (1 - inside).log()).sum())
            place = (p * BINS).long().clamp_(max=BINS - 1)
            for column, weight in enumerate((torch.ones_like(p), p, y)):
                self.bins[index, :, column] += torch.bincount(place, weight, BINS).numpy()

    def _truth(self, planes: slice, labels: int) -> Tensor:
        """(labels, voxels): 1 inside, 0 outside, `IGNORED`."""
        if self.regions:
            return self.target[:, planes].flatten(1)
        classes = self.target[planes].flatten().to(torch.int16)
        inside = (classes == torch.arange(1, labels + 1, dtype=torch.int16)[:, None]).to(torch.int8)
        return inside.where(classes != IGNORED, IGNORED)


def diagram(bins: np.ndarray) -> Reliability:
    """The diagram of sums (bins, 3), with its expected calibration error."""
    voxels, probability, label = bins.T
    at_least = np.maximum(voxels, 1)
    means, frequency = probability / at_least, label / at_least
    error = float((voxels * np.abs(frequency - means)).sum() / max(1, voxels.sum()))
    return Reliability(
        voxels=tuple(int(one) for one in voxels),
        probability=tuple(np.clip(means, 0, 1).tolist()),
        frequency=tuple(np.clip(frequency, 0, 1).tolist()),
        error=min(1.0, error),
    )
