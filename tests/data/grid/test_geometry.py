"""Geometry: names, sizes and positions of axes, and the exact mapping between image space and network space."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.small_cases import small_plan
from volseg.data.grid.geometry import LPS_FROM_RAS, Geometry, GridMap, map_to_network, ras_order
from volseg.errors import GridError

# Every voxel order along the world axes: 6 permutations times 8 flips.
STORAGES = [
    pytest.param(order, flips, id="".join("RAS"[world] if not flip else "LPI"[world] for world, flip in pairs))
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
    for pairs in [list(zip(order, flips, strict=True))]
]


def stored_affine(order, flips, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    """Affine of a volume whose stored axis `a` runs along world axis `order[a]`, backwards where flipped."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, flip) in enumerate(zip(order, flips, strict=True)):
        affine[world, axis] = -spacing[axis] if flip else spacing[axis]
    affine[:3, 3] = origin
    return affine


def rotation(degrees, axis):
    """Rotation about world axis `axis`."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, two = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[[one, one, two, two], [one, two, one, two]] = c, -s, s, c
    return matrix


def world_of(affine, shape):
    """World position of every voxel, (I, J, K, 3)."""
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"), axis=-1)
    return grid @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize(("order", "flips"), STORAGES)
def test_axis_codes_name_every_storage(order, flips):
    codes = "".join(("LPI" if flip else "RAS")[world] for world, flip in zip(order, flips, strict=True))
    assert Geometry((2, 3, 4), stored_affine(order, flips, (0.5, 2.0, 3.0))).axis_codes == codes


@pytest.mark.parametrize(("order", "flips"), STORAGES)
def test_ras_order_finds_each_axis(order, flips):
    world_axes, world_flips = ras_order(stored_affine(order, flips, (0.5, 2.0, 3.0)))
    for world in range(3):
        assert order[world_axes[world]] == world
        assert world_flips[world] == flips[world_axes[world]]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [-44, -20, 20, 44])
def test_oblique_below_45_degrees_keeps_its_names(degrees, axis):
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees, axis) * (0.7, 0.8, 4.0)
    geometry = Geometry((2, 3, 4), affine)
    assert geometry.axis_codes == "RAS"
    np.testing.assert_allclose(geometry.spacing_mm, (0.7, 0.8, 4.0), rtol=1e-12)


def test_ras_order_uses_each_axis_once_at_the_tie():
    affine = np.eye(4)
    affine[:3, :3] = rotation(45, 2)
    world_axes, _ = ras_order(affine)
    assert sorted(world_axes) == [0, 1, 2]
    wiggled = affine.copy()
    wiggled[:3, :3] += 1e-12 * np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]])
    assert ras_order(wiggled) == ras_order(affine)


def test_spacing_and_volume_of_a_sheared_grid():
    affine = np.array([[2, 1, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    geometry = Geometry((2, 3, 4), affine)
    np.testing.assert_allclose(geometry.spacing_mm, (2.0, np.sqrt(10.0), 4.0))
    assert geometry.voxel_ml == pytest.approx(0.024)  # the determinant, 2 * 3 * 4 mm3, not the product of spacings


def test_geometry_is_a_value():
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    geometry = Geometry((2, 3, 4), affine)
    affine[0, 0] = 9
    assert geometry.affine[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 9
    same = Geometry(np.array([2, 3, 4], dtype=np.int32), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert geometry == same
    assert hash(geometry) == hash(same)
    assert geometry != Geometry((2, 3, 5), geometry.affine)


@pytest.mark.parametrize(("shape", "affine"), [((2, 3), np.eye(4)), ((2, 3, 4), np.eye(3))])
def test_geometry_rejects_other_dimensions(shape, affine):
    with pytest.raises(GridError, match="Expected a shape of 3 sizes and a 4 x 4 affine"):
        Geometry(shape, affine)


def test_same_grid_measures_at_the_far_corner():
    geometry = Geometry((101, 11, 11), np.eye(4))
    scaled = np.eye(4)
    scaled[0, 0] = 1.00009  # 0.009 voxel at the last voxel
    assert geometry.same_grid(Geometry(geometry.shape, scaled))
    scaled[0, 0] = 1.00011
    assert not geometry.same_grid(Geometry(geometry.shape, scaled))
    assert not geometry.same_grid(Geometry((101, 11, 12), np.eye(4)))


def test_lps_is_its_own_inverse():
    np.testing.assert_array_equal(LPS_FROM_RAS @ LPS_FROM_RAS, np.eye(4))
    np.testing.assert_array_equal(LPS_FROM_RAS @ [1, 2, 3, 1], [-1, -2, 3, 1])


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(("order", "flips"), STORAGES)
def test_network_grid_is_the_same_however_it_was_stored(order, flips, axes):
    """D, H and W of the network are the plan's axes of the world."""
    sizes, spacing = np.array([3, 4, 5]), np.array([1.0, 2.0, 3.0])  # along R, A, S
    geometry = Geometry(sizes[list(order)], stored_affine(order, flips, spacing[list(order)]))
    world = world_of(geometry.affine, geometry.shape)
    grid = map_to_network(geometry, small_plan(axes=axes, spacing_mm=(1.0, 1.0, 1.0)))
    assert grid.box_shape == tuple(sizes[list(axes)])
    assert grid.spacing_mm == tuple(spacing[list(axes)])
    assert grid.shape == tuple((sizes * spacing)[list(axes)])
    for axis, direction in enumerate(axes):
        steps = np.diff(grid.into(world[..., direction]), axis=axis)
        np.testing.assert_array_equal(steps, spacing[direction])


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(("order", "flips"), STORAGES)
def test_a_plan_of_the_stored_order_only_transposes(order, flips, axes):
    geometry = Geometry((3, 4, 5), stored_affine(order, flips, (1.0, 2.0, 3.0)))
    grid = map_to_network(geometry, small_plan(orientation="stored", axes=axes, spacing_mm=(1.0, 1.0, 1.0)))
    array = np.arange(60).reshape(geometry.shape)
    np.testing.assert_array_equal(grid.into(array), array.transpose(axes))
    np.testing.assert_array_equal(grid.back(grid.into(array)), array)
    assert grid.spacing_mm == tuple(float(axis + 1) for axis in axes)
    assert grid.shape == tuple((3, 8, 15)[axis] for axis in axes)


def test_network_grid_takes_the_ratio_of_sizes():
    geometry = Geometry((10, 20, 7), np.diag([0.5, 0.8, 3.0, 1.0]))
    grid = map_to_network(geometry, small_plan(spacing_mm=(3.0, 1.0, 1.0)))
    assert grid.axes == (2, 0, 1)
    assert grid.box_shape == (7, 10, 20)
    assert grid.shape == (7, 5, 16)
    assert map_to_network(geometry, small_plan(spacing_mm=(99.0, 99.0, 99.0))).shape == (1, 1, 1)


def test_a_half_is_rounded_to_even_after_dividing_spacings_first():
    def size(count, current, new):
        affine = np.diag([current, 1.0, 1.0, 1.0])
        plan = small_plan(axes=(0, 1, 2), spacing_mm=(new, 1.0, 1.0))
        return map_to_network(Geometry((count, 1, 1), affine), plan).shape[0]

    assert [size(count, 1.0, 2.0) for count in (3, 5, 7)] == [2, 2, 4]
    # 5 * 0.6 / 0.4 would be 7.5, which rounds to 8.
    assert size(5, 0.6, 0.4) == 7


def test_a_box_is_cropped_from_the_oriented_scan():
    geometry = Geometry((10, 20, 7), np.diag([-0.5, 0.8, 3.0, 1.0]))
    box = ((1, 6), (2, 9), (0, 20))
    grid = map_to_network(geometry, small_plan(spacing_mm=(1.5, 0.5, 0.8)), box)
    assert grid.box == box
    assert grid.box_shape == (5, 7, 20)
    assert grid.shape == (10, 7, 20)
    array = np.arange(1400).reshape(geometry.shape)
    np.testing.assert_array_equal(grid.into(array), array[::-1].transpose(2, 0, 1)[1:6, 2:9])


@st.composite
def grid_maps(draw):
    stored = tuple(draw(st.integers(1, 6)) for _ in range(3))
    axes = draw(st.permutations(range(3)))
    flips = tuple(draw(st.booleans()) for _ in range(3))
    box = []
    for axis in axes:
        start = draw(st.integers(0, stored[axis] - 1))
        box.append((start, draw(st.integers(start + 1, stored[axis]))))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(3))
    return GridMap(stored, tuple(axes), flips, tuple(box), shape, (1.0, 1.0, 1.0))


@settings(max_examples=200, deadline=None)
@given(grid_maps())
def test_back_is_the_inverse_of_into(grid):
    array = np.arange(1, 1 + np.prod(grid.stored_shape)).reshape(grid.stored_shape)
    crop = grid.into(array)
    assert crop.shape == grid.box_shape
    stored = grid.back(crop.copy())
    np.testing.assert_array_equal(stored[stored != 0], array[stored != 0])
    assert (stored != 0).sum() == crop.size
    np.testing.assert_array_equal(grid.into(stored), crop)
    assert (grid.back(crop, outside=-1) == np.where(stored == 0, -1, stored)).all()


@settings(max_examples=50, deadline=None)
@given(grid_maps(), st.integers(1, 3))
def test_into_carries_leading_axes_along(grid, channels):
    array = np.random.default_rng(0).integers(0, 99, (channels, *grid.stored_shape))
    np.testing.assert_array_equal(grid.into(array), np.stack([grid.into(channel) for channel in array]))


def test_mapping_rejects_other_shapes():
    grid = map_to_network(Geometry((3, 4, 5), np.eye(4)), small_plan())
    with pytest.raises(GridError, match=r"scan's shape \(3, 4, 5\), found \(3, 4, 6\)"):
        grid.into(np.zeros((3, 4, 6)))
    with pytest.raises(GridError, match=r"a crop of shape \(5, 3, 4\), found \(3, 4, 5\)"):
        grid.back(np.zeros((3, 4, 5)))
