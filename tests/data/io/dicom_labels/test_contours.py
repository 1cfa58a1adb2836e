"""Contours to masks, against rasterisers of others."""

import numpy as np
import pytest
from matplotlib.path import Path
from skimage.draw import polygon2mask

from volseg.data.io.dicom_labels.contours import area
from volseg.data.io.dicom_labels.contours import filled as filled_box

SIZE = (40, 30)


def filled(contours, size):
    """The mask of the whole slice."""
    box, mask = filled_box(contours, size)
    whole = np.zeros(size, bool)
    whole[box] = mask
    return whole


def star(seed, points=60, centre=(19.3, 14.7)):
    """A random simple polygon around a centre."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(3, 13, points)
    return np.array(centre) + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])


def circle(radius, centre=(19.3, 14.7), points=90, turn=1):
    angles = turn * np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.array(centre) + radius * np.column_stack([np.cos(angles), np.sin(angles)])


@pytest.mark.parametrize("seed", range(6))
def test_any_polygon_is_filled_as_others_fill_it(seed):
    points = star(seed)
    mask = filled([points], SIZE)
    assert np.array_equal(mask, polygon2mask(SIZE, points))
    i, j = np.meshgrid(*map(np.arange, SIZE), indexing="ij")
    inside = Path(np.concatenate([points, points[:1]]), closed=True).contains_points(
        np.column_stack([i.ravel(), j.ravel()])
    )
    assert np.array_equal(mask, inside.reshape(SIZE))
    assert mask.sum() > 30


@pytest.mark.parametrize("turn", [1, -1])
def test_a_contour_within_another_is_a_hole_whatever_its_direction_and_an_island_in_it_is_inside(turn):
    mask = filled([circle(12), circle(8, turn=turn), circle(3)], SIZE)
    i, j = np.meshgrid(*map(np.arange, SIZE), indexing="ij")
    far = np.hypot(i - 19.3, j - 14.7)
    sure = np.abs(far[..., None] - [12, 8, 3]).min(axis=2) > 0.05
    expected = (far < 12) & ~((far < 8) & (far > 3))
    assert np.array_equal(mask[sure], expected[sure])


@pytest.mark.parametrize("places", [(0, 0), (17, 40), (60, 5)])
def test_a_keyhole_is_the_same_hole(places):
    """The contour runs along the outer circle, through a cut to the inner one, around it and back through the cut."""
    outer, inner = circle(12), circle(8, turn=-1)
    outer, inner = np.roll(outer, -places[0], axis=0), np.roll(inner, -places[1], axis=0)
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1], outer[:1]])
    assert np.array_equal(filled([keyhole], SIZE), filled([outer, inner], SIZE))


def test_neighbours_that_share_a_contour_share_no_voxel_and_leave_none_out():
    """Also where the contour runs through voxel centres, here at I = 10 and J = 12."""
    left = [[2.5, 3.5], [10, 3.5], [10, 12], [2.5, 12]]
    right = [[10, 3.5], [20.5, 3.5], [20.5, 12], [10, 12]]
    both = [[2.5, 3.5], [20.5, 3.5], [20.5, 12], [2.5, 12]]
    one, two, whole = (filled([np.array(points)], SIZE) for points in (left, right, both))
    assert not (one & two).any()
    assert np.array_equal(one | two, whole)
    assert whole.sum() == 18 * 8


def test_contours_traced_from_voxel_centre_to_voxel_centre_give_back_their_mask():
    """As OpenCV traces masks: the outer contour and that of the hole both run through voxels of the mask."""
    mask = np.zeros(SIZE, bool)
    mask[5:15, 4:12] = True
    mask[8:11, 6:9] = False
    outer = np.array([[5, 4], [14, 4], [14, 11], [5, 11]], float)
    hole = np.array([[7, 6], [8, 5], [10, 5], [11, 6], [11, 8], [10, 9], [8, 9], [7, 8]], float)
    assert np.array_equal(filled([outer, hole], SIZE), mask)


def test_what_lies_beyond_the_slice_is_cut_off():
    points = circle(12, centre=(2.2, 28.4))
    larger = filled([points + 20], (80, 80))
    assert np.array_equal(filled([points], SIZE), larger[20 : 20 + SIZE[0], 20 : 20 + SIZE[1]])


def test_the_area_of_a_contour():
    assert area(np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0]])) == 6.0
