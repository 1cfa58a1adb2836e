"""Which components of each label are kept: chosen on validation cases, stored in the model, applied to every result.

A rule is stored only for a label whose mean Dice it raises. Regions have none: they share voxels, so that what is taken
from one would be taken from others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from volseg.config import ComponentRule, Label, Plan
from volseg.inference.components import SLAB_VOXELS, join_slabs, keep_components, kept, outermost_first, slabs

# The volumes tried, in steps of about three: the cases are too few to tell finer ones apart.
SIZES_ML = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# By how much the mean Dice has to rise: less would not be seen in figures of four decimals.
GAIN = 1e-4


@dataclass(frozen=True)
class Tally:
    """The components of one predicted label image, and what a reference says of them.

    Args:
        components: (4, n) int64: the label value of each, its voxels, those of them that the reference does not
            ignore, and those that have the same value there.
        true: voxels in the reference by label value.
        voxel_ml: volume of a voxel in millilitres.
    """

    components: np.ndarray
    true: Mapping[int, int]
    voxel_ml: float

    def dice(self, value: int, rule: ComponentRule) -> float | None:
        """The Dice of a label after a rule, as in `volseg.evaluation.overlap`: None where it is in neither image."""
        stays = kept(self.components, {value: rule}, self.voxel_ml) & (self.components[0] == value)
        _, _, predicted, both = self.components[:, stays].sum(axis=1).tolist()
        sizes = predicted + self.true[value]
        return 2 * both / sizes if sizes else None


def tally(labels: np.ndarray, reference: np.ndarray, plan: Plan, voxel_ml: float) -> Tally:
    """Count the components of a prediction, and how much of each is right.

    Args:
        labels: (I, J, K) uint8 or uint16, predicted.
        reference: (I, J, K) on the same grid.
        plan: the labels, and what references ignore.
        voxel_ml: volume of a voxel in millilitres.
    """
    image = outermost_first(labels)
    truth = reference if image is labels else reference.T
    total = np.zeros(1 << 16, np.int64)
    found = []
    for slab in slabs(image):
        planes = slice(slab.planes.stop - len(slab.numbers), slab.planes.stop)
        true = truth[planes]
        counted = np.ones(true.shape, bool) if plan.ignore is None else true != plan.ignore
        right = image[planes] == true
        total += np.bincount(true.ravel(), minlength=len(total))
        counts = [np.bincount(slab.numbers[mask], minlength=slab.pieces.shape[1]) for mask in (counted, right)]
        found.append((np.concatenate([slab.pieces, counts]), slab.met))
    components, _ = join_slabs(found)
    true_voxels = {label.value: int(total[label.value]) for label in plan.labels}
    return Tally(components[:, components[0] > 0], true_voxels, voxel_ml)


def choose_rules(tallies: Sequence[Tally], labels: Sequence[Label]) -> dict[str, ComponentRule]:
    """The rule of each label that has one, by name, with its mean Dice before and after.

    Tried are volumes from small to large, and then the largest component only, on top of the best volume. Each has to
    be better than the best before it by `GAIN`, so that of equally good ones the one that drops least is taken.

    Args:
        tallies: of the validation cases.
        labels: the model's; no regions.
    """
    chosen = {}
    for label in labels:
        rule = ComponentRule()
        before = best = _mean_dice(tallies, label.value, rule)
        changes: list[dict[str, Any]] = [*({"smallest_ml": size} for size in SIZES_ML), {"largest_only": True}]
        for change in changes:
            candidate = rule.model_copy(update=change)
            dice = _mean_dice(tallies, label.value, candidate)
            if dice > best + GAIN:
                rule, best = candidate, dice
        if best > before:
            chosen[label.name] = rule.model_copy(update={"dice_before": before, "dice_after": best})
    return chosen


def postprocess(
    labels: np.ndarray,
    table: Sequence[Label],
    rules: Mapping[str, ComponentRule],
    voxel_ml: float,
    slab_voxels: int = SLAB_VOXELS,
    room: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Apply rules to a label image, in place.

    Args:
        labels: (I, J, K) uint8 or uint16, written to.
        table: the labels that may have a rule.
        rules: by label name.
        voxel_ml: volume of a voxel in millilitres.
        slab_voxels: how many are looked at together.
        room: the most bytes that may be held for their pieces; None for no limit.

    Returns:
        By label name the rule, and how many voxels became background by it: `voxels_removed`.

    Raises:
        ResourceError: there is not enough room; `labels` are as they were.
    """
    values = {label.value: label.name for label in table if label.name in rules}
    by_value = {value: rules[name] for value, name in values.items()}
    removed = keep_components(labels, by_value, voxel_ml, slab_voxels, room)
    return {
        name: {
            **rules[name].model_dump(include={"smallest_ml", "largest_only"}),
            "voxels_removed": removed[value],
        }
        for value, name in values.items()
    }


def _mean_dice(tallies: Sequence[Tally], value: int, rule: ComponentRule) -> float:
    """The mean over the cases in which the label counts; 0 where it counts in none."""
    dice = [found for one in tallies if (found := one.dice(value, rule)) is not None]
    return fmean(dice) if dice else 0.0
