"""Overlap of two label images on one grid, label by label.

The policy for empty masks, stated here once and followed everywhere:

- A label absent from both images has no ratios: they are None, and the case is excluded from that label's means.
- A label absent from only one image scores 0 in all four ratios, also where its own denominator is 0
  (the precision of an empty prediction, the recall of an empty reference).
- Volumes are numbers, those of an absent label are 0 ml; they are None where the size of a voxel is unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from volseg.data.grid.geometry import volume_of
from volseg.errors import GridError


@dataclass(frozen=True)
class Overlap:
    """One label of a prediction against its reference; the ratios lie in [0, 1] and follow the policy above.

    Args:
        dice: 2 |P and R| / (|P| + |R|).
        iou: |P and R| / |P or R|.
        precision: |P and R| / |P|.
        recall: |P and R| / |R|.
        reference_ml: volume of R.
        prediction_ml: volume of P.
        volume_difference_ml: prediction minus reference.
    """

    dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None
    reference_ml: float | None
    prediction_ml: float | None
    volume_difference_ml: float | None


POLICY = (
    "A label absent from both images of a case is null and the case is left out of that label's means; "
    "absent from one of them, all its ratios and its surface Dice are 0, its distances the diagonal of the image."
)
ABSENT = Overlap(None, None, None, None, 0.0, 0.0, 0.0)
# A label absent from both images, whose size is unknown.
ABSENT_UNSIZED = Overlap(None, None, None, None, None, None, None)
MEASURES = tuple(field.name for field in fields(Overlap))


def label_overlaps(
    prediction: np.ndarray,
    reference: np.ndarray,
    values: Mapping[str, int | tuple[int, ...]],
    voxel_ml: float | None,
    ignore: int | None = None,
) -> dict[str, Overlap]:
    """Compare two label images in one pass over the voxels, whatever the number of labels.

    Args:
        prediction: integers (I, J, K).
        reference: integers (I, J, K), on the same grid.
        values: by name, the value of each label in the images, or all values of a region; regions may share values.
            Never 0. Voxels with other values count as background.
        voxel_ml: volume of a voxel in millilitres; None if it is unknown.
        ignore: value of ignored voxels in the reference; they are excluded from all measures, volumes included.

    Returns:
        The overlap of each label of `values`, in the same order.

    Raises:
        GridError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GridError(f"The prediction has shape {prediction.shape}, but its reference has {reference.shape}.")
    parts = {name: (value,) if isinstance(value, int) else value for name, value in values.items()}
    known = np.array(sorted({0}.union(*parts.values())), dtype=np.int64)
    places_of = {name: _places(np.array(one), known) for name, one in parts.items()}
    counts = np.zeros((3, len(known)), dtype=np.int64)
    mixed_overlap = dict.fromkeys(parts, 0)
    outermost = int(np.argmax(reference.strides))
    # Slice by slice along the outermost axis: contiguous reads and small temporaries.
    for predicted, true in zip(
        np.moveaxis(prediction, outermost, 0), np.moveaxis(reference, outermost, 0), strict=True
    ):
        foreground = (predicted != 0) | (true != 0)
        if ignore is not None:
            foreground &= true != ignore
        p, r = _places(predicted[foreground], known), _places(true[foreground], known)
        equal = p == r
        for total, places in zip(counts, (p, r, p[equal]), strict=True):
            total += np.bincount(places, minlength=len(known))
        # Two different values of one region overlap in that region, too.
        for name, places in places_of.items():
            if len(places) > 1:
                mixed_overlap[name] += int(np.count_nonzero(np.isin(p[~equal], places) & np.isin(r[~equal], places)))
    return {
        name: _overlap(counts[:, places].sum(axis=1), mixed_overlap[name], voxel_ml)
        for name, places in places_of.items()
    }


def dice(prediction: Any, reference: Any) -> float | None:
    """2 |P and R| / (|P| + |R|) of two masks.

    Args:
        prediction: array or CPU tensor of any shape; every nonzero value belongs to the mask.
        reference: the same, of the same shape.

    Returns:
        In [0, 1]; None where both are empty, 0 where one of them is.

    Raises:
        GridError: the shapes differ.
    """
    return _mask_overlap(prediction, reference).dice


def iou(prediction: Any, reference: Any) -> float | None:
    """|P and R| / |P or R| of two masks, see `dice`."""
    return _mask_overlap(prediction, reference).iou


def precision(prediction: Any, reference: Any) -> float | None:
    """|P and R| / |P| of two masks, see `dice`."""
    return _mask_overlap(prediction, reference).precision


def recall(prediction: Any, reference: Any) -> float | None:
    """|P and R| / |R| of two masks, see `dice`."""
    return _mask_overlap(prediction, reference).recall


def _mask_overlap(prediction: Any, reference: Any) -> Overlap:
    """The measures of two masks; volumes are numbers of voxels."""
    predicted, true = np.asarray(prediction) != 0, np.asarray(reference) != 0
    if predicted.shape != true.shape:
        raise GridError(f"The prediction has shape {predicted.shape}, but its reference has {true.shape}.")
    counts = (np.count_nonzero(predicted), np.count_nonzero(true), np.count_nonzero(predicted & true))
    return _overlap(np.array(counts), 0, 1.0)


def values_in(labels: np.ndarray) -> set[int]:
    """The values of all labels in an integer image (I, J, K), background 0 left out."""
    outermost = np.moveaxis(labels, int(np.argmax(labels.strides)), 0)
    return {value for part in outermost for value in np.unique(part[part != 0]).tolist()}


def _places(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The index of each value in the sorted `known`; other values get the index of 0."""
    places = np.minimum(np.searchsorted(known, labels), len(known) - 1)
    return np.where(known[places] == labels, places, np.searchsorted(known, 0))


def _overlap(counts: np.ndarray, mixed_overlap: int, voxel_ml: float | None) -> Overlap:
    """The measures of one label from its voxel counts.

    `counts`: in the prediction, in the reference, and in both with the same value; `mixed_overlap`: in both with two
    different values of a region.
    """
    predicted, true, same = counts.tolist()
    both = same + mixed_overlap
    if predicted + true == 0:
        return ABSENT_UNSIZED if voxel_ml is None else ABSENT
    counted = (true, predicted, predicted - true)
    volumes = [None if voxel_ml is None else volume_of(voxels, voxel_ml) for voxels in counted]
    return Overlap(
        dice=2 * both / (predicted + true),
        iou=both / (predicted + true - both),
        precision=both / predicted if predicted else 0.0,
        recall=both / true if true else 0.0,
        reference_ml=volumes[0],
        prediction_ml=volumes[1],
        volume_difference_ml=volumes[2],
    )
