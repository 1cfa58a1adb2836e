"""The components of a predicted label image, compared with a reference: what any rule would make of its Dice."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from volseg.config import ComponentRule, Label, Plan, may_have_rules
from volseg.postprocessing.components import SLAB_VOXELS, kept, merge_slabs, outermost_first, slabs, value_table

# Candidate volumes, in steps of about three: there are too few cases to distinguish finer ones.
SIZES_ML = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# Each size, then the largest component only of those of each size. The first changes nothing.
CANDIDATES = tuple(
    ComponentRule(smallest_ml=size, largest_only=largest) for largest in (False, True) for size in SIZES_ML
)


@dataclass(frozen=True)
class Tally:
    """The components of a predicted label image, compared with a reference.

    Args:
        components: (4, n) int64: the label value of each, its voxels, its voxels that are not ignored in the
            reference, and its voxels with the same value in the reference.
        true: voxels in the reference by label value.
        voxel_ml: volume of a voxel in millilitres.
        unknown: values of labels that nobody looked for in the reference.
    """

    components: np.ndarray
    true: Mapping[int, int]
    voxel_ml: float
    unknown: frozenset[int] = frozenset()

    def dice(self, value: int, rule: ComponentRule) -> float | None:
        """The Dice of a label after a rule, as in `volseg.evaluation.overlap`: None if neither image has the label, or
        nobody looked for it."""
        if value in self.unknown:
            return None
        keeps = kept(self.components, {value: rule}, self.voxel_ml) & (self.components[0] == value)
        _, _, predicted, both = self.components[:, keeps].sum(axis=1).tolist()
        sizes = predicted + self.true[value]
        return 2 * both / sizes if sizes else None

    def scores(self, labels: Sequence[Label]) -> dict[str, tuple[float | None, ...]]:
        """The Dice after each of `CANDIDATES` of the labels that may have a rule, by name."""
        return {
            label.name: tuple(self.dice(label.value, rule) for rule in CANDIDATES) for label in may_have_rules(labels)
        }


def tally(
    labels: np.ndarray,
    reference: np.ndarray,
    plan: Plan,
    voxel_ml: float,
    unknown: Collection[str] = (),
    slab_voxels: int = SLAB_VOXELS,
) -> Tally:
    """Count the voxels of each component of a prediction, and those that are correct.

    A region counts as a whole: two of its parts that touch are one component.

    Args:
        labels: (I, J, K) uint8 or uint16, predicted.
        reference: (I, J, K) on the same grid.
        plan: the labels and the ignore label.
        voxel_ml: volume of a voxel in millilitres.
        unknown: the names of the labels that nobody looked for in the reference.
        slab_voxels: voxels per slab.
    """
    image = outermost_first(labels)
    truth = reference if image is labels else reference.T
    counted_labels = may_have_rules(plan.labels)
    table = value_table({label.value: label.stored_values for label in counted_labels}, np.uint16)
    total = np.zeros(1 << 16, np.int64)
    found = []
    for slab in slabs(image, slab_voxels, table):
        total += np.bincount(table[truth[slab.box[0]]].ravel(), minlength=len(total))
        true = truth[slab.box]
        counted = np.ones(true.shape, bool) if plan.ignore is None else true != plan.ignore
        correct = table[image[slab.box]] == table[true]
        counts = [np.bincount(slab.numbers[mask], minlength=slab.components.shape[1]) for mask in (counted, correct)]
        found.append((np.concatenate([slab.components, counts]), slab.touching))
    components, _ = merge_slabs(found)
    true_voxels = {label.value: int(total[label.value]) for label in counted_labels}
    values = frozenset(label.value for label in counted_labels if label.name in unknown)
    return Tally(components[:, components[0] > 0], true_voxels, voxel_ml, values)
