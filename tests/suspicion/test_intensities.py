"""Intensities that are those of another unit, or of an inverted image."""

import numpy as np
import pytest

from tests.pipeline import tiny_plan
from volseg.config import LEVELS, Channel, ScanRanges
from volseg.data.grid.histogram import comparable, intensity_quantiles, sampled, sampling_steps
from volseg.suspicion.intensities import misfit, question_intensities

CT = Channel(name="CT", normalisation="ct", clip=(-150, 280), mean=60, std=80, mean_range=(-700, -100))
LENGTHS = ((1.0, 1.0),) * 3


def ct() -> np.ndarray:
    """A ball of soft tissue in air, with fat and bone: (24, 24, 24) int16, mean about -560 HU."""
    rng = np.random.default_rng(4)
    away = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0)
    values = np.where(away < 11, 40, -1000) + np.where(away < 4, 700, 0) - np.where((away > 9) & (away < 11), 140, 0)
    return (values + rng.normal(0, 10, away.shape)).astype(np.int16)


def skewed() -> np.ndarray:
    """An MR scan, most of it dark."""
    return np.random.default_rng(2).gamma(2.0, 100.0, (24, 24, 24)).astype(np.float32)


def ranges_of(scan: np.ndarray, channel: Channel, width: float = 0.2) -> ScanRanges:
    quantiles = comparable(intensity_quantiles(scan), channel)
    return ScanRanges(
        spacing_mm=LENGTHS, extent_mm=LENGTHS, quantiles=(tuple((one - width, one + width) for one in quantiles),)
    )


def asked(scan: np.ndarray, channel: Channel = CT, ranges: ScanRanges | None = None) -> str:
    found = question_intensities([scan], tiny_plan(channels=(channel,), scan_ranges=ranges))
    assert {one.flag for one in found} <= {"intensity_suspect"}
    return " ".join(one.sentence for one in found)


def test_a_ct_in_hounsfield_units_is_not_suspect():
    assert asked(ct()) == ""
    # Padding outside the field of view of the scanner is no air.
    padded = ct()
    padded[:6] = -2048
    assert asked(padded) == ""
    # So much of it that the mean is below that of every training scan.
    for value in (-2000, -2048, -3024):
        for planes in range(len(padded) - 1):
            padded = ct()
            padded[:planes] = value
            assert "intercept" not in asked(padded)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255).astype(np.uint8), "was this CT converted to 8 bits?"),
        (lambda hu: np.clip((hu + 1000) / 2000, 0, 1).astype(np.float32), "was this CT rescaled to 0 to 1?"),
        (lambda hu: np.maximum(hu + 1024, 0), "shifted by 1024: are these raw stored values?"),
        (lambda hu: hu - 1024, "shifted by -1024: was the intercept applied twice?"),
    ],
)
def test_what_was_done_to_a_ct_is_named(change, words):
    assert words in asked(change(ct()))


def test_the_values_that_were_found_are_stated():
    assert "values 0 to 255" in asked(np.clip((ct() + 160) / 400 * 255, 0, 255).astype(np.uint8))


def test_a_ct_whose_training_scans_had_no_negative_values_may_have_none():
    bone = CT.model_copy(update={"clip": (100.0, 1500.0), "mean_range": (20.0, 60.0)})
    assert asked(np.maximum(ct(), 0), bone) == ""


@pytest.mark.parametrize("normalisation", ["none", "zscore"])
def test_the_rules_of_ct_are_for_ct_only(normalisation):
    channel = Channel(name="MRI", normalisation=normalisation, mean_range=(-700, -100))
    assert asked(np.clip(ct(), 0, 255), channel) == ""


def test_inverted_contrast_is_found_by_the_histogram_and_only_with_that_of_the_training_scans():
    scan, mr = skewed(), Channel(name="MRI")
    inverted = scan.max() - scan
    known = ranges_of(scan, mr)
    assert asked(scan, mr, known) == ""
    # Of MR, another scale and offset say nothing.
    assert asked(3 * scan + 1000, mr, known) == ""
    assert "is the contrast inverted?" in asked(inverted, mr, known)
    assert asked(inverted, mr) == ""


def test_a_histogram_like_no_training_scan_is_suspect_and_a_slightly_other_one_is_not():
    scan, mr = skewed(), Channel(name="MRI")
    known = ranges_of(scan, mr)
    half = scan.copy()
    half[:12] = 0
    assert "unlike that of any training scan" in asked(half, mr, known)
    noisy = scan + np.random.default_rng(0).normal(0, 0.3 * scan.std(), scan.shape)
    assert asked(noisy, mr, known) == ""


def test_zeros_around_a_masked_scan_do_not_count():
    scan, masked = skewed(), Channel(name="T1", normalisation="zscore_nonzero")
    known = ranges_of(scan, masked)
    wide = np.pad(scan, 12)
    assert asked(wide, masked, known) == ""
    assert "unlike" in asked(wide, Channel(name="T1"), known)


def test_of_several_channels_the_suspect_one_is_named():
    channels = tuple(Channel(name=name) for name in ("FLAIR", "T1"))
    scan = skewed()
    one = ranges_of(scan, channels[0]).quantiles[0]
    ranges = ScanRanges(spacing_mm=LENGTHS, extent_mm=LENGTHS, quantiles=(one, one))
    network = tiny_plan().network.model_copy(update={"in_channels": 2})
    plan = tiny_plan(channels=channels, scan_ranges=ranges, network=network)
    (found,) = question_intensities([scan, scan.max() - scan], plan)
    assert found.sentence.startswith("Intensities of channel T1: bright and dark are exchanged")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_constant_and_extreme_values_have_quantiles(scale):
    values = np.full((4, 4, 4), scale, np.float32)
    mean, deviation, *quantiles = intensity_quantiles(values)
    assert len(quantiles) == len(LEVELS)
    assert deviation == pytest.approx(0, abs=1e-6 * scale)
    assert set(comparable((mean, 0.0, *quantiles), Channel())) == {0.0}
    assert intensity_quantiles(np.zeros((4, 4, 4)), masked=True) == (0.0,) * (2 + len(LEVELS))


@pytest.mark.parametrize(
    ("shape", "steps"), [((8, 8, 8), (1, 1, 1)), ((64, 64, 64), (4, 4, 4)), ((4096, 3, 1), (4, 1, 1))]
)
def test_few_voxels_of_a_large_scan_are_looked_at_and_all_of_a_small_one(shape, steps):
    assert sampling_steps(shape, 4096) == steps
    assert sampled(np.empty(shape), 4096).size <= 4096


def test_a_misfit_is_relative_to_the_width_of_the_range():
    assert misfit([1.0, 2.0], [(0, 1), (1, 3)]) == 0
    assert misfit([1.5, 5.0], [(0, 1), (1, 3)]) == 1.0
    assert misfit([0.1], [(0, 0)]) == pytest.approx(0.5)
