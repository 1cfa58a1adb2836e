"""Scaling stored values: float32 where it is precise enough, else exact."""

import numpy as np
import pytest

from tests.data.images import ramp
from volseg.data.io.readers.streams import scaled

KINDS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.uint64, np.float32]


def in_float32(array, slope, inter):
    return array.astype(np.float32) * np.float32(slope) + np.float32(inter)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "scaling", [(1.0, -10.0), (0.37, 0.0), (2.5, -102.4), (-1.0, 0.0), (1e-4, 1e-4), (0.5, -1024.0)]
)
def test_usual_scalings_are_computed_in_float32(kind, scaling):
    array = ramp((4, 4, 7), kind)
    found = scaled(array, *scaling)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, in_float32(array, *scaling))


def test_a_ct_with_noise_is_computed_in_float32():
    rng = np.random.default_rng(0)
    for kind in (np.int16, np.int32, np.uint16):
        array = rng.integers(0, 3000, (20, 20, 20)).astype(kind)
        for scaling in ((1.0, -1024.0), (0.71, -1024.0), (1.0, -8192.0), (0.9, 3000.0)):
            found = scaled(array, *scaling)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, in_float32(array, *scaling))


def test_without_a_scaling_nothing_is_copied():
    array = ramp()
    assert scaled(array, 1.0, 0.0) is array
    colour = np.zeros((2, 2, 2), [("R", "u1")])
    assert scaled(colour, 2.0, 1.0) is colour


@pytest.mark.parametrize(
    ("kind", "first", "slope", "inter", "result"),
    [
        (np.int32, -(2**31) + 5, 1, 2**31, np.float32),  # 5, 6, ...: exact in float32 after all
        (np.int32, -(2**31), 1, 2**32, np.uint32),
        (np.int16, -30000, 1, 2**30, np.int32),
        (np.int16, 30000, -3, -(2**30), np.int32),
        (np.uint16, 3, 1, 2**32 - 80, np.uint32),
        (np.uint32, 2**32 - 70, 1, -7, np.uint32),
        (np.int64, 2**62, 1, -5, np.int64),
        (np.uint64, 2**64 - 70, 1, -5, np.uint64),
        (np.uint64, 2**64 - 70, 1, -(2**63), np.int64),
        (np.int64, -(2**63), 1, 2**62, np.int64),
        (np.int64, -(2**63), -1, 0, np.uint64),
    ],
)
def test_large_whole_numbers_are_exact(kind, first, slope, inter, result):
    array = np.array([first + step for step in range(60)], dtype=kind).reshape(3, 4, 5)
    found = scaled(array, float(slope), float(inter))
    assert found.dtype == result
    assert [int(value) for value in found.ravel()] == [(first + step) * slope + inter for step in range(60)]


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.uint32, np.float32])
@pytest.mark.parametrize(("slope", "inter"), [(0.25, 1e7), (0.1, -1e9), (1e-3, 1e5), (3.0, 1e12 + 0.5)])
def test_large_offsets_that_are_no_whole_numbers_are_float64(kind, slope, inter):
    array = ramp(dtype=kind)
    found = scaled(array, slope, inter)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, array.astype(np.float64) * slope + inter)
    # A millionth of the range.
    assert np.abs((found - found.min()) - ramp() * slope).max() < 1e-6 * 59 * slope + 1e-3 * (inter > 1e11)


def test_random_scalings_are_right_within_two_millionths_of_the_range():
    rng = np.random.default_rng(2)
    for _ in range(300):
        kind = np.dtype(rng.choice(["i1", "u1", "i2", "u2", "i4", "u4"]))
        limits = np.iinfo(kind)
        span = int(min(10 ** rng.uniform(1, 9), limits.max - 1))
        low = int(rng.integers(limits.min, limits.max - span, endpoint=True))
        array = rng.integers(low, low + span, (5, 6, 7), endpoint=True).astype(kind)
        slope, inter = (
            float(np.float32(10 ** rng.uniform(-4, 3))),
            float(np.float32(rng.normal() * 10 ** rng.uniform(0, 9))),
        )
        found, true = scaled(array, slope, inter), array.astype(np.longdouble) * slope + inter
        # The product and the sum are rounded; float64 holds 53 bits.
        limit = 2e-6 * (true.max() - true.min()) + np.abs(true).max() * 2.0**-52
        assert np.abs(found - true).max() <= limit, (kind, low, span, slope, inter)


def test_nan_stays_where_it_is():
    array = ramp(dtype=np.float32)
    array[1, 2, 3] = np.nan
    found = scaled(array, 2.0, 1e9)
    assert np.isnan(found).sum() == 1
    assert np.isnan(found[1, 2, 3])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [*KINDS, np.float16, np.float64])
@pytest.mark.parametrize(
    "scaling", [(1.0, 1e300), (1e300, 0.0), (1e300, -1e300), (1.5, 1e39), (1e38, 1e38), (1.0, -1e308)]
)
def test_scalings_beyond_float32_are_computed_without_a_word(kind, scaling):
    """What is not finite, and what float32 cannot hold, is rejected later."""
    found = scaled(ramp((3, 4, 5), kind), *scaling)
    assert found.dtype in (np.float32, np.float64)
    assert not (np.abs(found.astype(np.longdouble)) < 1e30).all()
