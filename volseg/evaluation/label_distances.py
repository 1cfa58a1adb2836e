"""Distances and lesions of two label images, label by label, for reports."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from volseg.errors import UsageError
from volseg.evaluation.distances import (
    DEFINITIONS,
    Box,
    Spacing,
    absent_from_one,
    around_boxes,
    surface_distances,
)
from volseg.evaluation.lesions import LESIONS, Lesion, check_rule, match_lesions

DISTANCES = ("hausdorff_mm", "hausdorff95_mm", "assd_mm", "masd_mm", "surface_dice")
# Distances of one label take a few MB and a single core.
LABELS_AT_ONCE = 2


@dataclass(frozen=True)
class SurfaceOptions:
    """How surfaces and lesions are compared.

    Args:
        definition: one of `volseg.evaluation.distances.DEFINITIONS`.
        tolerance_mm: of the normalised surface Dice.
        lesions: one of `volseg.evaluation.lesions.RULES`; None: lesions are not compared.

    Raises:
        UsageError: no such definition or rule, or a tolerance that is no distance.
    """

    definition: str = "surface-distance"
    tolerance_mm: float = 1.0
    lesions: str | None = None

    def __post_init__(self) -> None:
        if self.definition not in DEFINITIONS:
            raise UsageError(f"There is no surface {self.definition!r}; known are {', '.join(DEFINITIONS)}.")
        if not 0 <= self.tolerance_mm < np.inf:
            raise UsageError(f"The tolerance is {self.tolerance_mm} mm, expected 0 or more.")
        if self.lesions is not None:
            check_rule(self.lesions)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures of a label."""
        return (*DISTANCES, *(LESIONS if self.lesions else ()))


class LabelDistances(NamedTuple):
    """The measures of a label, by the names of `SurfaceOptions.measures`, and its reference lesions.

    The measures are None where the label is absent from both images.
    """

    measures: dict[str, float | None]
    lesions: tuple[Lesion, ...] = ()


def label_distances(
    prediction: np.ndarray,
    reference: np.ndarray,
    values: Mapping[str, int | tuple[int, ...]],
    spacing_mm: Spacing,
    options: SurfaceOptions,
    ignore: int | None = None,
) -> dict[str, LabelDistances]:
    """The measures of each label, and its reference lesions.

    Args:
        prediction: integers (I, J, K).
        reference: integers (I, J, K), on the same grid.
        values: by name, the value of each label in the images, or all values of a region.
        spacing_mm: of the grid, along I, J, K.
        options: see `SurfaceOptions`.
        ignore: value of ignored voxels in the reference; no label is there in either image.
    """
    if ignore is not None:
        prediction = np.where(reference == ignore, 0, prediction)
    images, boxes = (prediction, reference), (_boxes(prediction), _boxes(reference))

    def measured(stored: int | tuple[int, ...]) -> LabelDistances:
        parts = (stored,) if isinstance(stored, int) else stored
        found = [[box for part in parts if (box := of.get(part))] for of in boxes]
        if not any(found):
            return LabelDistances(dict.fromkeys(options.measures))
        box = around_boxes([*found[0], *found[1]])
        masks = [_mask(image[box], parts) for image in images]
        if all(found):
            distances = surface_distances(masks[0], masks[1], spacing_mm, options.definition)
        else:
            distances = absent_from_one(reference.shape, spacing_mm)
        assert distances is not None
        inside = distances.surface_dice(options.tolerance_mm) if all(found) else 0.0
        lengths = (distances.hausdorff(), distances.hausdorff(95), distances.assd(), distances.masd())
        measures: dict[str, float | None] = dict(zip(DISTANCES, (*lengths, inside), strict=True))
        if options.lesions is None:
            return LabelDistances(measures)
        lesions = match_lesions(masks[0], masks[1], spacing_mm, options.lesions)
        return LabelDistances(measures | lesions.measures(), lesions.reference)

    with ThreadPoolExecutor(LABELS_AT_ONCE) as pool:
        return dict(zip(values, pool.map(measured, values.values()), strict=True))


def _mask(image: np.ndarray, parts: tuple[int, ...]) -> np.ndarray:
    """The voxels of an image that have one of some values."""
    mask: np.ndarray = image == parts[0]
    for part in parts[1:]:
        mask |= image == part
    return mask


def _boxes(image: np.ndarray) -> dict[int, Box]:
    """The smallest box around the voxels of each value but 0 in an integer image (I, J, K)."""
    from scipy.ndimage import find_objects  # noqa: PLC0415 - loading scipy takes longer than most other work

    low, high = int(image.min(initial=0)), int(image.max(initial=0))
    if low >= 0 and high < 2**16:
        found = find_objects(image if image.dtype != bool else image.view(np.uint8))
        return {value: box for value, box in enumerate(found, start=1) if box is not None}
    # Values far apart, of which a table of boxes would be long.
    known, places = np.unique(image, return_inverse=True)
    by_place = _boxes(places.reshape(image.shape).astype(np.int32) + 1)
    return {int(known[place - 1]): box for place, box in by_place.items() if known[place - 1] != 0}
