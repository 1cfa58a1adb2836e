"""Resampling against torch, skimage and scipy, and its properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize
from torch.nn import functional as F

from volseg.config import Resampling
from volseg.data.grid.resample import (
    linear_stencil,
    nearest_index,
    resample_classes,
    resample_linear,
    resample_nearest,
    resample_slabs,
    separate_axis,
    spline_matrix,
)

CPU = torch.device("cpu")
sizes = st.integers(1, 9)


@settings(deadline=None)
@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.integers(0, 1000))
def test_linear_is_torchs_trilinear_with_half_pixels(source, target, seed):
    volume = torch.randn(2, *source, generator=torch.Generator().manual_seed(seed))
    theirs = F.interpolate(volume[None].double(), size=target, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(resample_linear(volume, target), theirs.float(), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 50), st.integers(1, 50))
def test_nearest_takes_the_nearest_centre_and_the_upper_of_two(source, target):
    found = nearest_index(source, target, CPU).tolist()
    for index, chosen in enumerate(found):
        # Twice the distance in units of 1 / target, so that everything is a whole number.
        distances = [abs((2 * index + 1) * source - (2 * one + 1) * target) for one in range(source)]
        tied = [one for one, distance in enumerate(distances) if distance == min(distances)]
        # A tie that floating point cannot represent exactly may go to either side.
        assert chosen == tied[-1] or (len(tied) == 2 and math.log2(target) % 1 and chosen == tied[0])


def test_nearest_agrees_with_scipy_for_all_sizes_including_ties():
    """`map_coordinates` at the positions that nnU-Net computes, in its order of operations."""
    for source in range(1, 201):
        for target in range(1, 201):
            place = source / target * (np.arange(target) + 0.5) - 0.5
            expected = ndimage.map_coordinates(np.arange(float(source)), place[None], order=0, mode="nearest")
            assert nearest_index(source, target, CPU).tolist() == expected.tolist(), (source, target)


def test_nearest_agrees_with_torch_for_all_sizes_including_ties():
    different = 0
    for source in range(1, 201):
        # As nnU-Net calls it: channels, and the other axes at their new size already.
        volume = torch.arange(float(source)).reshape(1, 1, -1, 1, 1).expand(1, 2, -1, 2, 3)
        for target in range(1, 201, 3):
            expected = F.interpolate(volume, size=(target, 2, 3), mode="nearest-exact")[0, 1, :, 1, 2].tolist()
            assert nearest_index(source, target, CPU, "torch").tolist() == expected, (source, target)
            different += nearest_index(source, target, CPU).tolist() != expected
    assert different > 100  # so the two rules are not one


@pytest.mark.parametrize(("source", "target", "rule"), [(12, 11, "scipy"), (12, 11, "torch"), (26, 11, "torch")])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_separate_nearest_axis_follows_the_rule(source, target, rule, axis):
    shape, wanted = [3, 3, 3], [3, 3, 3]
    shape[axis], wanted[axis] = source, target
    volume = np.zeros(shape, np.float32) + np.arange(source, dtype=np.float32).reshape(
        [-1 if one == axis else 1 for one in range(3)]
    )
    resampling = Resampling(order=1, separate="always", separate_order=0, nearest=rule)
    chosen = np.moveaxis(ours(volume, tuple(wanted), resampling, axis), axis, 0)[:, 0, 0]
    assert chosen.tolist() == nearest_index(source, target, CPU, rule).tolist()


def read_from(volume):
    """A function that reads planes of `volume` for `resample_slabs`, and the list of ranges that it was called with."""
    requests = []

    def read(start, stop):
        requests.append((start, stop))
        assert 0 <= start < stop <= volume.shape[-3]
        return torch.from_numpy(volume[..., start:stop, :, :].copy())

    return read, requests


def ours(volume, target, resampling, separate=None):
    return resample_slabs(read_from(volume)[0], volume.shape, target, resampling, separate).numpy()


def in_slices(volume, target, resampling, separate):
    """Each slice across the separate axis by skimage, then that axis by scipy."""
    shape = [size for axis, size in enumerate(target) if axis != separate]
    slices = [resize(one, shape, resampling.order, **EDGE) for one in np.moveaxis(volume.astype(float), separate, 0)]
    stack, size = np.stack(slices), target[separate]
    place = np.indices((size, *shape)).astype(float)
    place[0] = len(slices) / size * (place[0] + 0.5) - 0.5
    found = ndimage.map_coordinates(stack, place, order=resampling.separate_order, mode="nearest")
    return np.moveaxis(found, 0, separate)


def noise(shape, seed=0):
    # With plateaus, next to which splines overshoot.
    return np.random.default_rng(seed).normal(size=shape).clip(-1, 0.5).astype(np.float32)


EDGE = {"mode": "edge", "anti_aliasing": False}
# Up, down, both, odd, equal on some axes, one voxel thick, thin before and after.
SHAPES = [
    ((7, 9, 11), (13, 20, 12)),
    ((23, 31, 29), (8, 15, 10)),
    ((12, 9, 30), (30, 9, 11)),
    ((1, 8, 9), (1, 12, 5)),
    ((1, 1, 6), (3, 4, 13)),
    ((9, 10, 11), (1, 10, 1)),
    ((70, 3, 4), (2, 3, 5)),
]


@pytest.fixture(params=[1 << 22, 300, 1], ids=["one slab", "some planes", "plane by plane"])
def slab_voxels(request, monkeypatch):
    monkeypatch.setattr("volseg.data.grid.resample.SLAB_VOXELS", request.param)


@pytest.mark.usefixtures("slab_voxels")
@pytest.mark.parametrize(("source", "target"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_every_order_is_skimages(order, source, target):
    volume = noise(source)
    expected = resize(volume.astype(float), target, order, **EDGE)
    found = ours(volume, target, Resampling(order=order))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(volume), rtol=0)


@pytest.mark.usefixtures("slab_voxels")
@pytest.mark.parametrize(("source", "target"), SHAPES)
@pytest.mark.parametrize("separate", [0, 1, 2])
@pytest.mark.parametrize(("order", "separate_order"), [(3, 0), (3, 1), (3, 3), (1, 0), (1, 3), (0, 1)])
def test_a_separate_axis_is_skimage_by_slice_then_scipy(order, separate_order, separate, source, target):
    volume, resampling = noise(source), Resampling(order=order, separate_order=separate_order)
    expected = in_slices(volume, target, resampling, separate)
    found = ours(volume, target, resampling, separate)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(volume), rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.integers(0, 1000))
def test_cubic_is_skimages_whatever_the_sizes(source, target, seed):
    volume = noise(source, seed)
    expected = resize(volume.astype(float), target, 3, **EDGE)
    np.testing.assert_allclose(ours(volume, target, Resampling(order=3)), expected, atol=1e-5)


def test_splines_stay_in_the_range_of_the_volume_or_of_each_slice():
    volume = np.zeros((4, 12, 12), dtype=np.float32)
    volume[:, 4:8, 4:8] = np.array([1, 2, 3, 4], dtype=np.float32)[:, None, None]
    whole = ours(volume, (9, 30, 30), Resampling(order=3))
    assert (whole.min(), whole.max()) == (0, 4)
    slices = ours(volume, (4, 30, 30), Resampling(order=3), separate=0)
    assert slices.min() == 0
    assert slices.max(axis=(1, 2)).tolist() == [1, 2, 3, 4]
    # The separate axis is not clipped.
    assert ours(volume, (9, 30, 30), Resampling(order=3, separate_order=3), separate=0).max() > 4


@pytest.mark.parametrize("order", [0, 1, 3])
def test_each_plane_is_read_once_and_once_more_for_the_range(order, monkeypatch):
    monkeypatch.setattr("volseg.data.grid.resample.SLAB_VOXELS", 5 * 6 * 7)
    read, requests = read_from(noise((200, 6, 7)))
    resample_slabs(read, (200, 6, 7), (150, 5, 5), Resampling(order=order))
    count = [sum(start <= plane < stop for start, stop in requests) for plane in range(200)]
    assert max(count) == (2 if order > 1 else 1)
    # The first slab of a spline also needs planes beyond it.
    assert max(stop - start for start, stop in requests) <= (25 if order > 1 else 6)


@pytest.mark.parametrize("order", [0, 1])
def test_slabs_are_bounded_in_source_and_target(order, monkeypatch):
    monkeypatch.setattr("volseg.data.grid.resample.SLAB_VOXELS", 10 * 6 * 7)
    read, requests = read_from(noise((40, 6, 7)))
    resample_slabs(read, (40, 6, 7), (400, 6, 7), Resampling(order=order))
    # Ten planes are computed at a time, from one plane or, with its neighbours, three.
    assert max(stop - start for start, stop in requests) <= 3


@pytest.mark.usefixtures("slab_voxels")
def test_a_result_may_be_written_to_a_given_tensor():
    volume = noise((7, 9, 11))
    both = torch.full((2, 13, 20, 12), torch.nan)
    found = resample_slabs(read_from(volume)[0], volume.shape, (13, 20, 12), Resampling(order=3), out=both[1])
    assert found.data_ptr() == both[1].data_ptr()
    assert np.array_equal(both[1].numpy(), ours(volume, (13, 20, 12), Resampling(order=3)))
    assert both[0].isnan().all()


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 3, 4, 5]))
def test_rows_of_a_spline_sum_to_one_and_mirror_each_other(source, target, order):
    matrix = spline_matrix(source, target, order)
    assert matrix.shape == (target, source)
    torch.testing.assert_close(matrix.sum(1), torch.ones(target))
    torch.testing.assert_close(matrix.flip(0, 1), matrix, atol=1e-6, rtol=0)


ISO, THICK, TWO_THICK = (1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (0.24, 1.25, 1.25)


@pytest.mark.parametrize(
    ("separate", "current", "new", "axis"),
    [
        ("never", THICK, THICK, None),
        ("always", THICK, ISO, 1),
        ("always", (1.0, 1.0, 1.01), THICK, 2),
        ("always", ISO, THICK, None),
        ("always", TWO_THICK, THICK, None),
        ("anisotropic", ISO, ISO, None),
        ("anisotropic", THICK, (9.0, 1.0, 1.0), 1),
        ("anisotropic", ISO, (9.0, 1.0, 1.0), 0),
        ("anisotropic", ISO, (3.0, 1.0, 1.0), None),
        ("anisotropic", (3.01, 1.0, 1.0), ISO, 0),
        ("anisotropic", TWO_THICK, THICK, None),
        ("anisotropic", (0.24, 1.25, 1.25 + 1e-9), THICK, None),
    ],
)
def test_which_axis_is_resampled_separately(separate, current, new, axis):
    assert separate_axis(Resampling(separate=separate), current, new) == axis


def test_the_ratio_of_spacings_is_the_plans():
    assert separate_axis(Resampling(separate="anisotropic", anisotropy=1.5), (1.6, 1.0, 1.0), ISO) == 0
    assert separate_axis(Resampling(separate="anisotropic", anisotropy=1.7), (1.6, 1.0, 1.0), ISO) is None


def test_a_constant_stays_constant_bit_for_bit():
    volume = torch.full((5, 6, 7), 0.1)
    assert torch.equal(resample_linear(volume, (9, 4, 13)), torch.full((9, 4, 13), 0.1))


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("target", [(20, 30, 60), (37, 21, 50), (5, 64, 13)])
def test_with_antialiasing_coarser_axes_are_torchs_antialiased_ones(order, target):
    volume = np.random.default_rng(0).normal(size=(37, 64, 50)).astype(np.float32)
    expected = torch.from_numpy(volume)
    for axis, size in enumerate(target):
        if size < expected.shape[axis]:
            rows = expected.movedim(axis, -1)
            flat = rows.reshape(1, 1, -1, rows.shape[-1])
            found = F.interpolate(flat, size=(flat.shape[2], size), mode="bilinear", antialias=True)
            expected = found.reshape(*rows.shape[:-1], size).movedim(-1, axis)
    finer = Resampling(order=order)
    expected = ours(expected.numpy(), target, finer, None)
    np.testing.assert_allclose(ours(volume, target, Resampling(order=order, antialias=True), None), expected, atol=3e-5)


def test_antialiasing_uses_every_voxel_and_lowers_noise():
    """At a quarter of the resolution linear interpolation sees two of four voxels per axis, and keeps the noise."""
    noise = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    plain, averaged = (ours(noise, (16, 16, 16), Resampling(antialias=one), None) for one in (False, True))
    # The sum of squared weights: 1/2 per axis of two equal ones; 11/64 of a triangle over eight voxels.
    assert plain.std() == pytest.approx(0.5**1.5, rel=0.05)
    assert averaged.std() == pytest.approx((11 / 64) ** 1.5, rel=0.07)
    ones = np.full((64, 64, 64), 0.1, np.float32)
    np.testing.assert_allclose(ours(ones, (16, 16, 16), Resampling(antialias=True), None), 0.1, rtol=1e-6)


def test_classes_are_resampled_by_the_largest_share():
    """Of eight voxels that become one, five have class 2; a nearest neighbour would take one of them by its place."""
    classes = torch.tensor([[[2, 1], [2, 0]], [[2, 2], [1, 2]]], dtype=torch.uint8)
    assert resample_classes(classes, (1, 1, 1), Resampling(antialias=True)).tolist() == [[[2]]]
    random = torch.from_numpy(np.random.default_rng(0).integers(-1, 3, (6, 7, 8)).astype(np.int16))
    assert torch.equal(resample_classes(random, (6, 7, 8), Resampling()), random)
    doubled = resample_classes(random, (12, 14, 16), Resampling())
    assert doubled.dtype == torch.int16
    assert set(doubled.unique().tolist()) == {-1, 0, 1, 2}
    # A smooth boundary stays smooth: the edge of a half-space lies where it was, to a tenth of a voxel.
    half = (torch.arange(20) < 9).expand(4, 4, 20).to(torch.uint8)
    assert (resample_classes(half, (4, 4, 30), Resampling()) > 0).sum(-1).unique().tolist() in ([13], [14])


def test_the_same_shape_is_the_same_volume():
    volume = torch.randn(3, 4, 5)
    assert torch.equal(resample_linear(volume, (3, 4, 5)), volume)
    assert torch.equal(resample_nearest(volume, (3, 4, 5)), volume)
    for separate in (None, 0, 1, 2):
        assert np.array_equal(ours(volume.numpy(), (3, 4, 5), Resampling(order=3), separate), volume)


def test_labels_stay_labels_and_doubling_then_halving_gives_them_back():
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 3, 7], size=(4, 5, 6)).astype(np.uint8))
    doubled = resample_nearest(labels, (8, 10, 12))
    assert torch.equal(doubled, labels.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(resample_nearest(doubled, (4, 5, 6)), labels)


@pytest.mark.parametrize("source", [1, 2, 7])
def test_weights_are_a_convex_combination_of_neighbours(source):
    lower, upper, weight = linear_stencil(source, 11, CPU)
    assert ((weight >= 0) & (weight <= 1)).all()
    assert ((upper - lower) <= 1).all()
    assert lower.min() >= 0
    assert upper.max() <= source - 1
