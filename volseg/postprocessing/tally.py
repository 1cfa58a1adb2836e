"""The components of a predicted label image, compared with a reference: what any rule would make of its Dice."""

from collections.abc import Collection
from typing import TypeAlias

import numpy as np

from volseg.config import ComponentRule, Label, Plan, labels_by_rule
from volseg.postprocessing.components import SLAB_VOXELS, kept, merge_slabs, outermost_first, slabs, value_table

# Candidate volumes, in steps of about three: there are too few cases to distinguish finer ones.
SIZES_ML = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# Each size, then the largest component only of those of each size. The first changes nothing.
CANDIDATES = tuple(
    ComponentRule(smallest_ml=size, largest_only=largest) for largest in (False, True) for size in SIZES_ML
)
# Of a case, by label name: the Dice after each of `CANDIDATES` for the label, or for the region that it is inside of;
# None where neither image has the label, or nobody looked for it.
Scores: TypeAlias = dict[str, tuple[float | None, ...]]


def rule_scores(
    labels: np.ndarray,
    reference: np.ndarray,
    plan: Plan,
    voxel_ml: float,
    unknown: Collection[str] = (),
    slab_voxels: int = SLAB_VOXELS,
) -> Scores:
    """The Dice of a case after each candidate rule, as `volseg.evaluation.overlap` has it.

    The image is read once: the Dice after a rule is a sum over the components that it keeps. A region counts as a
    whole: two of its parts that touch are one component.

    Args:
        labels: (I, J, K) uint8 or uint16, predicted.
        reference: (I, J, K) on the same grid.
        plan: the labels and the ignore label.
        voxel_ml: volume of a voxel in millilitres.
        unknown: the names of the labels that nobody looked for in the reference.
        slab_voxels: voxels per slab.
    """
    groups = list(labels_by_rule(plan.labels).values())
    components, true = _count(labels, reference, groups, plan.ignore, slab_voxels)
    scores: Scores = {}
    for inside in groups:
        value = inside[0].value
        own = components[:, components[0] == value]
        keeps = [kept(own, {value: rule}, voxel_ml) for rule in CANDIDATES]
        for place, label in enumerate(inside):
            if label.name in unknown:
                scores[label.name] = (None,) * len(CANDIDATES)
                continue
            counts = own[2 + 2 * place : 4 + 2 * place]
            sums = [counts[:, keep].sum(axis=1).tolist() for keep in keeps]
            scores[label.name] = tuple(_dice(predicted, both, true[label.name]) for predicted, both in sums)
    return scores


def _count(
    labels: np.ndarray, reference: np.ndarray, groups: list[tuple[Label, ...]], ignore: int | None, slab_voxels: int
) -> tuple[np.ndarray, dict[str, int]]:
    """The components of a label image, and the voxels of each label in the reference.

    Args:
        labels, reference: (I, J, K), see `rule_scores`.
        groups: labels that may have a rule, each with the labels inside it.
        ignore: the value of voxels that do not count.
        slab_voxels: voxels per slab.

    Returns:
        (2 + 2 k, n) int64: the value of each component, its voxels, and for each place in the groups, the first of
        which is the label itself: its voxels of that label that count, and those of them that the reference has, too.
        Then voxels in the reference by label name.
    """
    image = outermost_first(labels)
    truth = reference if image is labels else reference.T
    owners = value_table({inside[0].value: inside[0].stored_values for inside in groups})
    # By place in the groups: whether a value in the image is of the label there.
    members = np.zeros((max(map(len, groups), default=1), 1 << 16), bool)
    for inside in groups:
        for place, label in enumerate(inside):
            members[place, list(label.stored_values)] = True
    total = np.zeros(1 << 16, np.int64)
    found = []
    for slab in slabs(image, slab_voxels, owners):
        total += np.bincount(truth[slab.box[0]].ravel(), minlength=len(total))
        values, true = image[slab.box], truth[slab.box]
        counted = np.ones(true.shape, bool) if ignore is None else true != ignore
        same = owners[values] == owners[true]
        counts = []
        for member in members:
            predicted = member[values] & counted
            for mask in (predicted, predicted & same & member[true]):
                counts.append(np.bincount(slab.numbers[mask], minlength=slab.components.shape[1]))  # noqa: PERF401
        found.append((np.concatenate([slab.components, counts]), slab.touching))
    components, _ = merge_slabs(found)
    true_voxels = {
        label.name: int(total[list(set(label.stored_values))].sum()) for inside in groups for label in inside
    }
    return components[:, components[0] > 0], true_voxels


def _dice(predicted: int, both: int, true: int) -> float | None:
    """2 |A and B| / (|A| + |B|); None if both are empty."""
    return 2 * both / (predicted + true) if predicted + true else None
