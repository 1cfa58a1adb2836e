"""Numbers of labels, against sums over the whole arrays."""

import math
import tracemalloc

import numpy as np
import pytest

from tests.dicom.whole_results import phantom
from volseg.config import Label
from volseg.data.grid.geometry import LPS_FROM_RAS, Geometry
from volseg.dicom.report.measurements import LabelNumbers, measure_labels

OBLIQUE = np.array([[0.9, 0.2, -1.0, 5.0], [-0.3, 0.7, 0.4, -8.0], [0.1, -0.5, 2.5, 12.0], [0, 0, 0, 1]])
ONE = (Label(name="one", value=1),)


def farthest_corners(mask, affine):
    """The longest distance between corners of pixels of one slice, by comparing all with all."""
    longest = 0.0
    for k in range(mask.shape[2]):
        i, j = np.nonzero(mask[:, :, k])
        corners = np.concatenate([np.stack([i + a, j + b], axis=1) for a in (-0.5, 0.5) for b in (-0.5, 0.5)])
        places = corners @ affine[:3, :2].T
        if len(places):
            longest = max(longest, np.linalg.norm(places[:, None] - places, axis=2).max())
    return longest


def reference(mask, image, affine):
    """The same numbers from whole arrays."""
    if not mask.any():
        return LabelNumbers(0)
    values = image[mask].astype(np.float64)
    centres = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    centre = LPS_FROM_RAS[:3, :3] @ centres.mean(axis=0)
    return LabelNumbers(
        int(mask.sum()), values.mean(), values.std(), tuple(centre.tolist()), farthest_corners(mask, affine)
    )


def assert_close(found, expected):
    assert found.voxels == expected.voxels
    for name in ("mean", "deviation", "centre_mm", "diameter_mm"):
        wanted = getattr(expected, name)
        assert getattr(found, name) == (None if wanted is None else pytest.approx(wanted, rel=1e-12, abs=1e-12)), name


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_all_numbers_are_those_of_whole_arrays(order, dtype):
    labels = np.asarray(phantom(), order=order)
    image = np.asarray(np.random.default_rng(0).normal(900, 300, labels.shape).astype(dtype), order=order)
    table = [Label(name=str(value), value=value) for value in (2, 1, 9)]
    found = measure_labels(labels, image, Geometry(labels.shape, OBLIQUE), table)
    for one, value in zip(found, (2, 1, 9), strict=True):
        assert_close(one, reference(labels == value, image, OBLIQUE))


@pytest.mark.parametrize("seed", range(8))
def test_scattered_voxels_in_sheared_slices(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((9, 7, 4)) < rng.choice([0.03, 0.2, 0.9])).astype(np.uint16)
    labels[rng.integers(9), rng.integers(7), 2] = 1
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4))
    image = rng.normal(size=labels.shape)
    (found,) = measure_labels(labels, image, Geometry(labels.shape, affine), ONE)
    assert_close(found, reference(labels == 1, image, affine))


def test_one_voxel_has_its_centre_its_diagonal_and_no_deviation():
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1, 2, 3] = 1
    affine = np.diag([3.0, 4.0, 5.0, 1.0])
    (found,) = measure_labels(labels, labels * 7, Geometry(labels.shape, affine), ONE)
    assert found == LabelNumbers(1, 7.0, 0.0, (-3.0, -8.0, 15.0), 5.0)


def test_the_diameter_is_that_of_one_slice_and_spans_gaps():
    labels = np.zeros((20, 5, 9), np.uint8)
    labels[3, 2, :] = 1  # 9 slices, of which each has one pixel
    labels[13, 2, 4] = 1
    (found,) = measure_labels(labels, labels, Geometry(labels.shape, np.diag([2.0, 1.0, 10.0, 1.0])), ONE)
    assert found.diameter_mm == pytest.approx(math.hypot(11 * 2.0, 1.0))


def test_a_region_is_the_union_of_its_parts():
    labels = phantom()
    image = np.random.default_rng(0).normal(size=labels.shape)
    table = [Label(name="both", value=1, parts=(1, 2)), Label(name="inner", value=2, parts=(2,))]
    found = measure_labels(labels, image, Geometry(labels.shape, OBLIQUE), table)
    assert_close(found[0], reference(labels > 0, image, OBLIQUE))
    assert_close(found[1], reference(labels == 2, image, OBLIQUE))


def test_a_large_mean_costs_no_digits_of_the_deviation():
    labels = np.ones((10, 10, 40), np.uint8)
    image = np.where(np.arange(40) % 2, 1e9 + 1, 1e9 - 1) * np.ones(labels.shape)
    (found,) = measure_labels(labels, image, Geometry(labels.shape, np.eye(4)), ONE)
    assert found.mean == 1e9
    assert found.deviation == pytest.approx(1.0, rel=1e-7)


def test_memory_is_that_of_slices():
    labels = np.asfortranarray(np.ones((256, 256, 64), np.uint8))
    image = np.asfortranarray(np.ones(labels.shape, np.int16))
    tracemalloc.start()
    measure_labels(labels, image, Geometry(labels.shape, np.eye(4)), ONE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A slice has 64 KiB of labels, and needs 8 bytes for each index and intensity.
    assert peak < labels.nbytes
