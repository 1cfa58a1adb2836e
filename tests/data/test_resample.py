"""Resampling against torch's and skimage's convention, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from volseg.data.resample import linear_stencil, nearest_index, resample_linear, resample_nearest

CPU = torch.device("cpu")
sizes = st.integers(1, 9)


@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.integers(0, 1000))
def test_linear_is_torchs_trilinear_with_half_pixels(source, target, seed):
    volume = torch.randn(2, *source, generator=torch.Generator().manual_seed(seed))
    theirs = F.interpolate(volume[None].double(), size=target, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(resample_linear(volume, target), theirs.float(), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 50), st.integers(1, 50))
def test_nearest_takes_the_nearest_centre_and_the_lower_of_two(source, target):
    found = nearest_index(source, target, CPU).tolist()
    for index, chosen in enumerate(found):
        # Twice the distance in units of 1 / target, so that everything is a whole number.
        distances = [abs((2 * index + 1) * source - (2 * one + 1) * target) for one in range(source)]
        assert chosen == distances.index(min(distances))


def test_a_constant_stays_constant_bit_for_bit():
    volume = torch.full((5, 6, 7), 0.1)
    assert torch.equal(resample_linear(volume, (9, 4, 13)), torch.full((9, 4, 13), 0.1))


def test_the_same_shape_is_the_same_volume():
    volume = torch.randn(3, 4, 5)
    assert torch.equal(resample_linear(volume, (3, 4, 5)), volume)
    assert torch.equal(resample_nearest(volume, (3, 4, 5)), volume)


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
