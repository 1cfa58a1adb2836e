"""Contours of masks: filled by the rule of the pixel's centre they are the mask again, whatever it looks like."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path
from skimage.draw import polygon2mask

from volseg.dicom.contours import outlines

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
DIAGONAL = np.eye(3, dtype=bool)
RING = np.pad(np.zeros((2, 3), dtype=bool), 2, constant_values=True)
# A ring with a ring in its hole, which has a ring in its hole.
NESTED = np.array([[min(i, j, 10 - i, 10 - j) % 2 == 0 for j in range(11)] for i in range(11)])
# Holes above each other, beside each other and touching at a corner.
SIEVE = np.array([[not (i % 2 and j % 2) for j in range(9)] for i in range(7)])
# One connected part with hundreds of holes, as of a network that is unsure everywhere.
NOISE = np.random.default_rng(0).random((70, 60)) < 0.8
CHESS = np.indices((6, 7)).sum(axis=0) % 2 == 0


def contours_of(mask, keyhole=True):
    found = list(outlines(mask.astype(np.uint8)[:, :, None], {1: (1,)}, keyhole))
    return found[0].contours if found else []


def by_matplotlib(contours, shape):
    centres = np.indices(shape).reshape(2, -1).T.astype(float)
    filled = np.zeros(shape, dtype=bool)
    for ring in contours:
        filled ^= Path(np.vstack([ring, ring[:1]]), closed=True).contains_points(centres).reshape(shape)
    return filled


def by_skimage(contours, shape):
    filled = np.zeros(shape, dtype=bool)
    for ring in contours:
        filled ^= polygon2mask(shape, ring)
    return filled


def signed_area(ring):
    (i, j), (to_i, to_j) = ring.T, np.roll(ring, -1, axis=0).T
    return float((i * to_j - to_i * j).sum() / 2)


def crosses(ring):
    """Whether two edges of a ring cross at a point inside both."""
    start, end = ring, np.roll(ring, -1, axis=0)

    def side(a, b, p):
        return np.sign((b - a)[..., 0] * (p - a)[..., 1] - (b - a)[..., 1] * (p - a)[..., 0])

    a, b, c, d = start[:, None], end[:, None], start[None], end[None]
    return bool(((side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)).any())


@pytest.mark.parametrize("keyhole", [True, False])
@settings(max_examples=300, deadline=None)
@given(mask=MASKS)
@example(mask=np.ones((1, 1), dtype=bool))
@example(mask=DIAGONAL)
@example(mask=DIAGONAL[::-1])
@example(mask=RING)
@example(mask=NESTED)
@example(mask=SIEVE)
@example(mask=CHESS)
@example(mask=NOISE)
@example(mask=np.ones((5, 8), dtype=bool))
def test_filling_gives_the_mask_back(mask, keyhole):
    contours = contours_of(mask, keyhole)
    for filled in (by_matplotlib(contours, mask.shape), by_skimage(contours, mask.shape)):
        np.testing.assert_array_equal(filled, mask)
    if keyhole:
        # Then no contour lies inside another, so that software that adds contours up finds the same.
        union = [by_matplotlib([ring], mask.shape) for ring in contours]
        assert sum(map(np.sum, union)) == mask.sum()


@pytest.mark.parametrize("keyhole", [True, False])
@settings(max_examples=300, deadline=None)
@given(mask=MASKS)
@example(mask=NESTED)
@example(mask=SIEVE)
def test_contours_are_clean(mask, keyhole):
    for ring in contours_of(mask, keyhole):
        assert len(ring) >= 3
        assert (np.abs(ring - np.roll(ring, -1, axis=0)).max(axis=1) > 0).all(), "a point twice in a row"
        assert not crosses(ring)
        # Clear of the centres of pixels by far more than decimals are rounded to.
        assert np.abs(ring - np.round(ring)).max(axis=1).min() >= 0.25


@settings(max_examples=100, deadline=None)
@given(mask=MASKS)
def test_outer_contours_run_one_way_and_holes_the_other(mask):
    joined, apart = contours_of(mask, True), contours_of(mask, False)
    assert all(signed_area(ring) > 0 for ring in joined)
    inner = [ring for ring in apart if signed_area(ring) < 0]
    assert len(apart) - len(inner) == len(joined)
    assert sum(map(signed_area, joined)) == pytest.approx(sum(map(signed_area, apart)))


def test_a_single_pixel_is_a_diamond_around_its_centre():
    mask = np.zeros((4, 6), dtype=bool)
    mask[2, 5] = True
    (ring,) = contours_of(mask)
    assert {tuple(point) for point in ring} == {(1.5, 5.0), (2.0, 4.5), (2.5, 5.0), (2.0, 5.5)}
    assert len(ring) == 4


def test_a_rectangle_has_eight_points_half_a_pixel_around_it():
    (ring,) = contours_of(np.ones((5, 3), dtype=bool))
    assert len(ring) == 8
    assert ring.min(axis=0).tolist() == [-0.5, -0.5]
    assert ring.max(axis=0).tolist() == [4.5, 2.5]
    assert signed_area(ring) == 5 * 3 - 4 / 8


def test_pixels_that_touch_at_a_corner_are_contours_of_their_own():
    assert len(contours_of(DIAGONAL)) == 3


@pytest.mark.parametrize(("keyhole", "count"), [(True, 3), (False, 6)])
def test_an_island_in_a_hole_is_a_contour_of_its_own(keyhole, count):
    # Three rings inside each other.
    assert len(contours_of(NESTED, keyhole)) == count


def test_a_bridge_is_walked_twice_and_runs_beside_the_centres():
    (ring,) = contours_of(RING)
    steps = np.roll(ring, -1, axis=0) - ring
    upright = ring[(steps[:, 0] == 0) & (np.abs(ring[:, 0] % 1 - 0.25) < 1e-9), 0]
    assert len(upright) == 2
    assert len(set(upright)) == 1
    assert len(contours_of(RING, keyhole=False)) == 2


def test_labels_are_told_apart_by_slice_and_value():
    labels = np.zeros((6, 5, 4), dtype=np.uint16, order="F")
    labels[1:4, 1:3, 1] = 2
    labels[4, 3, 1:3] = 300
    labels[0, 0, 3] = 7
    found = list(outlines(labels, {2: (2,), 300: (300,)}))
    assert [(one.slice, one.label) for one in found] == [(1, 2), (1, 300), (2, 300)]
    for one in found:
        filled = by_matplotlib(one.contours, labels.shape[:2])
        np.testing.assert_array_equal(filled, labels[:, :, one.slice] == one.label)


def test_no_label_gives_no_contour():
    assert not list(outlines(np.zeros((4, 4, 3), dtype=np.uint8), {1: (1,)}))


def test_a_region_is_the_union_of_its_values():
    labels = np.zeros((8, 6, 2), dtype=np.uint8)
    labels[1:3, 1:5, 0], labels[3:6, 2:4, 0], labels[6, 2, 0] = 1, 2, 3
    found = list(outlines(labels, {1: (1, 2, 4), 2: (2,), 9: (9,)}))
    assert [(one.slice, one.label) for one in found] == [(0, 1), (0, 2)]
    for one, values in zip(found, ((1, 2), (2,)), strict=True):
        assert len(one.contours) == 1
        np.testing.assert_array_equal(by_matplotlib(one.contours, labels.shape[:2]), np.isin(labels[:, :, 0], values))
