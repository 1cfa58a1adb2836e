"""Connected components do not depend on where an array lies in memory."""

import numpy as np
import pytest
from scipy.ndimage import generate_binary_structure, label

from volseg.data.grid.connected import numbered_components

VIEWS = {
    "whole": lambda whole: whole,
    "every second": lambda whole: whole[::2, ::2, ::2],
    "a corner": lambda whole: whole[: len(whole) // 2, : whole.shape[1] // 2, : whole.shape[2] // 2],
    "a column": lambda whole: whole[::2, :1, :1],
    "other axes": lambda whole: whole.transpose(1, 2, 0)[::2],
    "backwards": lambda whole: whole[::-1, :, ::-1],
    "Fortran order": lambda whole: np.asfortranarray(whole)[1:],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("connectivity", "rank"), [(6, 1), (26, 3)])
def test_components_of_views_are_those_of_their_copies(view, connectivity, rank):
    rng = np.random.default_rng(0)
    for _ in range(100):
        whole = rng.random(2 * rng.integers(1, 6, 3)) < 0.3
        for values in (VIEWS[view](whole), VIEWS[view](whole.astype(np.uint8)), VIEWS[view](whole.astype(np.uint16))):
            numbers, count = numbered_components(values, connectivity)
            expected, number = label(values, generate_binary_structure(3, rank))
            assert count == number
            # The same voxels together, in whatever order they are numbered.
            assert len({*zip(numbers.ravel(), expected.ravel(), strict=True)}) == len(np.unique(expected))


def test_neighbours_of_other_values_are_components_of_their_own():
    values = np.array([[[1, 1, 2, 0, 1]]], np.uint8)
    numbers, count = numbered_components(values, 26)
    assert count == 3
    assert numbers.ravel().tolist() == [1, 1, 2, 0, 3]
