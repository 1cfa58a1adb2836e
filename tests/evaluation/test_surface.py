"""Surfaces of masks: areas against MONAI's table and closed forms, and what both kinds take for the surface."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.metrics.utils import create_table_neighbour_code_to_surface_area

from volseg.evaluation.surface import corner_areas, corner_codes, surface_of

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 5.0), (10.0, 1.0, 1.0)]


def blob(seed: int, shape: tuple[int, int, int] = (12, 15, 18)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(scipy.ndimage.gaussian_filter(noise, 1.2) > 0.1)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_areas_of_all_256_neighbourhoods_are_those_of_monai(spacing_mm):
    expected, _ = create_table_neighbour_code_to_surface_area(spacing_mm)
    assert corner_areas(spacing_mm) == pytest.approx(torch.as_tensor(expected).numpy().ravel(), rel=1e-6)


def test_codes_are_the_bits_of_the_eight_voxels_around_a_corner():
    mask = blob(0)
    padded = np.pad(mask, 1)
    expected = np.zeros(np.array(mask.shape) + 1, int)
    for bit, offsets in enumerate(np.ndindex(2, 2, 2)):
        window = tuple(slice(start, start + edge + 1) for start, edge in zip(offsets, mask.shape, strict=True))
        expected += padded[window].astype(int) << (7 - bit)
    assert np.array_equal(corner_codes(mask), expected)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_the_area_of_a_box_is_that_of_its_faces_but_for_its_edges(spacing_mm):
    edges = np.array([20, 30, 40])
    mask = np.ones(edges, bool)
    a, b, c = edges * spacing_mm
    surface = surface_of(mask, spacing_mm, "corners")
    # Corners lie half a voxel outside of the centres, where edges are cut off.
    assert surface.weights.sum() == pytest.approx(2 * (a * b + b * c + a * c), rel=0.06)
    assert surface.points.sum() == np.prod(edges + 1) - np.prod(edges - 1)


def test_the_area_of_a_sphere():
    radius, centres = 25.0, np.indices((60, 60, 60)) - 29.5
    mask = (centres**2).sum(axis=0) <= radius**2
    area = surface_of(mask, (1.0, 1.0, 1.0), "corners").weights.sum()
    # Marching cubes over a mask, not over grey values, are a tenth too rough.
    assert 1.0 < area / (4 * np.pi * radius**2) < 1.12


def test_a_sheet_has_two_sides_and_a_voxel_eight_corners():
    sheet = np.zeros((10, 10, 10), bool)
    sheet[:, :, 5] = True
    inner = surface_of(sheet, (1.0, 1.0, 1.0), "corners").points[1:-1, 1:-1]
    assert inner.sum() == 2 * inner.shape[0] * inner.shape[1]
    assert surface_of(np.ones((1, 1, 1), bool), (1.0, 1.0, 1.0), "corners").points.sum() == 8
    assert surface_of(np.ones((1, 1, 1), bool), (1.0, 1.0, 1.0), "voxels").points.sum() == 1


@pytest.mark.parametrize("seed", range(3))
def test_voxels_of_the_surface_are_what_an_erosion_removes(seed):
    mask = blob(seed)
    mask[:5] = True
    expected = mask & ~scipy.ndimage.binary_erosion(mask)
    surface = surface_of(mask, (1.0, 1.0, 1.0), "voxels")
    assert np.array_equal(surface.points, expected)
    assert surface.weights is None
