"""Positions, weights and contents of windows."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.inference.windows import Tile, axis_tiles, gaussian, read_window, window_constants, window_starts

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "starts"),
    [
        (10, 4, 0.5, [0, 2, 4, 6]),
        (9, 4, 0.5, [0, 2, 3, 5]),
        (5, 4, 0.5, [0, 1]),
        (4, 4, 0.5, [0]),
        (3, 6, 0.5, [-1]),
        (1, 6, 0.5, [-2]),
        (8, 4, 0.0, [0, 4]),
        (9, 4, 0.0, [0, 2, 5]),
        (137, 96, 0.5, [0, 41]),
        (145, 96, 0.5, [0, 24, 49]),
    ],
)
def test_windows_are_evenly_spaced_and_end_with_the_volume(
    size: int, patch: int, overlap: float, starts: list[int]
) -> None:
    assert window_starts(size, patch, overlap) == starts


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 64), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_weights_of_all_windows_add_up_to_one_at_every_voxel(size: int, patch: int, overlap: float) -> None:
    total = torch.zeros(size)
    for tile in axis_tiles(size, patch, overlap, CPU):
        assert tile.weight.min() > 0
        assert tile.upper - tile.lower == min(size, patch)
        total[tile.covered] += tile.weight
    torch.testing.assert_close(total, torch.ones(size), rtol=1e-6, atol=0)


def test_gaussian_has_sigma_of_an_eighth_and_its_peak_at_half_the_window() -> None:
    np.testing.assert_allclose(gaussian(16).numpy(), np.exp(-0.5 * ((np.arange(16) - 8) / 2.0) ** 2), rtol=1e-6)
    assert float(gaussian(96).min()) == pytest.approx(np.exp(-8.0))


def test_two_windows_blend_by_their_gaussians() -> None:
    first, second = axis_tiles(6, 4, 0.5, CPU)
    # Importance of the first, second, ... voxel of a window; the two windows share voxels 2 and 3.
    peak = gaussian(4).tolist()
    fractions = torch.tensor([peak[2] / (peak[2] + peak[0]), peak[3] / (peak[3] + peak[1])])
    torch.testing.assert_close(first.weight, torch.cat([torch.ones(2), fractions]))
    torch.testing.assert_close(second.weight, torch.cat([1 - fractions, torch.ones(2)]))


def test_reading_pads_a_short_axis_with_zeros_on_both_sides() -> None:
    volume = torch.arange(1.0, 13.0).reshape(1, 3, 2, 2)
    tiles = tuple(axis_tiles(size, patch, 0.5, CPU)[0] for size, patch in ((3, 2), (2, 5), (2, 2)))
    window = torch.full((1, 2, 5, 2), -9.0)
    read_window(volume, tiles, window)
    expected = torch.zeros(1, 2, 5, 2)
    expected[:, :, 1:3] = volume[:, :2]
    assert torch.equal(window, expected)


def tiles_of(shape, patch=(4, 4, 4)) -> list[list[Tile]]:
    return [axis_tiles(size, side, 0.5, CPU) for size, side in zip(shape, patch, strict=True)]


def test_a_window_is_constant_only_if_every_channel_is() -> None:
    volume = torch.ones(2, 4, 8, 4)
    volume[1] = -4
    volume[1, 3, 7, 3] = -4.000001
    found = window_constants(volume, tiles_of((4, 8, 4)))
    assert found.shape == (1, 3, 1, 2)
    assert found[0, :2, 0].tolist() == [[1, -4], [1, -4]]
    assert bool(found[0, 2, 0].isnan().all())
    volume[0] = float("nan")
    assert bool(window_constants(volume, tiles_of((4, 8, 4))).isnan().all())


def test_a_padded_window_is_constant_only_if_it_is_zero() -> None:
    for value, constant in ((0.0, True), (1.0, False)):
        found = window_constants(torch.full((1, 3, 8, 4), value), tiles_of((3, 8, 4)))
        assert bool(found.isnan().any()) is not constant


@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 999))
def test_constants_are_those_of_the_windows_as_they_are_read(shape, seed) -> None:
    volume = (torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed)) > 0.97).float()
    tiles = tiles_of(shape)
    found = window_constants(volume, tiles)
    for index in itertools.product(*(range(len(along)) for along in tiles)):
        window = torch.empty(2, 4, 4, 4)
        read_window(volume, tuple(along[i] for along, i in zip(tiles, index, strict=True)), window)
        is_constant = bool((window == window[:, :1, :1, :1]).all())
        assert bool(found[index].isnan().any()) is not is_constant
        if is_constant:
            assert torch.equal(found[index], window[:, 0, 0, 0])
