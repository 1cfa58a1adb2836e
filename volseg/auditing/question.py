"""What a reference says of each voxel, in the few codes that the search for wrong labels counts with.

Code 0 is the background, and every label that nobody looked for in the case: its voxels are background in the
reference, whatever they show. The other codes are the values that the remaining labels have in label images; of
overlapping regions, several labels may have one code.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from volseg.config import Label, Plan

BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class Question:
    """The labels of a case that are compared, and the codes of the values in its label images.

    Args:
        plan: of the model.
        labels: those that somebody looked for in the case.
        values: the value of each code in label images; 0 is first.
        table: the code of each value; values of no compared label have code 0.
        members: (codes, labels) bool: whether a code belongs to a label.
    """

    plan: Plan
    labels: tuple[Label, ...]
    values: tuple[int, ...]
    table: np.ndarray
    members: np.ndarray

    @classmethod
    def of(cls, plan: Plan, unknown: Collection[str] = ()) -> "Question":
        """The question of a case in which nobody looked for the labels `unknown`."""
        labels = tuple(label for label in plan.labels if label.name not in unknown)
        values = (0, *sorted({value for label in labels for value in label.stored_values}))
        highest = max(*values, *plan.stored_values, *(label.value for label in plan.labels), plan.ignore or 0)
        table = np.zeros(highest + 1, np.uint8 if len(values) < 256 else np.uint16)
        table[list(values)] = range(len(values))
        members = np.array([[value in label.stored_values for label in labels] for value in values], bool)
        return cls(plan, labels, values, table, members.reshape(len(values), len(labels)))

    def codes(self, image: np.ndarray) -> np.ndarray:
        """The codes of a label image (I, J, K), predicted or reference; ignored voxels have code 0."""
        return np.take(self.table, image, mode="clip")

    def ignored(self, reference: np.ndarray) -> np.ndarray | None:
        """Where the reference says nothing, (I, J, K) bool; None where it always does."""
        return None if self.plan.ignore is None else reference == self.plan.ignore

    def name(self, code: int) -> str:
        """The label of a code, the last of several regions; "background" of none."""
        found = [label.name for label, member in zip(self.labels, self.members[code], strict=True) if member]
        return found[-1] if found else BACKGROUND

    def doubts(self, logits: torch.Tensor, stated: torch.Tensor) -> torch.Tensor:
        """How far the reference falls behind the most probable class, (rows, columns), 0 to 1.

        For labels that exclude each other, the probability of the most probable class minus that of the stated one,
        where the background has the probabilities of all labels that nobody looked for. For regions, |2 p - 1| of the
        region whose probability p contradicts the reference most.

        Args:
            logits: (K, rows, columns).
            stated: (rows, columns) int64, codes of the reference.
        """
        if self.plan.regions:
            return self._doubts_of_regions(logits, stated)
        probabilities = torch.softmax(logits, 0)
        grouped = torch.zeros((len(self.values), *logits.shape[1:]), device=logits.device)
        classes = [0, *(label.value for label in self.plan.labels)]
        codes = torch.from_numpy(self.table[classes].astype(np.int64)).to(logits.device)
        grouped.index_add_(0, codes, probabilities)
        return grouped.amax(0) - grouped.gather(0, stated[None])[0]

    def _doubts_of_regions(self, logits: torch.Tensor, stated: torch.Tensor) -> torch.Tensor:
        places = [self.plan.labels.index(label) for label in self.labels]
        signed = 2 * torch.sigmoid(logits[places]) - 1
        inside = torch.from_numpy(self.members).to(logits.device)[stated].permute(2, 0, 1)
        return torch.where(inside, -signed, signed).amax(0).clamp(min=0)
