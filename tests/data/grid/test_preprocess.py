"""Preprocessing of a scan to network space: values computed by hand."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.transform import resize

from tests.data.small_cases import region_plan, small_plan
from tests.pipeline import tiny_plan
from volseg.config import IGNORED, Channel, Label, NetworkConfig, Plan, Resampling
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import (
    classes_of,
    image_to_network,
    label_to_network,
    network_grid,
    normaliser,
    training_target,
)
from volseg.errors import InputError


def normalised(channel, array, mask=None):
    return normaliser(channel, array, mask)(0, len(array))


def imported_plan(channels, **changes) -> Plan:
    """A plan like nnU-Net's: native voxel order, cropped to nonzero voxels, cubic splines."""
    network = tiny_plan().network.model_dump() | {"in_channels": len(channels)}
    values = {"orientation": "stored", "axes": (2, 1, 0), "crop": "nonzero", "channels": channels}
    cubic = Resampling(order=3, separate="anisotropic")
    return tiny_plan(**{**values, "image_resampling": cubic, "network": NetworkConfig(**network), **changes})


def head(shape=(20, 22, 18), dtype=np.int16):
    """A ball of noise with a hole of zeros, in a scan that is zero around it."""
    rng = np.random.default_rng(0)
    place = np.indices(shape) - np.array([9, 12, 8]).reshape(3, 1, 1, 1)
    inside = (place**2).sum(0) < 36
    array = np.where(inside, rng.normal(100, 20, shape), 0).astype(dtype)
    array[8:11, 11:14, 7:10] = 0
    return array


def test_zscore_of_four_voxels():
    array = np.array([1, 3, 5, 7], dtype=np.int16).reshape(1, 2, 2)
    expected = (np.array([1, 3, 5, 7]) - 4) / np.sqrt(5)
    np.testing.assert_allclose(normalised(Channel(), array).ravel(), expected, rtol=1e-6)
    assert array.dtype == np.int16, "the scan itself is unchanged"


def test_ct_is_clipped_then_scaled_by_the_training_statistics():
    channel = Channel(normalisation="ct", clip=(-100.0, 300.0), mean=100.0, std=50.0)
    array = np.array([-1000, -100, 150, 3000], dtype=np.int16).reshape(1, 2, 2)
    np.testing.assert_allclose(normalised(channel, array).ravel(), [-4, -4, 1, 4])


def test_none_changes_only_the_dtype():
    array = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    found = normalised(Channel(normalisation="none"), array)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


def test_ct_without_statistics_is_rejected():
    with pytest.raises(ValueError, match="needs clip, mean and std"):
        Channel(normalisation="ct")


def test_rescaling_goes_from_0_to_1():
    channel = Channel(normalisation="rescale")
    array = np.array([-10, 0, 10, 30], dtype=np.int16).reshape(1, 2, 2)
    np.testing.assert_allclose(normalised(channel, array).ravel(), [0, 0.25, 0.5, 1])
    np.testing.assert_array_equal(normalised(channel, np.full((2, 2, 2), 7, np.uint8)), 0)


def test_rgb_is_divided_by_255_and_other_ranges_are_rejected():
    channel = Channel(name="red", normalisation="rgb")
    array = np.array([0, 51, 102, 255], dtype=np.uint8).reshape(1, 2, 2)
    np.testing.assert_allclose(normalised(channel, array).ravel(), [0, 0.2, 0.4, 1])
    for wrong in (-1, 256):
        with pytest.raises(InputError, match=f"Channel 'red' has intensities from .*{wrong}.* expected .* 0 to 255"):
            normaliser(channel, np.array([wrong, 7], dtype=np.int16).reshape(1, 1, 2))


def test_masked_zscore_is_over_and_inside_the_mask():
    array = np.array([0, 0, 1, 3, 5, 7], dtype=np.int16).reshape(1, 2, 3)
    expected = (np.array([1, 3, 5, 7]) - 4) / np.sqrt(5)
    found = normalised(Channel(normalisation="zscore_nonzero"), array, array > 0)
    np.testing.assert_allclose(found.ravel(), [0, 0, *expected], rtol=1e-6)
    nothing = normalised(Channel(normalisation="zscore_nonzero"), np.zeros_like(array), array > 9)
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("scale", [1e-6, 1e-12, 1e-30])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("normalisation", ["zscore", "zscore_nonzero", "rescale", "ct"])
def test_the_unit_of_a_scan_does_not_matter(normalisation, kind, scale):
    usual = np.array([1, 3, 5, 7], dtype=kind).reshape(1, 2, 2)

    def channel(unit):
        numbers = {"clip": (2 * unit, 6 * unit), "mean": 4 * unit, "std": 2 * unit} if normalisation == "ct" else {}
        return Channel(normalisation=normalisation, **numbers)

    mask = usual > 2
    expected = normalised(channel(1.0), usual, mask)[mask]
    assert expected.std() > 0.2
    found = normalised(channel(scale), (usual * scale).astype(kind), mask)[mask]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1e-12, 1e6 + 0.1, 1e-44])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("normalisation", ["zscore", "zscore_nonzero", "rescale"])
def test_a_constant_becomes_0_despite_rounding_errors_of_its_mean(normalisation, kind, value):
    # The mean of seven times 0.1 differs from 0.1, so the deviation is above 0; for 1e-44 it is 0 in float32.
    array = np.full((1, 1, 7), value, dtype=kind)
    found = normalised(Channel(normalisation=normalisation), array, array > 0)
    np.testing.assert_array_equal(found, 0)


def test_a_scan_is_transposed_and_flipped_to_network_space():
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


def test_ignored_voxels_belong_to_no_class():
    plan = tiny_plan(labels=(Label(name="a", value=7), Label(name="b", value=254)), ignore=255)
    stored = np.array([0, 7, 254, 255], dtype=np.uint8).reshape(1, 2, 2)
    classes = classes_of(stored, plan)
    np.testing.assert_array_equal(classes.ravel(), [0, 1, 2, IGNORED])
    grid = network_grid([stored], Geometry(stored.shape, np.diag([1.5, 1.5, 2.0, 1.0])), plan)
    assert sorted(label_to_network(stored, grid, plan).ravel().tolist()) == [IGNORED, 0, 1, 2]


@pytest.mark.parametrize(("count", "dtype"), [(254, torch.uint8), (255, torch.int16)])
def test_no_class_of_many_is_confused_with_ignored(count, dtype):
    labels = tuple(Label(name=f"{value}", value=value) for value in range(1, count + 1))
    network = tiny_plan().network.model_copy(update={"classes": count + 1})
    classes = torch.from_numpy(classes_of(np.arange(256).reshape(4, 8, 8), tiny_plan(labels=labels, network=network)))
    assert classes.dtype == dtype
    assert not (classes == IGNORED).any()


def test_an_ignore_value_that_is_a_label_is_rejected():
    with pytest.raises(ValueError, match="ignore is 2, which is the value of a label"):
        tiny_plan(ignore=2)
    with pytest.raises(ValueError, match="ignore is 5, which is the value of a label"):
        region_plan(ignore=5)


def test_the_target_of_plain_labels_is_their_class_indices():
    classes = torch.tensor([0, 1, 2, IGNORED], dtype=torch.int16).reshape(1, 1, 2, 2)
    assert training_target(classes, small_plan(ignore=9)) is classes


def test_the_target_of_regions_has_one_mask_per_region():
    plan = region_plan(ignore=9)
    stored = np.array([0, 3, 5, 9, 5, 0], dtype=np.uint8).reshape(2, 1, 1, 3)
    target = training_target(torch.from_numpy(classes_of(stored, plan)), plan)
    both, two = [[0, 1, 1], [IGNORED, 1, 0]], [[0, 0, 1], [IGNORED, 1, 0]]
    np.testing.assert_array_equal(target.squeeze(), np.stack([both, two], axis=1))


def test_labels_are_resampled_without_new_values():
    labels = np.random.default_rng(0).choice([0, 1, 2], size=(5, 6, 7)).astype(np.uint8)
    affine = np.diag([0.9, 2.3, 3.1, 1.0])
    grid = network_grid([labels], Geometry(labels.shape, affine), tiny_plan())
    moved = label_to_network(labels, grid, tiny_plan())
    assert set(torch.unique(moved).tolist()) <= {0, 1, 2}


def test_linear_labels_take_the_largest_share_and_nearest_ones_a_voxel():
    """A checkerboard of fine voxels with a third label between: of each coarse voxel most is the label 1."""
    labels = np.ones((12, 12, 12), np.uint8)
    labels[1::3, 1::3, 1::3] = 2
    geometry, coarse = Geometry(labels.shape, np.eye(4)), {"spacing_mm": (3.0, 3.0, 3.0)}
    found = {}
    for how in ("nearest", "linear"):
        plan = tiny_plan(label_resampling=how, image_resampling=Resampling(antialias=True), **coarse)
        found[how] = label_to_network(labels, network_grid([labels], geometry, plan), plan)
        assert found[how].shape == (4, 4, 4)
    # The centre of each coarse voxel is the one voxel in 27 that differs.
    assert torch.unique(found["nearest"]).tolist() == [2]
    assert torch.unique(found["linear"]).tolist() == [1]


def test_ignored_voxels_stay_ignored_when_labels_are_interpolated():
    labels = np.full((8, 8, 8), 1, np.uint8)
    labels[:4] = 3
    changes = {"labels": (Label(name="one", value=1),), "ignore": 3, "spacing_mm": (0.5, 0.5, 0.5)}
    network = tiny_plan().network.model_copy(update={"classes": 2})
    plan = tiny_plan(label_resampling="linear", network=network, **changes)
    moved = label_to_network(labels, network_grid([labels], Geometry(labels.shape, np.eye(4)), plan), plan)
    assert sorted(torch.unique(moved).tolist()) == [IGNORED, 1]
    assert (moved == IGNORED).float().mean() == 0.5


def test_slabs_make_no_difference(monkeypatch):
    array = head((24, 27, 23))
    geometry = Geometry(array.shape, np.diag([0.8, 1.9, 2.7, 1.0]))
    plans = [tiny_plan(), imported_plan((Channel(normalisation="zscore_nonzero"),))]
    whole = [image_to_network([array], geometry, plan)[0] for plan in plans]
    monkeypatch.setattr("volseg.data.grid.resample.SLAB_VOXELS", 600)
    parts = [image_to_network([array], geometry, plan)[0] for plan in plans]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 1.3), (0.7, 0.9, 4.0)])
@pytest.mark.parametrize("plan", [tiny_plan(), imported_plan((Channel(normalisation="zscore_nonzero"),))])
def test_scans_are_resampled_on_the_device(plan, spacing):
    # The meta device computes nothing, and operations that mix it with another device fail.
    geometry, device = Geometry(head().shape, np.diag([*spacing, 1.0])), torch.device("meta")
    found, grid = image_to_network([head()], geometry, plan, device=device)
    assert (found.device, found.shape) == (device, (1, *grid.shape))


@pytest.mark.parametrize("normalisation", ["zscore", "zscore_nonzero", "rescale"])
@pytest.mark.parametrize(("spacing", "separate"), [((0.8, 1.0, 1.3), None), ((0.7, 0.9, 4.0), 0)])
def test_an_imported_plan_transposes_crops_normalises_and_resamples_in_that_order(normalisation, spacing, separate):
    array = head()
    plan = imported_plan((Channel(normalisation=normalisation),), spacing_mm=(1.2, 1.1, 0.6))
    found, grid = image_to_network([array], Geometry(array.shape, np.diag([*spacing, 1.0])), plan)

    transposed = array.transpose(2, 1, 0).astype(float)
    filled = ndimage.binary_fill_holes(transposed != 0)
    box = ndimage.find_objects(filled.astype(int))[0]
    cut, mask = transposed[box], filled[box]
    assert (cut[mask] == 0).any(), "the hole"
    if normalisation == "zscore":
        cut = (cut - cut.mean()) / cut.std()
    elif normalisation == "rescale":
        cut = (cut - cut.min()) / (cut.max() - cut.min())
    else:
        cut[mask] = (cut[mask] - cut[mask].mean()) / cut[mask].std()
    target = [round(now / new * n) for now, new, n in zip(spacing[::-1], plan.spacing_mm, cut.shape, strict=True)]
    edge = {"mode": "edge", "anti_aliasing": False}
    if separate is None:
        expected = resize(cut, target, 3, **edge)
    else:
        planes = np.stack([resize(plane, target[1:], 3, **edge) for plane in cut])
        nearest = np.floor((np.arange(target[0]) + 0.5) * len(planes) / target[0]).astype(int)
        expected = planes[nearest]
    assert [slice(*span) for span in grid.box] == list(box)
    assert grid.spacing_mm == spacing[::-1]
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5 * np.ptp(expected), rtol=0)


def test_a_voxel_is_nonzero_if_any_channel_is():
    one, two = np.zeros((2, 10, 10, 10), dtype=np.float32)
    one[2, 4, 5] = 1.0
    two[6, 4, 8] = -3.0
    channels = (Channel(name="a", normalisation="none"), Channel(name="b", normalisation="none"))
    found, grid = image_to_network([one, two], Geometry((10, 10, 10), np.eye(4)), imported_plan(channels))
    assert grid.box == ((5, 9), (4, 5), (2, 7))
    assert found.shape[1:] == grid.shape
    label = np.zeros((10, 10, 10), np.uint8)
    label[6, 4, 8] = 2
    plan = imported_plan(channels, spacing_mm=(1.0, 1.0, 1.0))
    grid = network_grid([one, two], Geometry((10, 10, 10), np.eye(4)), plan)
    np.testing.assert_array_equal(torch.argwhere(label_to_network(label, grid, plan)).numpy(), [[3, 0, 4]])


def test_reoriented_scans_are_cropped_and_resampled_the_same_however_they_were_stored():
    array, spacing = head(), (0.8, 1.0, 4.0)
    plan = imported_plan((Channel(normalisation="zscore_nonzero"),), orientation="ras", axes=(2, 0, 1))
    expected, _ = image_to_network([array], Geometry(array.shape, np.diag([*spacing, 1.0])), plan)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.diag(np.multiply(signs, spacing))[:, order]
            stored = array[tuple(slice(None, None, sign) for sign in signs)].transpose(order)
            found, _ = image_to_network([stored], Geometry(stored.shape, affine), plan)
            assert torch.equal(found, expected)
