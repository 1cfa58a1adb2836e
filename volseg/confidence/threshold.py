"""The expected Dice below which a label is flagged, chosen so that few clean scans are."""

from collections.abc import Sequence

import numpy as np

from volseg.confidence.estimate import logit

# Of the logit of the expected Dice: standard deviations below the median, estimated by the median absolute deviation,
# which the few failures among the cases do not change.
DEVIATIONS = 4.0
NORMAL = 1.4826
# Where low values are more frequent than that, at most this fraction of the clean cases is below.
MOST = 0.02
FEWEST = 10


def low_threshold(expected: Sequence[float]) -> float | None:
    """A threshold for the expected Dice of a label; None from fewer than `FEWEST` values.

    Args:
        expected: the expected Dice of clean cases that the model was not trained on.
    """
    if len(expected) < FEWEST:
        return None
    values = logit(np.array(expected, dtype=np.float64))
    median = np.median(values)
    deviation = NORMAL * np.median(np.abs(values - median))
    lowest = min(median - DEVIATIONS * deviation, np.quantile(values, MOST))
    return round(float(1 / (1 + np.exp(-lowest))), 6)
