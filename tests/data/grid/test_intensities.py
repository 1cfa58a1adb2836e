"""A large offset, or values at the ends of float32, change nothing in the normalised scan."""

import numpy as np
import pytest

from volseg.config import Channel
from volseg.data.grid.body import body_box
from volseg.data.grid.intensities import PLAIN, as_exact_float, mean_and_std, reference_for
from volseg.data.grid.preprocess import normaliser

RNG = np.random.default_rng(0)
SCAN = RNG.integers(0, 1000, (6, 7, 8))
SCAN[0, 0, 0] = 0
MASK = SCAN > 300


def normalised(normalisation, array, mask=None):
    return normaliser(Channel(normalisation=normalisation), array, mask)(0, len(array))


OFFSETS = [
    (np.uint16, 64000),
    (np.int16, -32768),
    (np.int32, 2**31 - 1000),
    (np.int32, -(2**31)),
    (np.uint32, 2**32 - 1000),
    (np.int64, 2**62),
    (np.int64, -(2**63)),
    (np.uint64, 2**64 - 1000),
    (np.float64, 1e10),
    (np.float64, -1e12),
    (np.float32, 2.0**23),
]


@pytest.mark.parametrize(("kind", "offset"), OFFSETS)
@pytest.mark.parametrize("normalisation", ["zscore", "rescale", "zscore_nonzero"])
def test_an_offset_does_not_matter_bit_by_bit(normalisation, kind, offset):
    mask = MASK if normalisation == "zscore_nonzero" else None
    if mask is None:
        expected = normalised(normalisation, SCAN.astype(np.int16))
    else:
        # Relative to the lowest voxel inside of the mask.
        inside = (SCAN - SCAN[MASK].min()).astype(np.float32)
        expected = np.where(MASK, (inside - np.float32(inside[MASK].mean(dtype=np.float64))), 0)
        expected /= np.float32(inside[MASK].std(dtype=np.float64))
    array = np.array([int(value) + int(offset) for value in SCAN.ravel()]).reshape(SCAN.shape).astype(kind)
    np.testing.assert_array_equal(normalised(normalisation, array, mask), expected)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shift", [0, 10, 5000])
def test_usual_scans_are_converted_directly(kind, shift):
    array = (SCAN + shift).astype(kind)
    mean, std = mean_and_std(array, None)
    assert reference_for(array, None, mean, std) is PLAIN
    values = array.astype(np.float32)
    expected = (values - np.float32(array.mean(dtype=np.float64))) / np.float32(array.std(dtype=np.float64))
    np.testing.assert_allclose(normalised("zscore", array), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-45, 1e-36, 1e35, 3e35])
@pytest.mark.parametrize("normalisation", ["zscore", "zscore_nonzero", "rescale"])
def test_values_at_the_ends_of_float32(normalisation, scale):
    mask = MASK if normalisation == "zscore_nonzero" else None
    scan = SCAN if mask is None else np.where(mask, SCAN, 0)
    expected = normalised(normalisation, scan.astype(np.int16), mask)
    np.testing.assert_allclose(normalised(normalisation, scan * scale, mask), expected, rtol=1e-5, atol=1e-6)


def test_the_largest_and_the_smallest_number_together():
    largest = np.finfo(np.float32).max
    array = np.full((2, 3, 4), -largest)
    array[1, 2, 3] = largest
    found = normalised("zscore", array.astype(np.float32))
    # One of 24 voxels: sqrt(23) deviations above the mean.
    np.testing.assert_allclose(found[1, 2, 3], np.sqrt(23), rtol=1e-5)
    np.testing.assert_allclose(found[0], -1 / np.sqrt(23), rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 2**31, 10**10, 2**40])
def test_training_statistics_with_an_offset(offset):
    channel = Channel(normalisation="ct", clip=(offset + 100.0, offset + 900.0), mean=offset + 500.0, std=200.0)
    expected = (np.clip(SCAN, 100, 900) - 500) / 200
    for kind in (np.int64, np.float64, np.uint64):
        found = normaliser(channel, (SCAN + offset).astype(kind))(0, 6)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "offset"), [(np.uint32, 2**32 - 2000), (np.float64, 1e10)])
def test_the_box_of_the_body(kind, offset):
    array = np.zeros((20, 30, 30))
    array[5:15, 8:20, 10:22] = 900
    expected = body_box(array.astype(np.int16), (4.0, 4.0, 4.0))
    assert expected != ((0, 20), (0, 30), (0, 30))
    assert body_box((array + offset).astype(kind), (4.0, 4.0, 4.0)) == expected


def test_exact_floats():
    assert as_exact_float(SCAN).dtype == np.float32
    assert as_exact_float((SCAN[:0]).astype(np.int64)).dtype == np.float32
    far = as_exact_float(SCAN + 10**10)
    assert far.dtype == np.float64
    np.testing.assert_array_equal(far - 1e10, SCAN)
    assert as_exact_float(np.array([2**24, 2**24 + 2])).dtype == np.float32
