"""The way of a scan to the network's grid: values worked out by hand."""

import numpy as np
import pytest
import torch

from tests.pipeline import tiny_plan
from volseg.config import Channel, Label
from volseg.data.geometry import Geometry
from volseg.data.preprocess import classes_of, image_to_network, label_to_network, normaliser


def test_zscore_of_four_voxels():
    array = np.array([1, 3, 5, 7], dtype=np.int16).reshape(1, 2, 2)
    expected = (np.array([1, 3, 5, 7]) - 4) / np.sqrt(5)
    np.testing.assert_allclose(normaliser(Channel(), array)(array).ravel(), expected, rtol=1e-6)
    assert array.dtype == np.int16, "the scan itself is left as it was"


def test_ct_is_clipped_then_scaled_by_the_numbers_of_training():
    channel = Channel(normalisation="ct", clip=(-100.0, 300.0), mean=100.0, std=50.0)
    array = np.array([-1000, -100, 150, 3000], dtype=np.int16).reshape(1, 2, 2)
    np.testing.assert_allclose(normaliser(channel, array)(array).ravel(), [-4, -4, 1, 4])


def test_none_changes_nothing_but_the_dtype():
    array = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    found = normaliser(Channel(normalisation="none"), array)(array)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


def test_ct_without_numbers_is_refused():
    with pytest.raises(ValueError, match="needs clip, mean and std"):
        Channel(normalisation="ct")


def test_axes_flips_and_spacing_lead_to_the_plans_grid():
    # Stored as (A, L, S): network order is S, R, A, so R is stored axis 1, flipped.
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    affine = np.zeros((4, 4))
    affine[1, 0], affine[0, 1], affine[2, 2], affine[3, 3] = 1.5, -1.5, 2.0, 1.0
    plan = tiny_plan(channels=(Channel(normalisation="none"),))
    volume, grid = image_to_network([array], Geometry(array.shape, affine), plan)
    assert volume.shape == (1, 4, 3, 2)
    np.testing.assert_array_equal(volume[0].numpy(), array[:, ::-1].transpose(2, 1, 0))
    np.testing.assert_array_equal(grid.back(volume[0].numpy()), array)


def test_a_coarse_scan_is_resampled_to_the_plans_spacing():
    array = np.zeros((4, 4, 4), dtype=np.float32)
    array[:, :, 2:] = 1.0
    plan = tiny_plan(channels=(Channel(normalisation="none"),))
    volume, _ = image_to_network([array], Geometry(array.shape, np.diag([1.5, 1.5, 4.0, 1.0])), plan)
    assert volume.shape == (1, 8, 4, 4)
    # Half-pixel convention, twice as many planes: a step becomes 0, 1/4, 3/4, 1.
    np.testing.assert_allclose(volume[0, :, 0, 0].numpy(), [0, 0, 0, 0.25, 0.75, 1, 1, 1])


def test_label_values_become_class_indices_and_unknown_ones_background():
    plan = tiny_plan(labels=(Label(name="a", value=7), Label(name="b", value=300)))
    stored = np.array([0, 7, 300, 5], dtype=np.uint16).reshape(1, 2, 2)
    np.testing.assert_array_equal(classes_of(stored, plan).ravel(), [0, 1, 2, 0])


def test_labels_are_resampled_without_new_values():
    labels = np.random.default_rng(0).choice([0, 1, 2], size=(5, 6, 7)).astype(np.uint8)
    affine = np.diag([0.9, 2.3, 3.1, 1.0])
    moved = label_to_network(labels, Geometry(labels.shape, affine), tiny_plan())
    assert set(torch.unique(moved).tolist()) <= {0, 1, 2}


def test_slabs_make_no_difference(monkeypatch):
    array = np.random.default_rng(0).integers(-500, 500, size=(14, 17, 23)).astype(np.int16)
    geometry = Geometry(array.shape, np.diag([0.8, 1.9, 2.7, 1.0]))
    whole, _ = image_to_network([array], geometry, tiny_plan())
    monkeypatch.setattr("volseg.data.resample.SLAB_VOXELS", 600)
    monkeypatch.setattr("volseg.data.preprocess.SLAB_VOXELS", 600)
    parts, _ = image_to_network([array], geometry, tiny_plan())
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
