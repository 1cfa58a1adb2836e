"""Metrics on arrays; see `volseg.evaluation.overlap` and `volseg.evaluation.distances` for empty masks.

>>> import numpy as np
>>> from volseg.metrics import dice, surface_distances
>>> prediction, reference = np.zeros((2, 20, 20, 20), bool)
>>> reference[5:15, 5:15, 5:15] = prediction[5:15, 5:15, 7:17] = True
>>> dice(prediction, reference)
0.8
>>> distances = surface_distances(prediction, reference, spacing_mm=(1.0, 1.0, 1.5))
>>> distances.hausdorff(), distances.hausdorff(95), round(distances.surface_dice(tolerance_mm=1.0), 3)
(3.0, 3.0, 0.706)
"""

from volseg.evaluation.distances import SurfaceDistances, surface_distances
from volseg.evaluation.lesions import Lesion, Lesions, match_lesions
from volseg.evaluation.overlap import Overlap, dice, iou, label_overlaps, precision, recall

__all__ = [
    "Lesion",
    "Lesions",
    "Overlap",
    "SurfaceDistances",
    "dice",
    "iou",
    "label_overlaps",
    "match_lesions",
    "precision",
    "recall",
    "surface_distances",
]
