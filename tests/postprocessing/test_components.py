"""Components that rules drop, for any slab size, against scipy on the whole image."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from volseg.config import ComponentRule
from volseg.errors import ResourceError
from volseg.postprocessing.components import COMPONENT_BYTES, keep_components, slabs

RULES = {
    1: ComponentRule(largest_only=True),
    2: ComponentRule(smallest_ml=0.004),
    4: ComponentRule(smallest_ml=0.003, largest_only=True),
}


def by_scipy(labels: np.ndarray, rules: dict[int, ComponentRule], voxel_ml: float) -> np.ndarray:
    expected = labels.copy()
    for value, rule in rules.items():
        numbers, count = ndimage.label(labels == value, np.ones((3, 3, 3)))
        sizes = [int((numbers == number).sum()) for number in range(1, count + 1)]
        for number, size in enumerate(sizes, start=1):
            if size * voxel_ml < rule.smallest_ml or (rule.largest_only and size < max(sizes)):
                expected[numbers == number] = 0
    return expected


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 9), st.integers(1, 9)),
    density=st.sampled_from([0.1, 0.2, 0.4, 0.9]),
    planes=st.integers(1, 15),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    order=st.sampled_from(["C", "F"]),
)
def test_slabs_keep_the_same_components_as_the_whole_image(seed, shape, density, planes, dtype, order) -> None:
    generator = np.random.default_rng(seed)
    labels = (generator.integers(1, 5, shape) * (generator.random(shape) < density)).astype(dtype)
    labels = labels.copy(order=order)
    plane = shape[1] * shape[2] if order == "C" else shape[0] * shape[1]
    expected = by_scipy(labels, RULES, 0.001)
    lost = {value: int((labels == value).sum() - (expected == value).sum()) for value in RULES}
    assert keep_components(labels, RULES, 0.001, planes * plane) == lost
    np.testing.assert_array_equal(labels, expected)


def test_rules_apply_to_their_own_labels_only() -> None:
    labels = np.zeros((6, 6, 6), np.uint16)
    labels[0, 0, 0], labels[2:4, 2:4, 2:4], labels[5, 5, 5], labels[0, 5, 5] = 300, 300, 7, 7
    before = labels.copy()
    assert keep_components(labels, {}, 1.0) == {}
    assert keep_components(labels, {9: ComponentRule(largest_only=True)}, 1.0) == {9: 0}
    np.testing.assert_array_equal(labels, before)
    assert keep_components(labels, {300: ComponentRule(largest_only=True)}, 1.0) == {300: 1}
    before[0, 0, 0] = 0
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("dropped", [True, False])
def test_a_comb_whose_teeth_meet_in_the_last_plane_is_one_component(dropped: bool) -> None:
    # In every slab before the last the teeth are separate components, each smaller than the block.
    labels = np.zeros((12, 9, 9), np.uint8)
    labels[1:, 2:7:2, 2] = 1
    labels[11, 2:7, 2] = 1
    labels[3:6, 2:6, 6 : 8 + dropped] = 1
    expected = labels.copy()
    expected[:, :, 2 if dropped else slice(6, 9)] = 0
    keep_components(labels, {1: ComponentRule(largest_only=True)}, 1.0, slab_voxels=1)
    assert (expected == 1).sum() == (36 if dropped else 35)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("voxel_ml", [0.1, float(np.nextafter(np.float32(0.1), np.float32(0)))])
def test_exactly_the_smallest_volume_is_kept_for_any_rounding_of_the_affine(voxel_ml: float) -> None:
    labels = np.zeros((3, 9, 9), np.uint8)
    labels[1, 1, 1:4], labels[1, 5, 1:3] = 1, 1
    keep_components(labels, {1: ComponentRule(smallest_ml=0.3)}, voxel_ml)
    assert np.argwhere(labels).tolist() == [[1, 1, 1], [1, 1, 2], [1, 1, 3]]


def test_a_slice_of_a_larger_array_is_written_to() -> None:
    whole = np.ones((8, 8, 8), np.uint8)
    view = whole[1:7:2, ::-1, 2:6]
    view[:] = 0
    view[0, 0, 0], view[2, 4:6, 3] = 1, 1
    keep_components(view, {1: ComponentRule(largest_only=True)}, 1.0)
    assert np.argwhere(view).tolist() == [[2, 4, 3], [2, 5, 3]]
    assert whole.sum() == 8**3 - view.size + 2


@pytest.mark.parametrize("order", ["C", "F"])
def test_no_copy_of_the_image_is_made(order: str) -> None:
    labels = np.zeros((250, 300, 400), np.uint8, order=order)
    labels[:, 7, 50], labels[::2, 100:102, 100:102], labels[:, 200:, 200:] = 2, 2, 3
    tracemalloc.start()
    lost = keep_components(labels, {2: ComponentRule(largest_only=True)}, 1.0, slab_voxels=1 << 17)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lost == {2: 500}
    assert peak < labels.size / 2


def test_components_above_the_memory_limit_are_rejected_and_nothing_is_changed() -> None:
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[::2, ::2, ::2] = 1
    before, rules = labels.copy(), {1: ComponentRule(smallest_ml=2.0)}
    # One plane at a time, each with the plane before it, and the background of each.
    count = 64 * 32**2 + 64
    with pytest.raises(ResourceError, match=f"more than {count} connected comp.*--max-memory leaves. Raise it"):
        keep_components(labels, rules, 1.0, slab_voxels=1, max_bytes=COMPONENT_BYTES * count - 1)
    np.testing.assert_array_equal(labels, before)
    assert keep_components(labels, rules, 1.0, slab_voxels=1, max_bytes=COMPONENT_BYTES * count) == {1: 32**3}


@pytest.mark.parametrize("values", [1, 120])
def test_components_take_no_more_memory_than_planned(values: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(1, values + 1, (48, 256, 256), np.uint8)
    if values == 1:
        labels[1::2], labels[:, 1::2], labels[:, :, 1::2] = 0, 0, 0
    slab = 4 * 256 * 256
    count = sum(one.components.shape[1] for one in slabs(labels, slab))
    rules = {value: ComponentRule(largest_only=True) for value in range(1, values + 1)}
    tracemalloc.start()
    keep_components(labels, rules, 1.0, slab)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 1e5
    assert peak < COMPONENT_BYTES * count
