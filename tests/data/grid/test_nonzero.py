"""The bounding box of nonzero voxels and the filled mask, against scipy."""

import numpy as np
import pytest
from scipy import ndimage

from volseg.data.grid.nonzero import filled_nonzero, nonzero_box


def shell(shape=(9, 10, 11)):
    """A closed box of ones with zeros in it."""
    array = np.zeros(shape, dtype=np.int16)
    array[2:7, 3:8, 1:9] = 1
    array[3:6, 4:7, 2:8] = 0
    return array


@pytest.fixture(params=[1 << 22, 250, 1], autouse=True, ids=["one slab", "some planes", "plane by plane"])
def slab_voxels(request, monkeypatch):
    monkeypatch.setattr("volseg.data.grid.resample.SLAB_VOXELS", request.param)


def test_the_box_is_the_tightest_and_the_whole_grid_around_nothing():
    assert nonzero_box([shell()]) == ((2, 7), (3, 8), (1, 9))
    one = np.zeros((4, 5, 6), dtype=np.float32)
    assert nonzero_box([one]) == ((0, 4), (0, 5), (0, 6))
    one[3, 0, 5] = -0.5
    assert nonzero_box([one]) == ((3, 4), (0, 1), (5, 6))


def test_a_hole_is_closed_by_faces_and_opened_by_one_voxel():
    array = shell()
    assert filled_nonzero([array]).sum() == 5 * 5 * 8
    array[2, 3, 1] = 0  # a corner: the zeros behind it only touch it by an edge
    assert filled_nonzero([array]).sum() == 5 * 5 * 8 - 1
    array[2, 5, 5] = 0
    assert np.array_equal(filled_nonzero([array]), array != 0)


def test_two_channels_close_a_hole_together():
    one, two = shell(), np.zeros((9, 10, 11), dtype=np.float32)
    one[2, 5, 5], two[2, 5, 5] = 0, -3.0
    assert not filled_nonzero([one])[4, 5, 5]
    assert filled_nonzero([one, two])[4, 5, 5]
    two[8, 9, 10] = 1.0
    assert nonzero_box([one, two]) == ((2, 9), (3, 10), (1, 11))


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("shape", [(12, 13, 14), (1, 9, 9), (2, 20, 3)])
def test_cropping_first_changes_nothing_and_scipy_agrees(shape, fraction):
    for seed in range(5):
        array = np.random.default_rng(seed).random(shape) < fraction
        array[-1:] = array[:, :2] = False
        whole = ndimage.binary_fill_holes(array)
        d, h, w = (slice(*span) for span in nonzero_box([array]))
        assert np.array_equal(filled_nonzero([array]), whole)
        assert np.array_equal(filled_nonzero([array[d, h, w]]), whole[d, h, w])
        assert not whole.any() or not np.delete(whole, np.r_[d], 0).any()


def test_nothing_and_everything():
    assert not filled_nonzero([np.zeros((3, 4, 5))]).any()
    assert filled_nonzero([np.ones((3, 4, 5))]).all()
