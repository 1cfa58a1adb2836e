"""Tilted stacks of slices: to an upright grid and back."""

import numpy as np
import pytest

from volseg.data.grid.geometry import Geometry
from volseg.data.grid.shear import back, find_shear, upright, upright_geometry

SPACING = (0.8, 1.25, 3.0)
# A rotation, so that no axis of the stack is one of the world.
TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])


def sheared(per_slice, order=(0, 1, 2), spacing=SPACING) -> np.ndarray:
    """An affine whose slices are displaced by so many voxels along I and J; its axes in another order if wanted."""
    columns = TURN * spacing
    columns[:, 2] += per_slice[0] * columns[:, 0] + per_slice[1] * columns[:, 1]
    affine = np.eye(4)
    affine[:3, :3] = columns[:, order]
    affine[:3, 3] = (10, -20, 30)
    return affine


def world(affine: np.ndarray, *indices: np.ndarray) -> np.ndarray:
    """World coordinates (3, ...) of voxel indices."""
    return np.tensordot(affine[:3, :3], np.stack(np.broadcast_arrays(*indices)), 1) + affine[:3, 3].reshape(3, 1, 1, 1)


def is_orthogonal(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)


def noise(shape=(7, 6, 9), dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(dtype)


@pytest.mark.parametrize("per_slice", [(0.0, 0.0), (5e-4, 0.0)])
def test_a_stack_without_tilt_is_left_alone(per_slice):
    array, affine = noise(), sheared(per_slice)
    found, grid = upright(array, affine)
    assert found is array
    assert grid is affine
    assert back(array, array.shape, affine) is array
    geometry = Geometry(array.shape, affine)
    assert upright_geometry(geometry) is geometry


def test_slices_that_are_no_rectangles_are_no_tilted_stack():
    affine = sheared((0.3, 0.2))
    affine[:3, 0] += 0.1 * affine[:3, 1]
    assert find_shear(affine) is None


@pytest.mark.parametrize(
    ("per_slice", "order"),
    [
        *(((1.0, 0.0), order) for order in [(0, 1, 2), (1, 0, 2)]),
        *(((-2.0, 1.0), order) for order in [(0, 1, 2), (2, 0, 1), (1, 2, 0), (1, 0, 2)]),
    ],
)
@pytest.mark.parametrize("memory", ["C", "F"])
def test_whole_voxels_come_back_exactly(per_slice, order, memory):
    affine = sheared(per_slice, order)
    array = noise().transpose(order).astype(np.int16, order=memory)
    found, grid = upright(array, affine)
    assert is_orthogonal(grid)
    returned = back(found, array.shape, affine)
    assert returned.flags.f_contiguous == found.flags.f_contiguous
    np.testing.assert_array_equal(returned, array)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_of_two_axes_that_could_be_the_stacks_the_last_one_is(order):
    affine = sheared((0.4, 0.0), order)
    assert find_shear(affine).axis == max(order.index(0), order.index(2))
    _, grid = upright(noise().transpose(order), affine)
    assert is_orthogonal(grid)


def test_whole_voxels_of_a_float32_affine_are_whole():
    affine = sheared((1.0, -1.0)).astype(np.float32).astype(np.float64)
    array = noise()
    found, _ = upright(array, affine)
    assert found.shape == (7 + 8, 6 + 8, 9)
    np.testing.assert_array_equal(back(found, array.shape, affine), array)


@pytest.mark.parametrize("per_slice", [(0.37, 0.0), (-0.61, 0.0), (0.25, -0.4), (1.5, 2.25)])
def test_every_voxel_keeps_its_place_in_the_world(per_slice):
    """A ramp in world coordinates is the same ramp on the upright grid."""
    shape, affine = (12, 11, 8), sheared(per_slice)
    slope = np.array([1.3, -0.7, 2.1])
    ramp = np.tensordot(slope, world(affine, *np.indices(shape)), 1)
    found, grid = upright(ramp, affine)
    assert is_orthogonal(grid)
    assert found.dtype == np.float32
    u, v, k = np.indices(found.shape)
    # The places of the upright grid in voxels of the slices.
    places = np.linalg.solve(affine[:3, :3], (world(grid, u, v, k) - affine[:3, 3].reshape(3, 1, 1, 1)).reshape(3, -1))
    i, j, stored_k = places.reshape(3, *found.shape)
    np.testing.assert_allclose(stored_k, k, atol=1e-9)
    inside = (i >= 0) & (i <= shape[0] - 1) & (j >= 0) & (j <= shape[1] - 1)
    assert inside.sum() > 0.5 * ramp.size
    expected = np.tensordot(slope, world(grid, u, v, k), 1)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-5, atol=1e-3)
    # More than half a voxel beyond a slice there is nothing.
    outside = (i < -0.5 - 1e-6) | (i > shape[0] - 0.5 + 1e-6) | (j < -0.5 - 1e-6) | (j > shape[1] - 0.5 + 1e-6)
    assert set(np.unique(found[outside])) <= {np.float32(ramp.min())}


def test_large_offsets_and_numbers_keep_their_digits():
    whole, array = sheared((2.0, -1.0)), noise(dtype=np.int64)
    for moved in (array + 2**31, array * 1e200):
        found, _ = upright(moved, whole)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(back(found, array.shape, whole), moved)
    half = sheared((0.5, -1.0))
    np.testing.assert_array_equal(upright(array + 2**31, half)[0] - 2**31, upright(array, half)[0])


@pytest.mark.parametrize("per_slice", [(0.37, 0.0), (-0.61, 0.3)])
def test_labels_go_to_the_nearest_voxel_of_the_slices(per_slice):
    geometry = Geometry((9, 8, 7), sheared(per_slice))
    grid = upright_geometry(geometry)
    labels = np.random.default_rng(1).integers(0, 5, grid.shape).astype(np.uint8)
    found = back(labels, geometry.shape, geometry.affine)
    places = np.linalg.inv(grid.affine) @ geometry.affine
    i, j, k = np.indices(geometry.shape)
    place = np.tensordot(places[:3, :3], np.stack([i, j, k]), 1) + places[:3, 3].reshape(3, 1, 1, 1)
    nearest = np.floor(place + 0.5).astype(int)
    np.testing.assert_array_equal(found, labels[tuple(nearest)])


def test_spacing_along_the_normal_and_the_angle():
    affine = sheared((0.0, 3.0 * np.tan(np.radians(15)) / 1.25))
    shear = find_shear(affine)
    assert shear.axis == 2
    assert shear.degrees == pytest.approx(15)
    grid = upright_geometry(Geometry((5, 6, 7), affine))
    assert grid.spacing_mm == pytest.approx(SPACING)
    assert grid.voxel_ml == pytest.approx(Geometry((5, 6, 7), affine).voxel_ml)


def test_a_sphere_segmented_upright_is_a_sphere_on_the_slices():
    spacing = (1.0, 1.0, 2.0)
    shape, affine = (60, 70, 26), sheared((0.0, 2.0 * np.tan(np.radians(15))), spacing=spacing)
    middle = world(affine, *np.array([30, 35, 13]).reshape(3, 1, 1, 1))
    true = np.linalg.norm(world(affine, *np.indices(shape)) - middle, axis=0) <= 18
    found, grid = upright(np.where(true, 1000, -1000).astype(np.int16), affine)
    assert grid[:3, 2] @ grid[:3, 1] == pytest.approx(0, abs=1e-9)
    labels = back((found > 0).astype(np.uint8), shape, affine) > 0
    dice = 2 * (labels & true).sum() / (labels.sum() + true.sum())
    assert dice > 0.97
    # Upright it is as round as on its slices: as wide along both axes of its middle slice.
    extent = [np.ptp(np.flatnonzero((found[:, :, 13] > 0).any(axis=axis))) for axis in (0, 1)]
    assert abs(extent[0] - extent[1]) <= 1
