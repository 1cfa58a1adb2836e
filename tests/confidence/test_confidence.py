"""Expected Dice, volume intervals and uncertainty: values known by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volseg.confidence.estimate import estimate, expected, soft_dice, without_removed
from volseg.confidence.estimator import Estimator
from volseg.confidence.fitting import _bounds, fit_map
from volseg.confidence.reliability import ReliabilityObserver
from volseg.confidence.sums import Sums, SumsObserver
from volseg.confidence.uncertainty import entropy
from volseg.modelfile.calibration import BINS, Calibration, LabelCalibration, Reliability

FLAT = Reliability(voxels=(0,) * BINS, probability=(0.0,) * BINS, frequency=(0.0,) * BINS, error=0.0)


def plan(labels=1, regions=False):
    def parts(value):
        return tuple(range(value, labels + 1)) if regions else (value,)

    values = range(1, labels + 1)
    every = [SimpleNamespace(name=f"label_{one}", value=one, stored_values=parts(one)) for one in values]
    return SimpleNamespace(regions=regions, labels=every)


def logits_of(probability: torch.Tensor) -> torch.Tensor:
    """Two classes (2, ...) whose softmax gives a label these probabilities."""
    return torch.stack([torch.zeros_like(probability), torch.logit(probability)])


@pytest.mark.parametrize("everywhere", [False, True], ids=["as on a CPU", "as on a GPU"])
def test_sums_of_known_probabilities_and_a_temperature(everywhere):
    observer = SumsObserver(plan(), [1.0, 2.0], everywhere)
    observer(0, logits_of(torch.tensor([0.8, 0.6, 0.3, 1e-9]).reshape(1, 2, 2)))
    observer(1, logits_of(torch.tensor([0.9, 0.1]).reshape(1, 1, 2)))
    sums = observer.sums
    assert sums.mask[:, 0].tolist() == [3, 3]
    assert sums.probability[0, 0] == pytest.approx(2.7, abs=1e-6)
    assert sums.overlap[0, 0] == pytest.approx(2.3, abs=1e-6)
    assert sums.variance[0, 0] == pytest.approx(0.16 + 0.24 + 0.21 + 0.09 + 0.09, abs=1e-6)
    assert soft_dice(sums)[0, 0] == pytest.approx(4.6 / 5.7, abs=1e-6)
    halved = [1 / (1 + math.sqrt((1 - p) / p)) for p in (0.8, 0.6, 0.9)]
    assert sums.overlap[1, 0] == pytest.approx(sum(halved), abs=1e-5)


@pytest.mark.parametrize("everywhere", [False, True], ids=["as on a CPU", "as on a GPU"])
def test_regions_share_voxels(everywhere):
    observer = SumsObserver(plan(2, regions=True), [1.0], everywhere)
    # The second region lies in the first: where its logit is above 0, both masks have the voxel.
    observer(0, torch.tensor([[-1.0, 2.0, 2.0], [-9.0, -3.0, 1.0]]).reshape(2, 1, 1, 3))
    assert observer.sums.mask[0].tolist() == [2, 1]
    assert observer.sums.overlap[0, 1] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_a_gpu_leaves_out_the_voxels_that_a_cpu_skips(regions):
    """Very many of them would outweigh a small label."""
    logits = torch.full((3, 10, 10, 10), -7.5)
    logits[0] = -7.5 if regions else 0
    logits[1, 0, 0] = 3
    one, other = (SumsObserver(plan(2 + regions, regions), [1.0, 1.05, 1.2], side) for side in (False, True))
    for observer in (one, other):
        observer(0, logits)
    for mine, theirs in zip(one.sums, other.sums, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    # At the highest temperature all of them count.
    assert one.sums.probability[2, 0] > one.sums.probability[1, 0] + 1


def test_what_postprocessing_removes_lowers_the_confidence():
    sums = Sums(*(np.array([value]) for value in (10.0, 10.0, 9.0, 1.0)))
    assert soft_dice(without_removed(sums, {0: 0.5}))[0] == pytest.approx(9 / 15)


def test_estimates_and_reasons():
    known = LabelCalibration(volume_low=-1, volume_high=2, error=0.05, cases=20)
    calibration = Calibration(labels={"a": known, "b": known}, before=FLAT, after=FLAT)
    sums = Sums(*(np.array(pair, float) for pair in ((100, 0, 50), (100, 0, 50), (90, 0, 45), (20, 0, 5))))
    found = estimate(sums, calibration, {"a": 1.0, "b": None, "c": 1.0}, 0.001)
    # Weight 1 on the logit, and nothing else: the confidence itself.
    assert found["a"].expected_dice == pytest.approx(0.9)
    assert (found["a"].volume_ml_low, found["a"].volume_ml_high) == pytest.approx((0.98, 1.04))
    third = estimate(sums, calibration, {"a": 4 / 3}, 0.001)["a"]
    # 1.3133... and 1.3733...: as many digits as an estimate has.
    assert (third.volume_ml_low, third.volume_ml_high) == (1.313, 1.373)
    assert (found["b"].expected_dice, found["b"].reason) == (None, "no voxel was given this label")
    assert found["c"].expected_dice is None
    assert "no calibration for this label" in found["c"].reason


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"volume_low": 1.0, "volume_high": -2.0}, "volume_low 1 is above volume_high -2"),
        ({"volume_low": 1.0}, "volume_low and volume_high belong together"),
        ({"lowest": (5.0,) * 6, "highest": (-5.0,) * 6}, "lowest has a number above"),
    ],
)
def test_a_card_whose_bounds_are_exchanged_is_rejected(damage, message):
    with pytest.raises(ValueError, match=message):
        LabelCalibration(**damage)


def test_the_largest_weights_of_a_card_overflow_nothing():
    with np.errstate(all="raise"):
        for weight, dice in ((1000.0, 1.0), (-1000.0, 0.0)):
            known = LabelCalibration(intercept=weight, weights=(weight,) * 6)
            assert expected(np.full(6, 100.0), known) == pytest.approx(dice)


def test_a_label_without_a_voxel_in_the_label_image_has_no_expected_dice():
    known = LabelCalibration(volume_low=-1, volume_high=2, low_confidence=0.5)
    calibration = Calibration(labels={"label_1": known}, before=FLAT, after=FLAT)
    observer = SumsObserver(plan(), [1.0])
    observer(0, logits_of(torch.tensor([0.6, 0.3]).reshape(1, 1, 2)))
    estimator = Estimator(SimpleNamespace(calibration=calibration), observer)
    for voxels, reason in ((0, "no voxel was given this label"), (2, None)):
        measured = SimpleNamespace(name="label_1", voxels=voxels, volume_ml=1.0 if voxels else None)
        found = estimator.confidence([measured], {}, 0.001)["label_1"]
        assert found.reason == reason
        assert (found.expected_dice is None) == (voxels == 0)


def test_intervals_cover_nine_of_ten_new_scores():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        low, high = _bounds(rng.normal(0.3, 1, 40).tolist())
        covered.append(low <= rng.normal(0.3, 1) <= high)
    assert 0.85 <= np.mean(covered) <= 0.95
    assert _bounds([0.0] * 8) == (None, None)


def test_the_map_finds_the_weights_of_synthetic_scans():
    rng = np.random.default_rng(1)
    rows = rng.normal(0, 1, (400, 6))
    dice = 1 / (1 + np.exp(-(0.5 + rows @ np.array([1.5, 0, 0.7, 0, 0, 0]))))
    intercept, weights = fit_map(rows, dice)
    assert intercept == pytest.approx(0.5, abs=0.1)
    assert weights == pytest.approx([1.5, 0, 0.7, 0, 0, 0], abs=0.15)


def test_the_temperature_of_scaled_logits_is_the_most_likely_one():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 100, 200, generator=generator) * 0.9 + 0.05
    target = (torch.rand(1, 100, 200, generator=generator) < truth).to(torch.uint8)
    observer = ReliabilityObserver(plan(), [1.0, 2.0, 3.0], target, [True])
    observer(0, 2 * logits_of(truth))
    assert int(np.argmin(observer.loss)) == 1


def test_entropy_is_0_where_certain_and_1_where_undecided():
    logits = torch.tensor([[100.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert entropy(logits, False, 1.0).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert entropy(torch.tensor([[100.0, 0.0], [-100.0, 50.0]]), True, 1.0).tolist() == pytest.approx([0, 1], abs=1e-6)
