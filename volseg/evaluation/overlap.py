"""How well two label images on one grid overlap, label by label.

The empty-mask policy, stated here once and followed everywhere:

- A label absent from both images has no ratios: they are None, and the case is left out of that label's means.
- A label absent from one image only scores 0 in all four ratios, also where its own denominator is 0
  (the precision of an empty prediction, the recall of an empty reference).
- Volumes are always numbers; those of an absent label are 0 ml.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
    reference_ml: float
    prediction_ml: float
    volume_difference_ml: float


POLICY = (
    "A label absent from both images of a case is null and the case is left out of that label's means; "
    "absent from one of them, all its ratios are 0."
)
ABSENT = Overlap(None, None, None, None, 0.0, 0.0, 0.0)


def label_overlaps(
    prediction: np.ndarray, reference: np.ndarray, values: Mapping[str, int], voxel_ml: float
) -> dict[str, Overlap]:
    """Compare two label images in one pass over the voxels, whatever the number of labels.

    Args:
        prediction: integers (I, J, K).
        reference: integers (I, J, K), on the same grid.
        values: stored value of each label, by name; never 0. Voxels with other values count as background.
        voxel_ml: volume of a voxel in millilitres.

    Returns:
        The overlap of each label of `values`, in the same order.

    Raises:
        GridError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GridError(f"The prediction has shape {prediction.shape}, but its reference has {reference.shape}.")
    known = np.array(sorted({0, *values.values()}), dtype=np.int64)
    counts = np.zeros((3, len(known)), dtype=np.int64)
    outermost = int(np.argmax(reference.strides))
    # A slice of the outermost axis at a time: contiguous to read, and the temporaries stay small.
    for predicted, true in zip(
        np.moveaxis(prediction, outermost, 0), np.moveaxis(reference, outermost, 0), strict=True
    ):
        labelled = (predicted != 0) | (true != 0)
        p, r = _places(predicted[labelled], known), _places(true[labelled], known)
        for total, places in zip(counts, (p, r, p[p == r]), strict=True):
            total += np.bincount(places, minlength=len(known))
    place_of = {value: place for place, value in enumerate(known.tolist())}
    return {name: _overlap(counts[:, place_of[value]], voxel_ml) for name, value in values.items()}


def values_in(labels: np.ndarray) -> set[int]:
    """The values of all labels in an integer image (I, J, K), background 0 left out."""
    outermost = np.moveaxis(labels, int(np.argmax(labels.strides)), 0)
    return {value for part in outermost for value in np.unique(part[part != 0]).tolist()}


def _places(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where each value stands in the sorted `known`; a value that is not there stands where 0 does."""
    places = np.minimum(np.searchsorted(known, labels), len(known) - 1)
    return np.where(known[places] == labels, places, np.searchsorted(known, 0))


def _overlap(counts: np.ndarray, voxel_ml: float) -> Overlap:
    """The measures of one label from its voxel counts: in the prediction, in the reference, in both."""
    predicted, true, both = counts.tolist()
    if predicted + true == 0:
        return ABSENT
    return Overlap(
        dice=2 * both / (predicted + true),
        iou=both / (predicted + true - both),
        precision=both / predicted if predicted else 0.0,
        recall=both / true if true else 0.0,
        reference_ml=true * voxel_ml,
        prediction_ml=predicted * voxel_ml,
        volume_difference_ml=(predicted - true) * voxel_ml,
    )
