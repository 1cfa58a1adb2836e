import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.transforms import Compose, RandFlipd

from tests.data.small_cases import small_plan
from volseg.config import IGNORED, AugmentationConfig
from volseg.transforms import RandAffinePatchd
from volseg.transforms.spatial import (
    Warp,
    exact_patch,
    is_strongly_anisotropic,
    random_warp,
    sampling_grid,
    warped_patch,
)

NO_AUGMENTATION = AugmentationConfig(rotation=0, scaling=0, mirror=0)
ALWAYS = AugmentationConfig(rotation=1, scaling=1, mirror=0.5)
SPACING = (2.0, 1.0, 1.5)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def warped(volume, centre, size, matrix, nearest=False) -> torch.Tensor:
    return warped_patch(volume, *sampling_grid(volume.shape[1:], centre, size, matrix), nearest)


def ramp(shape: tuple[int, int, int], weights: tuple[float, float, float]) -> np.ndarray:
    return np.tensordot(weights, np.indices(shape), axes=1)[None].astype(np.float32)


@pytest.mark.parametrize("centre", [(8, 9, 10), (0, 0, 0), (15, 17, 19), (3, 17, 9)])
@pytest.mark.parametrize("size", [(8, 6, 4), (5, 7, 9), (20, 20, 30)])
def test_an_exact_patch_is_the_crop_of_the_zero_padded_volume(centre, size):
    volume = noise((2, 16, 18, 20))
    padded = np.pad(volume, [(0, 0), *[(30, 30)] * 3])
    start = [30 + c - s // 2 for c, s in zip(centre, size, strict=True)]
    expected = padded[(slice(None), *(slice(a, a + s) for a, s in zip(start, size, strict=True)))]
    assert np.array_equal(exact_patch(volume, centre, size, (False,) * 3), expected)
    assert np.array_equal(exact_patch(volume, centre, size, (True, False, True)), expected[:, ::-1, :, ::-1])
    same = warped(volume, centre, size, Warp().matrix(SPACING))
    assert np.allclose(same, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8, 8), (5, 7, 7)])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_rotations_about_d_are_rot90(size, quarters):
    volume = noise((1, 20, 20, 20))
    crop = exact_patch(volume, (10, 9, 11), size, (False,) * 3)
    rotated = warped(volume, (10, 9, 11), size, Warp((quarters * np.pi / 2, 0, 0)).matrix((3.0, 1.0, 1.0)))
    assert np.allclose(rotated, np.rot90(crop, quarters, axes=(2, 3)), atol=1e-4)


@pytest.mark.parametrize(
    "warp",
    [
        Warp(angles=(0.3, -0.2, 0.5)),
        Warp(scales=(0.8, 0.8, 0.8)),
        Warp(angles=(-0.4, 0.1, 0.2), scales=(1.3, 1.3, 1.3), flips=(True, False, True)),
        Warp(angles=(2.5, 0, 0), scales=(1, 0.7, 0.7)),
    ],
)
@pytest.mark.parametrize("centre", [(9, 9, 9), (1, 16, 4)])
def test_a_warped_patch_is_what_scipy_makes_of_the_zero_padded_volume(warp, centre):
    volume, size = noise((1, 18, 18, 18)), (8, 6, 10)
    matrix = warp.matrix(SPACING)
    middle = np.array(centre) - np.array(size) // 2 + (np.array(size) - 1) / 2
    offset = middle - matrix @ ((np.array(size) - 1) / 2)
    options = {"offset": offset, "output_shape": size, "mode": "grid-constant"}
    expected = scipy.ndimage.affine_transform(volume[0], matrix, order=1, **options)
    assert np.allclose(warped(volume, centre, size, matrix)[0], expected, atol=1e-4)

    for value, kind in ((7, torch.uint8), (IGNORED, torch.int16)):
        labels = np.where(volume > 0, value, 0).astype(str(kind).removeprefix("torch."))
        expected = scipy.ndimage.affine_transform(labels[0], matrix, order=0, **options)
        found = warped(labels, centre, size, matrix, nearest=True)
        assert found.dtype == kind
        assert np.array_equal(found[0], expected)


def test_a_rotation_keeps_distances_in_millimetres():
    matrix = Warp(angles=(0.4, -1.1, 2.0)).matrix(SPACING)
    millimetres = np.diag(SPACING) @ matrix @ np.diag(1 / np.array(SPACING))
    assert np.allclose(millimetres @ millimetres.T, np.eye(3))
    assert np.isclose(np.linalg.det(matrix), 1)


def test_a_scale_above_one_enlarges_and_a_ramp_stays_a_ramp():
    volume = ramp((30, 30, 30), (0, 0, 1))
    patch = warped(volume, (15, 15, 15), (8, 8, 8), Warp(scales=(2, 2, 2)).matrix(SPACING))
    assert np.allclose(np.diff(patch[0], axis=2), 0.5, atol=1e-4)
    assert patch.mean() == pytest.approx(14.5, abs=1e-4)


def test_a_constant_stays_constant_inside():
    volume = np.full((1, 40, 40, 40), 3.7, dtype=np.float32)
    for seed in range(10):
        warp = random_warp(np.random.RandomState(seed), ALWAYS, small_plan())
        patch = warped(volume, (20, 20, 20), (10, 10, 10), warp.matrix((1.0, 1.0, 1.0)))
        assert np.allclose(patch, 3.7, atol=1e-5)


def test_labels_keep_their_values_and_follow_the_image():
    label = np.random.default_rng(0).choice([0, 2, 9], (1, 20, 20, 20)).astype(np.int16)
    transform = RandAffinePatchd(("image", "label"), small_plan(), ALWAYS, mode=("nearest", "nearest"))
    for seed in range(20):
        transform.set_random_state(seed)
        out = transform({"image": label.astype(np.float32), "label": label, "centre": (9, 9, 9)})
        assert set(out) == {"image", "label"}
        assert set(out["label"].unique().tolist()) <= {0, 2, 9}
        assert torch.equal(out["image"], out["label"].float())


@pytest.mark.parametrize("mirror_axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_only_allowed_axes_are_flipped_and_each_half_of_the_time(mirror_axes):
    plan = small_plan(mirror_axes=mirror_axes)
    rng = np.random.RandomState(0)
    flips = np.array([random_warp(rng, AugmentationConfig(), plan).flips for _ in range(1000)])
    for axis, fraction in enumerate(flips.mean(axis=0)):
        assert fraction == pytest.approx(0.5, abs=0.06) if axis in mirror_axes else fraction == 0


def test_probabilities_and_ranges_of_the_warp():
    rng = np.random.RandomState(0)
    warps = [random_warp(rng, AugmentationConfig(), small_plan()) for _ in range(4000)]
    angles = np.array([warp.angles for warp in warps])
    scales = np.array([warp.scales for warp in warps])
    assert np.mean(angles.any(axis=1)) == pytest.approx(0.2, abs=0.02)
    assert np.mean(scales[:, 0] != 1) == pytest.approx(0.2, abs=0.02)
    assert np.abs(np.degrees(angles)).max(axis=0) == pytest.approx([30, 30, 30], abs=0.5)
    assert (scales.min(), scales.max()) == pytest.approx((0.7, 1.4), abs=0.01)
    assert np.mean([warp.exact for warp in warps]) == pytest.approx(0.64, abs=0.03)


@pytest.mark.parametrize(("spacing", "expected"), [((3.0, 1.0, 1.0), False), ((3.1, 1.0, 1.0), True)])
def test_a_strongly_anisotropic_plan_is_rotated_and_scaled_only_in_plane(spacing, expected):
    assert is_strongly_anisotropic(spacing) is expected
    rng = np.random.RandomState(0)
    warps = [random_warp(rng, ALWAYS, small_plan(spacing_mm=spacing)) for _ in range(500)]
    in_plane = all(warp.angles[1:] == (0, 0) and warp.scales[0] == 1 for warp in warps)
    assert in_plane is expected
    assert max(abs(warp.angles[0]) for warp in warps) == pytest.approx(np.pi if expected else np.pi / 6, rel=0.02)


def test_the_same_seed_gives_the_same_patch_and_the_warp_can_be_replayed():
    volume = noise((1, 20, 20, 20))
    transform = RandAffinePatchd("image", small_plan(), ALWAYS)
    first = transform.set_random_state(5)({"image": volume})["image"]
    replayed = warped(volume, (10, 10, 10), (8, 8, 8), transform.warp.matrix(SPACING))
    again = transform.set_random_state(5)({"image": volume})["image"]
    assert torch.equal(first, again)
    assert torch.equal(first, replayed)
    assert not torch.equal(first, transform({"image": volume})["image"])


def test_a_read_only_memory_map_is_as_good_as_an_array_and_mixes_with_monai(tmp_path):
    np.save(tmp_path / "v.npy", noise((1, 20, 20, 20)))
    volume = np.load(tmp_path / "v.npy", mmap_mode="r")
    pipeline = Compose(
        [RandAffinePatchd("image", small_plan(), NO_AUGMENTATION), RandFlipd("image", prob=1, spatial_axis=1)]
    )
    assert np.array_equal(pipeline({"image": volume})["image"], volume[:, 6:14, 6:14, 6:14][:, :, ::-1])
