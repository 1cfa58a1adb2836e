"""Lesions: connected components of a prediction matched with those of its reference.

Components are 26-connected. Three rules say which belong together; each is known by the name of those who use it:

    overlap     a reference lesion is found if at least one voxel of the prediction lies in it; a predicted lesion is
                false if it touches no reference lesion
    brats2023   as in the BraTS challenges from 2023 on (Saluja et al., github.com/rachitsaluja/BraTS-2023-Metrics, with
                the numbers for gliomas): reference lesions that join when they are dilated by three voxels are one;
                predicted lesions within three voxels of one belong to it, are compared with it as a whole, and count
                for each they belong to; those of no lesion are false. Then reference lesions of at most 50 mm³ are left
                out. Dice and the Hausdorff distance (95 %) are means over lesions and false lesions, the latter, and
                what is missed, with 0 and 374 mm.
    cc          CC-Metrics (Jaus et al. 2024, arXiv 2410.18684): each voxel belongs to the nearest reference lesion;
                Dice of each lesion is that of its part of the image, and their mean is the Dice. A lesion is found if
                its part of the prediction overlaps it; a predicted lesion is false if it touches no reference lesion.

A lesion that is missed has Dice 0. Without a lesion in both images there is nothing to state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from volseg.errors import UsageError
from volseg.evaluation.distances import Box, Spacing, around_boxes, as_masks, box_of, surface_distances
from volseg.evaluation.overlap import dice

RULES = ("overlap", "brats2023", "cc")
LESIONS = (
    "lesions",
    "lesions_found",
    "false_lesions",
    "lesion_sensitivity",
    "lesion_f1",
    "lesion_dice",
    "lesion_hd95_mm",
)
QUANTILES = 4
# Of the BraTS challenge for gliomas: voxels of dilation, the smallest lesions that do not count, and the distance of
# what is missed: the diagonal of its images.
DILATION, NEGLIGIBLE_MM3, MISSED_MM = 3, 50.0, 374.0


@dataclass(frozen=True)
class Lesion:
    """A reference lesion: its volume, whether it is found, and how well; None where the rule does not say."""

    ml: float
    found: bool
    dice: float | None = None
    hd95_mm: float | None = None


@dataclass(frozen=True)
class Lesions:
    """The reference lesions of a case and the number of predicted lesions that match none of them."""

    reference: tuple[Lesion, ...]
    false: int

    def measures(self) -> dict[str, float | None]:
        """The measures `LESIONS`; None where there is no lesion to divide by, all None without any lesion."""
        count, found = len(self.reference), sum(one.found for one in self.reference)
        if not count and not self.false:
            return dict.fromkeys(LESIONS)
        values = (
            count,
            found,
            self.false,
            found / count if count else None,
            2 * found / (count + found + self.false),
            self._mean([one.dice for one in self.reference], 0.0),
            self._mean([one.hd95_mm for one in self.reference], MISSED_MM),
        )
        return dict(zip(LESIONS, (None if one is None else float(one) for one in values), strict=True))

    def _mean(self, values: Sequence[float | None], of_false: float) -> float | None:
        """The mean over lesions; where false lesions have a distance, they have their part in it."""
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        counts_false = not self.reference or self.reference[0].hd95_mm is not None
        known += [of_false] * (self.false if counts_false else 0)
        return sum(known) / len(known) if known else None


def match_lesions(prediction: Any, reference: Any, spacing_mm: Spacing, rule: str = "overlap") -> Lesions:
    """Match the components of a predicted mask with those of its reference.

    Args:
        prediction: array or CPU tensor (I, J, K); every nonzero value belongs to the mask.
        reference: the same, on the same grid.
        spacing_mm: of the grid, along I, J, K.
        rule: one of `RULES`, see above.

    Raises:
        UsageError: no such rule, masks that are not (I, J, K), or a spacing that is not three positive numbers.
        GridError: the shapes differ.
    """
    check_rule(rule)
    predicted, true = as_masks(prediction, reference, spacing_mm)
    if not (predicted.any() or true.any()):
        return Lesions((), 0)
    box = box_of(predicted | true)
    match = {"overlap": _by_overlap, "brats2023": _as_brats, "cc": _by_nearest}[rule]
    return match(predicted[box], true[box], spacing_mm)


def check_rule(rule: str) -> None:
    """Reject a rule that does not exist.

    Raises:
        UsageError: it is not in `RULES`.
    """
    if rule not in RULES:
        raise UsageError(f"There is no rule for lesions {rule!r}; known are {', '.join(RULES)}.")


def recall_by_volume(lesions: Sequence[Lesion]) -> list[dict[str, float]]:
    """How many of the smallest to the largest lesions are found, in quarters of equal numbers.

    Returns:
        For each quarter with a lesion its smallest and largest volume, "from_ml" and "to_ml", "lesions" and "found".
    """
    ordered = sorted(lesions, key=lambda one: one.ml)
    quarters = [[ordered[index] for index in part] for part in np.array_split(np.arange(len(ordered)), QUANTILES)]
    return [
        {
            "from_ml": part[0].ml,
            "to_ml": part[-1].ml,
            "lesions": len(part),
            "found": sum(one.found for one in part),
        }
        for part in quarters
        if part
    ]


def _by_overlap(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing) -> Lesions:
    return _overlapping(prediction, _components(reference)[0], spacing_mm)


def _overlapping(prediction: np.ndarray, lesions: np.ndarray, spacing_mm: Spacing) -> Lesions:
    """The rule "overlap", of the components of a reference."""
    predicted, count = _components(prediction)
    found = set(np.unique(lesions[prediction]).tolist())
    sizes = np.bincount(lesions.ravel()).tolist()
    voxel_ml = math.prod(spacing_mm) / 1000
    rows = [Lesion(size * voxel_ml, number in found) for number, size in enumerate(sizes) if number]
    return Lesions(tuple(rows), count - len(set(np.unique(predicted[lesions > 0]).tolist()) - {0}))


def _by_nearest(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing) -> Lesions:
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415 - as below

    lesions, _ = _components(reference)
    matched = _overlapping(prediction, lesions, spacing_mm)
    if not matched.reference:
        return matched
    places = distance_transform_edt(~reference, sampling=spacing_mm, return_distances=False, return_indices=True)
    nearest = lesions[tuple(places)]
    # Voxels of each lesion's part of the image: of the prediction, of the lesion, and of both.
    masks = (nearest[prediction], lesions[reference], lesions[prediction & reference])
    predicted, true, both = (np.bincount(numbers, minlength=len(matched.reference) + 1)[1:] for numbers in masks)
    rows = [
        replace(one, dice=float(score))
        for one, score in zip(matched.reference, 2 * both / (predicted + true), strict=True)
    ]
    return Lesions(tuple(rows), matched.false)


def _as_brats(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing) -> Lesions:
    from scipy.ndimage import find_objects  # noqa: PLC0415 - as below

    # Room for the dilation.
    prediction, reference = np.pad(prediction, DILATION + 1), np.pad(reference, DILATION + 1)
    predicted, count = _components(prediction)
    joined, number_of_lesions = _components(_dilated(reference))
    lesions = np.where(reference, joined, 0)
    matched: set[int] = set()
    rows = []
    places, places_predicted = find_objects(lesions), find_objects(predicted)
    for number in range(1, number_of_lesions + 1):
        around = _grown(places[number - 1])
        near = set(np.unique(predicted[around][_dilated(lesions[around] == number)]).tolist()) - {0}
        matched |= near
        box = around_boxes([around, *(places_predicted[one - 1] for one in near)])
        lesion = lesions[box] == number
        mm3 = int(lesion.sum()) * math.prod(spacing_mm)
        if mm3 <= NEGLIGIBLE_MM3:
            continue
        own = np.isin(predicted[box], list(near))
        distances = surface_distances(own, lesion, spacing_mm) if near else None
        hd95 = distances.hausdorff(95) if distances else MISSED_MM
        rows.append(Lesion(mm3 / 1000, bool(near), dice(own, lesion), hd95))
    return Lesions(tuple(rows), count - len(matched))


def _grown(box: Box) -> Box:
    """A box with room for the dilation, in an image that has it."""
    i, j, k = (slice(one.start - DILATION - 1, one.stop + DILATION + 1) for one in box)
    return i, j, k


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The 26-connected components of a mask (I, J, K), numbered from 1, and their number."""
    from scipy.ndimage import label  # noqa: PLC0415 - loading scipy takes longer than most other work

    components, count = label(mask, np.ones((3, 3, 3)))
    return components, int(count)


def _dilated(mask: np.ndarray) -> np.ndarray:
    """A mask dilated `DILATION` times over faces and edges of voxels."""
    from scipy.ndimage import binary_dilation, generate_binary_structure  # noqa: PLC0415 - as above

    return np.asarray(binary_dilation(mask, generate_binary_structure(3, 2), iterations=DILATION))
