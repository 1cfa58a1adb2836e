"""The threshold of a low expected Dice."""

import numpy as np
import pytest

from volseg.confidence.estimate import logit
from volseg.confidence.fitting import best_temperature, fit, left_out
from volseg.confidence.records import TEMPERATURES, LabelRecord, ScanRecord
from volseg.confidence.threshold import FEWEST, low_threshold


def usual(count=2000, centre=2.0, spread=0.2) -> np.ndarray:
    """Expected Dice whose logits are normal."""
    return 1 / (1 + np.exp(-np.random.default_rng(3).normal(centre, spread, count)))


def test_it_is_four_deviations_of_the_logit_below_the_median():
    assert float(logit(low_threshold(usual()))) == pytest.approx(2.0 - 4 * 0.2, abs=0.05)


def test_a_few_failures_among_the_cases_do_not_lower_it():
    values = usual()
    with_failures = np.concatenate([values, np.full(20, 0.1)])
    assert low_threshold(with_failures) == pytest.approx(low_threshold(values), abs=0.003)


def test_at_most_two_in_a_hundred_clean_cases_are_below_it_whatever_their_distribution():
    rng = np.random.default_rng(0)
    for values in (
        rng.beta(2, 2, 500),
        rng.uniform(0.1, 0.9, 500),
        1 - rng.beta(1, 20, 500),
        rng.choice([0.3, 0.9], 500),
    ):
        assert np.mean(values < low_threshold(values)) <= 0.02


def test_few_cases_have_none():
    assert low_threshold([0.9] * (FEWEST - 1)) is None
    assert low_threshold([0.9] * FEWEST) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("count", [FEWEST, 8, 12])
def test_from_few_cases_it_is_so_low_that_few_new_ones_are_below(count):
    rng = np.random.default_rng(0)
    below = []
    for _ in range(1000):
        values = 1 / (1 + np.exp(-rng.normal(2.0, 0.2, count + 20)))
        below.append(np.mean(values[count:] < low_threshold(values[:count])))
    assert np.mean(below) <= 0.02


def record(number: int, confidence: float) -> ScanRecord:
    """A clean scan with one label of this soft Dice confidence, whose Dice is a little lower."""
    sums = ((1000.0, 1000.0, 1000.0 * confidence, 100.0),) * len(TEMPERATURES)
    label = LabelRecord(dice=confidence - 0.03, reference_ml=1.0, volume_ml=1.0, sums=sums)
    bins = (((10.0, 5.0, 5.0),) * 10,) * len(TEMPERATURES)
    return ScanRecord(
        case=f"case {number}", group=number % 5, voxel_ml=0.001, labels={"a": label}, bins=bins,
        loss=(1.0,) * len(TEMPERATURES),
    )  # fmt: skip


def test_a_fit_stores_it_for_each_label_from_estimates_on_clean_scans_left_out():
    scans = [record(number, one) for number, one in enumerate(usual(60))]
    bad = [record(number, 0.2).model_copy(update={"kind": "noise", "bins": (), "loss": ()}) for number in range(20)]
    fitted = fit([*scans, *bad])
    found = left_out([*scans, *bad], "a", best_temperature(scans))
    clean = found.expected[found.scans < 60]
    limit = fitted.labels["a"].low_confidence
    assert limit == low_threshold(clean.tolist())
    assert np.mean(clean < limit) <= 0.02
    assert found.expected[found.scans >= 60].max() < limit
    assert fit(scans[:FEWEST]).labels["a"].low_confidence is not None
