"""Component rules: chosen on the validation cases, stored in the model, applied to every result.

A rule is stored only for a label that enough cases have, whose mean Dice it raises, and where no case loses much: what
helps a few validation cases by chance may remove a second lesion from every patient after them. Regions have no
rules: they share voxels, so removing a component of one region would change others.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from volseg.config import ComponentRule, Label, Plan
from volseg.inference.components import SLAB_VOXELS, keep_components, kept, merge_slabs, outermost_first, slabs

# Candidate volumes, in steps of about three: there are too few cases to distinguish finer ones.
SIZES_ML = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# The least gain in mean Dice: less does not show in four decimals.
GAIN = 1e-4
# The fewest cases with a label that a rule is chosen on, and the most Dice that any of them may lose by it.
ENOUGH_CASES = 10
LARGEST_LOSS = 0.05


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


def tally(
    labels: np.ndarray, reference: np.ndarray, plan: Plan, voxel_ml: float, unknown: Collection[str] = ()
) -> Tally:
    """Count the voxels of each component of a prediction, and those that are correct.

    Args:
        labels: (I, J, K) uint8 or uint16, predicted.
        reference: (I, J, K) on the same grid.
        plan: the labels and the ignore label.
        voxel_ml: volume of a voxel in millilitres.
        unknown: the names of the labels that nobody looked for in the reference.
    """
    image = outermost_first(labels)
    truth = reference if image is labels else reference.T
    total = np.zeros(1 << 16, np.int64)
    found = []
    for slab in slabs(image):
        total += np.bincount(truth[slab.box[0]].ravel(), minlength=len(total))
        true = truth[slab.box]
        counted = np.ones(true.shape, bool) if plan.ignore is None else true != plan.ignore
        correct = image[slab.box] == true
        counts = [np.bincount(slab.numbers[mask], minlength=slab.components.shape[1]) for mask in (counted, correct)]
        found.append((np.concatenate([slab.components, counts]), slab.touching))
    components, _ = merge_slabs(found)
    true_voxels = {label.value: int(total[label.value]) for label in plan.labels}
    values = frozenset(label.value for label in plan.labels if label.name in unknown)
    return Tally(components[:, components[0] > 0], true_voxels, voxel_ml, values)


def choose_rules(tallies: Sequence[Tally], labels: Sequence[Label]) -> dict[str, ComponentRule]:
    """The rule of each label that profits from one, by name, with its mean Dice before and after.

    Candidates are volumes from small to large, then keeping the largest component only, in addition to the best volume.
    Each has to be better than the best so far by `GAIN`, so that of equally good rules the mildest is chosen. A label
    that fewer than `ENOUGH_CASES` have gets no rule, nor does a candidate count by which a case loses more than
    `LARGEST_LOSS`.

    Args:
        tallies: of the validation cases.
        labels: labels of the model; no regions.
    """
    chosen = {}
    for label in labels:
        rule = ComponentRule()
        plain = [one.dice(label.value, rule) for one in tallies]
        if sum(score is not None for score in plain) < ENOUGH_CASES:
            continue
        before = best = _mean(plain)
        changes: list[dict[str, Any]] = [*({"smallest_ml": size} for size in SIZES_ML), {"largest_only": True}]
        for change in changes:
            candidate = rule.model_copy(update=change)
            found = [one.dice(label.value, candidate) for one in tallies]
            if _mean(found) > best + GAIN and _largest_loss(plain, found) <= LARGEST_LOSS:
                rule, best = candidate, _mean(found)
        if best > before:
            chosen[label.name] = rule.model_copy(update={"dice_before": before, "dice_after": best})
    return chosen


def postprocess(
    labels: np.ndarray,
    table: Sequence[Label],
    rules: Mapping[str, ComponentRule],
    voxel_ml: float,
    slab_voxels: int = SLAB_VOXELS,
    max_bytes: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Apply rules to a label image, in place.

    Args:
        labels: (I, J, K) uint8 or uint16, written to.
        table: the labels that may have a rule.
        rules: by label name.
        voxel_ml: volume of a voxel in millilitres.
        slab_voxels: voxels per slab.
        max_bytes: memory limit for the components; None for no limit.

    Returns:
        By label name: the rule, and the number of voxels it set to background, `voxels_removed`.

    Raises:
        ResourceError: the components need more than `max_bytes`; `labels` are unchanged.
    """
    values = {label.value: label.name for label in table if label.name in rules}
    by_value = {value: rules[name] for value, name in values.items()}
    removed = keep_components(labels, by_value, voxel_ml, slab_voxels, max_bytes)
    return {
        name: {
            **rules[name].model_dump(include={"smallest_ml", "largest_only"}),
            "voxels_removed": removed[value],
        }
        for value, name in values.items()
    }


def _mean(dice: Sequence[float | None]) -> float:
    """The mean over the cases that have the label in either image; 0 without any."""
    known = [score for score in dice if score is not None]
    return fmean(known) if known else 0.0


def _largest_loss(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    """The most Dice that any case loses; none where neither image has the label any more."""
    pairs = zip(before, after, strict=True)
    return max((one - other for one, other in pairs if one is not None and other is not None), default=0.0)
