"""Volumes and flags of small label images made by hand, and components against one pass over the whole image."""

import tracemalloc

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.config import Channel, Label
from volseg.inference.quality import count_components, measure, scan_flags


def image(shape: tuple[int, int, int] = (9, 10, 11)) -> np.ndarray:
    return np.zeros(shape, np.uint8)


def test_volume_of_a_block_by_hand() -> None:
    labels = image()
    labels[2:5, 3:7, 4:6] = 3
    (block,) = measure(labels, [Label(name="block", value=3, volume_ml_range=(0.01, 0.05))], voxel_ml=0.002)
    assert (block.name, block.value, block.voxels, block.reason, block.flags) == ("block", 3, 24, None, ())
    assert block.volume_ml == pytest.approx(0.048)


def test_a_volume_has_no_noise_of_binary_fractions() -> None:
    labels = np.zeros((5, 353, 1), np.uint8)
    labels[:] = 1
    (block,) = measure(labels, [Label(name="block", value=1)], voxel_ml=0.001)
    assert 1765 * 0.001 != 1.765
    assert block.volume_ml == 1.765


def test_an_empty_label_has_no_volume_but_a_reason() -> None:
    (absent,) = measure(image(), [Label(name="absent", value=300, volume_ml_range=(1, 2))], voxel_ml=1.0)
    assert (absent.voxels, absent.volume_ml, absent.flags) == (0, None, ("empty",))
    assert absent.reason == "no voxel was given this label"


@pytest.mark.parametrize("parts", [(), (1, 2)])
def test_without_a_stated_size_there_are_voxels_but_no_volumes_and_no_flags_about_them(parts: tuple[int, ...]) -> None:
    labels = image()
    labels[0, 2:5, 3:5] = 1
    table = [
        Label(name="one", value=1, parts=parts, volume_ml_range=(5.0, 6.0)),
        Label(name="absent", value=7, volume_ml_range=(5.0, 6.0)),
    ]
    one, absent = measure(labels, table, 1.0, unstated="the header has no unit")
    assert (one.voxels, one.volume_ml, one.reason, one.flags) == (
        6,
        None,
        "the header has no unit",
        ("touches_border",),
    )
    assert (absent.volume_ml, absent.reason, absent.flags) == (None, "the header has no unit", ("empty",))
    table[0] = table[0].model_copy(update={"volume_ml_range": (6.5, 7.0)})
    assert measure(labels, table, 1.0)[0].flags == ("touches_border", "volume_outside_training_range")


@pytest.mark.parametrize(
    ("limits", "outside"),
    [(None, False), ((2.0, 2.0), False), ((-10.0, 5.0), False), ((2.1, 9.0), True), ((-9.0, 1.9), True)],
)
def test_mean_intensity_is_compared_with_the_training_scans(limits: tuple[float, float] | None, outside: bool) -> None:
    # The mean of 0 and 4 is 2; the first channel has no range to leave.
    scan = np.zeros((4, 3, 2), np.int16)
    scan[:2] = 4
    found = scan_flags([scan * 100, scan], [Channel(), Channel(normalisation="none", mean_range=limits)])
    assert found == (("intensity_outside_training_range",) if outside else ())


@pytest.mark.parametrize("normalisation", ["zscore", "zscore_nonzero", "rescale", "none"])
def test_only_intensities_with_a_unit_are_compared(normalisation: str) -> None:
    """Raw means of MR scans differ by a factor of a thousand between scanners."""
    scan = np.full((4, 3, 2), 1000, np.int16)
    found = scan_flags([scan], [Channel(normalisation=normalisation, mean_range=(1.0, 2.0))])
    assert bool(found) == (normalisation == "none")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, -1])
def test_a_label_in_an_outer_slice_touches_the_border(axis: int, side: int) -> None:
    labels = image()
    labels[4, 4, 4] = 2
    labels.swapaxes(0, axis)[side, 3, 3] = 1
    found = measure(labels, [Label(name="outer", value=1), Label(name="inner", value=2)], voxel_ml=0.5)
    assert [one.flags for one in found] == [("touches_border",), ()]
    assert found[0].volume_ml == 0.5


@pytest.mark.parametrize(("second", "flags"), [(4, ()), (5, ("several_components",))])
def test_a_second_component_counts_from_a_twentieth_on(second: int, flags: tuple[str, ...]) -> None:
    labels = image((20, 20, 20))
    labels[2:7, 2:7, 2:5] = 1
    labels[2:7, 2:6, 5] = 1
    labels[12, 12, 2 : 2 + second] = 1
    # Components of 95 and 4 or 5 voxels; a touching corner would make them one.
    assert measure(labels, [Label(name="organ", value=1)], 1.0)[0].flags == flags
    labels[7, 6, 5] = 1
    labels[12, 12, 2 : 2 + second] = 0
    assert measure(labels, [Label(name="organ", value=1)], 1.0)[0].flags == ()


@pytest.mark.parametrize(("limits", "outside"), [((0.01, 0.02), False), ((0.021, 2.0), True), ((0.01, 0.019), True)])
def test_volume_is_compared_with_the_training_cases(limits: tuple[float, float], outside: bool) -> None:
    labels = image()
    labels[4, 4, 4:6] = 1
    (found,) = measure(labels, [Label(name="organ", value=1, volume_ml_range=limits)], voxel_ml=0.01)
    assert ("volume_outside_training_range" in found.flags) == outside


def test_a_spiral_through_many_slabs_is_one_component() -> None:
    # Two combs that meet only in the last slice: in every slab before it they are many components.
    labels = image((12, 9, 9))
    labels[1:, 2:7:2, 2] = 1
    labels[11, 2:7, 2] = 1
    voxels, second = count_components(labels, slab_voxels=1)
    assert (voxels[1], second[1]) == (35, 0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 9), st.integers(1, 9)),
    density=st.sampled_from([0.1, 0.2, 0.4, 0.9]),
    planes=st.integers(1, 5),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    order=st.sampled_from(["C", "F"]),
)
def test_slabs_count_what_one_pass_counts(seed, shape, density, planes, dtype, order) -> None:
    generator = np.random.default_rng(seed)
    labels = (generator.integers(1, 4, shape) * (generator.random(shape) < density)).astype(dtype)
    labels = labels.copy(order=order)
    voxels, second = count_components(labels, planes * shape[1] * shape[2])
    assert np.array_equal(voxels[:4], np.bincount(labels.ravel(), minlength=4))
    for value in (1, 2, 3):
        numbers = cc3d.connected_components((labels == value).astype(np.uint8), connectivity=26)
        sizes = sorted(np.bincount(numbers.ravel())[1:], reverse=True)
        assert second[value] == (sizes[1] if len(sizes) > 1 else 0)


def test_regions_are_measured_with_all_their_parts() -> None:
    labels = image((20, 20, 20))
    labels[2:8, 2:8, 2:8] = 1
    labels[4:6, 4:6, 4:6] = 2
    labels[5, 5, 5] = 3
    labels[0, 15:18, 15] = 3
    table = [Label(name="whole", value=1, parts=(1, 2, 3)), Label(name="core", value=2, parts=(2, 3))]
    whole, core = measure(labels, table, voxel_ml=0.001)
    assert (whole.voxels, core.voxels) == (216 + 3, 8 + 3)
    # Three voxels are noise next to 216, and a second component next to 8; both are at the border.
    assert whole.flags == ("touches_border",)
    assert core.flags == ("touches_border", "several_components")


@pytest.mark.parametrize("order", ["C", "F"])
def test_no_copy_of_the_image_is_made(order: str) -> None:
    labels = np.zeros((250, 300, 400), np.uint8, order=order)
    labels[:, -1, 50] = 2
    tracemalloc.start()
    found = measure(labels, [Label(name="line", value=2)], 1.0, slab_voxels=1 << 17)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[0].flags == ("touches_border",)
    assert peak < labels.size / 2
