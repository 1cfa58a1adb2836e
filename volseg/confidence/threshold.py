"""The expected Dice below which a label is flagged, chosen so that few clean scans are."""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from volseg.confidence.estimate import logit

# Of the logit of the expected Dice: standard deviations below the median, estimated by the median absolute deviation,
# which the few failures among the cases do not change. The fewer the cases, the less is known of both: then as many
# as a new value exceeds with this probability (Student's prediction interval).
DEVIATIONS, CERTAINTY = 4.0, 0.999
NORMAL = 1.4826
# Where low values are more frequent than that, at most this fraction of the clean cases is below.
MOST = 0.02
FEWEST = 5


def low_threshold(expected: Sequence[float]) -> float | None:
    """A threshold for the expected Dice of a label; None from fewer than `FEWEST` values.

    Args:
        expected: the expected Dice of clean cases that the model was not trained on.
    """
    if len(expected) < FEWEST:
        return None
    values = logit(np.array(expected, dtype=np.float64))
    median, count = np.median(values), len(values)
    deviation = NORMAL * np.median(np.abs(values - median))
    deviations = max(DEVIATIONS, stdtrit(count - 1, CERTAINTY) * np.sqrt(1 + 1 / count))
    lowest = min(median - deviations * deviation, np.quantile(values, MOST))
    return round(float(1 / (1 + np.exp(-lowest))), 6)
