"""Labels of a result that are expected to overlap less with the truth than those of usual scans."""

from collections.abc import Mapping, Sequence

from volseg.confidence.estimate import Confidence
from volseg.inference.quality import LabelQuality
from volseg.modelfile.calibration import Calibration
from volseg.text import first_few

# Labels that a sentence lists.
LISTED = 5


def doubtful(confidence: Mapping[str, Confidence], calibration: Calibration | None) -> dict[str, tuple[float, float]]:
    """By name of the labels whose expected Dice is below the threshold of the model: this Dice, and the threshold."""
    known = calibration.labels if calibration else {}
    pairs = {name: (one.expected_dice, known[name].low_confidence) for name, one in confidence.items() if name in known}
    return {
        name: (dice, limit)
        for name, (dice, limit) in pairs.items()
        if dice is not None and limit is not None and dice < limit
    }


def in_words(doubts: Mapping[str, tuple[float, float]]) -> str:
    """A sentence about doubtful labels."""
    listed = [f"{name} {dice:.2f} (usual: {limit:.2f} or more)" for name, (dice, limit) in doubts.items()]
    return f"The expected Dice is low: {first_few(listed, LISTED)}. Check the outlines before the volumes are used."


def is_poor(
    measures: Sequence[LabelQuality], confidence: Mapping[str, Confidence], calibration: Calibration | None
) -> bool:
    """Whether a result as a whole is poor: by the expected Dice of its labels, weighted by their voxels.

    A result without any label is poor; one without a known threshold is not.
    """
    known = calibration.labels if calibration else {}
    limits = {name: one.low_confidence for name, one in known.items() if one.low_confidence is not None}
    if not limits:
        return False
    total = 0.0
    for measure in measures:
        found = confidence[measure.name].expected_dice
        if measure.name in limits and found is not None:
            total += measure.voxels * (found - limits[measure.name])
    return total < 0 or not any(measure.voxels for measure in measures)
