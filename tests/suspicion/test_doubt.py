"""Labels whose expected Dice is low, and results that are poor as a whole."""

import pytest

from tests.suspicion.calibrations import calibration_of
from volseg.confidence.estimate import Confidence
from volseg.inference.quality import LabelQuality
from volseg.suspicion.doubt import doubtful, in_words, is_poor

KNOWN = calibration_of(a=0.8, b=0.6, c=None)


def expecting(**dice) -> dict[str, Confidence]:
    return {name: Confidence(one) for name, one in dice.items()}


def of(**voxels) -> list[LabelQuality]:
    return [LabelQuality(name, 1, count, None, None, ()) for name, count in voxels.items()]


def test_a_label_below_its_own_threshold_is_doubtful():
    assert doubtful(expecting(a=0.79, b=0.61, c=0.1), KNOWN) == {"a": (0.79, 0.8)}
    assert doubtful(expecting(a=0.8, b=0.59), KNOWN) == {"b": (0.59, 0.6)}
    assert doubtful(expecting(a=None, d=0.1), KNOWN) == {}
    assert doubtful(expecting(a=0.1), None) == {}


def test_the_sentence_has_the_numbers():
    assert in_words({"a": (0.791, 0.8)}) == (
        "The expected Dice is low: a 0.79 (usual: 0.80 or more). Check the outlines before the volumes are used."
    )
    many = in_words({f"label {number}": (0.1, 0.5) for number in range(50)})
    assert "label 4 0.10" in many
    assert "label 5 " not in many


@pytest.mark.parametrize(
    ("voxels", "dice", "poor"),
    [
        ({"a": 100, "b": 100}, {"a": 0.9, "b": 0.7}, False),
        ({"a": 100, "b": 100}, {"a": 0.6, "b": 0.5}, True),
        # A large good label outweighs a small poor one, and the reverse.
        ({"a": 1000, "b": 10}, {"a": 0.85, "b": 0.1}, False),
        ({"a": 10, "b": 1000}, {"a": 0.85, "b": 0.1}, True),
        # Labels without a threshold or an expectation do not count.
        ({"a": 10, "c": 1000}, {"a": 0.85, "c": 0.1}, False),
        ({"a": 10, "b": 0}, {"a": 0.85, "b": None}, False),
        ({"a": 0, "b": 0}, {"a": None, "b": None}, True),
    ],
)
def test_a_result_is_poor_by_the_voxels_of_its_labels(voxels, dice, poor):
    assert is_poor(of(**voxels), expecting(**dice), KNOWN) == poor


def test_without_thresholds_no_result_is_poor():
    nothing = of(a=0), expecting(a=None)
    assert not is_poor(*nothing, None)
    assert not is_poor(*nothing, calibration_of(a=None))
