import pickle

import nibabel as nib
import numpy as np
import pytest
import torch

import volseg.transforms
from tests.data.small_cases import AFFINE, small_plan, write_cases
from volseg.config import AugmentationConfig, Channel, NetworkConfig
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network, label_to_network
from volseg.errors import InputError
from volseg.transforms import augmentation, cropping, preprocessing

OFF = dict.fromkeys(
    [
        "rotation",
        "scaling",
        "mirror",
        "noise",
        "blur",
        "brightness",
        "contrast",
        "low_resolution",
        "gamma",
        "gamma_inverted",
        "channel_dropout",
    ],
    0.0,
)


def only(**changes: float) -> AugmentationConfig:
    return AugmentationConfig(**{**OFF, **changes})


def case(channels: int = 1, size: int = 24) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(channels, size, size, size)).astype(np.float32),
        "label": rng.integers(0, 3, (1, size, size, size), dtype=np.uint8),
    }


def patch_of(name: str) -> torch.Tensor:
    return torch.from_numpy(case()[name][:, 8:16, 8:16, 8:16])


def test_the_public_names_are_sorted_and_there():
    assert volseg.transforms.__all__ == sorted(volseg.transforms.__all__)
    assert all(hasattr(volseg.transforms, name) for name in volseg.transforms.__all__)


@pytest.mark.parametrize("crop", ["none", "nonzero"])
def test_preprocessing_equals_the_plain_functions(tmp_path, crop):
    one = write_cases(tmp_path, 1)[0]
    plan = small_plan(spacing_mm=(1.0, 1.2, 0.9), crop=crop)
    out = preprocessing(plan)({"image": one.images[0], "label": str(one.label)})
    image, label = (np.asarray(nib.load(path).dataobj) for path in (one.images[0], one.label))
    geometry = Geometry(image.shape, AFFINE)
    expected, grid = image_to_network([image], geometry, plan)
    assert type(out["image"]) is torch.Tensor
    assert torch.equal(out["image"], expected)
    assert torch.equal(out["label"], label_to_network(label, grid, plan)[None])
    assert out["label"].dtype == torch.uint8
    assert out["label"].unique().tolist() == [0, 1, 2]


def test_preprocessing_takes_one_path_per_channel(tmp_path):
    one = write_cases(tmp_path, 1)[0]
    network = small_plan().network.model_dump() | {"in_channels": 2}
    channels = (Channel(name="a"), Channel(name="b", normalisation="none"))
    plan = small_plan(channels=channels, network=NetworkConfig(**network))
    out = preprocessing(plan)({"image": one.images * 2, "label": one.label})["image"]
    assert out.shape == (2, 9, 12, 10)
    mean = np.asarray(nib.load(one.images[0]).dataobj).mean()
    assert out.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0, mean], abs=1e-3)


def test_preprocessing_names_the_invalid_case(tmp_path):
    one = write_cases(tmp_path, 1)[0]
    with pytest.raises(RuntimeError) as caught:
        preprocessing(small_plan())({"image": tmp_path / "missing.nii.gz", "label": one.label})
    assert isinstance(caught.value.__cause__, InputError)
    assert "Case label_0" in str(caught.value.__cause__)


def test_augmentation_gives_plain_tensors_and_keeps_label_values():
    pipeline = augmentation(small_plan(mirror_axes=(0, 1, 2)), AugmentationConfig())
    for seed in range(30):
        out = pipeline.set_random_state(seed)(case())
        assert type(out["image"]) is torch.Tensor
        assert type(out["label"]) is torch.Tensor
        assert (out["image"].dtype, out["image"].shape) == (torch.float32, (1, 8, 8, 8))
        assert (out["label"].dtype, out["label"].shape) == (torch.uint8, (1, 8, 8, 8))
        assert torch.isfinite(out["image"]).all()
        assert set(out["label"].unique().tolist()) <= {0, 1, 2}


def test_with_zero_probabilities_the_patch_is_the_exact_crop():
    out = augmentation(small_plan(), only())(case())
    assert torch.equal(out["image"], patch_of("image"))
    assert torch.equal(out["label"], patch_of("label"))


def test_cropping_only_flips_whatever_the_probabilities():
    pipeline = cropping(small_plan(mirror_axes=(1,)), AugmentationConfig(**dict.fromkeys(OFF, 0.5)))
    flips = 0
    for seed in range(60):
        out = pipeline.set_random_state(seed)(case())
        flipped = not torch.equal(out["image"], patch_of("image"))
        for name in ("image", "label"):
            assert type(out[name]) is torch.Tensor
            assert torch.equal(out[name], patch_of(name).flip(2) if flipped else patch_of(name))
        flips += flipped
    assert flips / 60 == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("name", sorted(set(OFF) - {"rotation", "scaling", "mirror", "channel_dropout"}))
def test_each_intensity_step_changes_the_image_and_not_the_label(name):
    out = augmentation(small_plan(), only(**{name: 1.0})).set_random_state(1)(case())
    assert not torch.equal(out["image"], patch_of("image"))
    assert torch.equal(out["label"], patch_of("label"))


def test_a_seed_repeats_everything_also_after_pickling():
    pipeline = augmentation(small_plan(mirror_axes=(0, 1, 2)), AugmentationConfig(**dict.fromkeys(OFF, 0.5)))
    copy = pickle.loads(pickle.dumps(pipeline))
    for seed in range(10):
        one = pipeline.set_random_state(seed)(case())
        pipeline(case())
        two = pipeline.set_random_state(seed)(case())
        three = copy.set_random_state(seed)(case())
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["image"], three["image"])
        assert torch.equal(one["label"], three["label"])


def test_the_steps_are_random_independently():
    pipeline = augmentation(small_plan(), only(noise=0.5, blur=0.5)).set_random_state(0)
    noise, blur = pipeline.transforms[1:3]
    applied = []
    for _ in range(300):
        pipeline(case(size=8))
        applied.append((noise._do_transform, blur._do_transform))
    assert np.mean(applied, axis=0) == pytest.approx([0.5, 0.5], abs=0.1)
    assert np.corrcoef(np.array(applied).T)[0, 1] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
def test_gamma_keeps_mean_standard_deviation_and_order(name):
    before = patch_of("image").flatten()
    after = augmentation(small_plan(), only(**{name: 1.0})).set_random_state(2)(case())["image"].flatten()
    assert after.mean().item() == pytest.approx(before.mean().item(), abs=1e-5)
    assert after.std().item() == pytest.approx(before.std().item(), rel=1e-5)
    assert torch.equal(after.argsort(), before.argsort())


def test_inverted_gamma_is_the_gamma_of_the_inverted_image():
    fixed = {"gamma_range": (1.3, 1.3)}
    plain = augmentation(small_plan(), only(gamma=1).model_copy(update=fixed))
    inverted = augmentation(small_plan(), only(gamma_inverted=1).model_copy(update=fixed))
    one = case()
    expected = -plain({**one, "image": -one["image"]})["image"]
    assert torch.allclose(inverted(one)["image"], expected, atol=1e-6)
    assert not torch.allclose(plain(one)["image"], expected, atol=1e-2)


def test_noise_has_zero_mean_and_at_most_the_configured_variance():
    flat = {"image": np.zeros((1, 24, 24, 24), np.float32), "label": np.zeros((1, 24, 24, 24), np.uint8)}
    plan = small_plan(patch_size=(24, 24, 24))
    pipeline = augmentation(plan, only(noise=1.0)).set_random_state(0)
    patches = torch.stack([pipeline(flat)["image"] for _ in range(200)])
    deviations = patches.std(dim=(1, 2, 3, 4)).numpy()
    # The standard deviation is uniform between 0 and the square root of 0.01.
    assert patches.mean() == pytest.approx(0, abs=1e-3)
    assert deviations.max() == pytest.approx(np.sqrt(0.01), rel=0.03)
    assert deviations.mean() == pytest.approx(np.sqrt(0.01) / 2, rel=0.1)


def test_brightness_scales_each_channel_and_contrast_about_its_mean():
    network = NetworkConfig(**(small_plan().network.model_dump() | {"in_channels": 2}))
    plan = small_plan(channels=(Channel(name="a"), Channel(name="b")), network=network)
    two = case(channels=2)
    before = torch.from_numpy(two["image"][:, 8:16, 8:16, 8:16])
    ratio = augmentation(plan, only(brightness=1)).set_random_state(0)(two)["image"] / before
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-4)
    assert 0.75 < ratio.min() < ratio.max() < 1.25

    wide = only(contrast=1.0).model_copy(update={"contrast_range": (0.5, 0.6)})
    after = augmentation(plan, wide).set_random_state(0)(two)["image"]
    for channel in range(2):
        assert after[channel].mean().item() == pytest.approx(before[channel].mean().item(), abs=1e-5)
        assert 0.5 <= after[channel].std() / before[channel].std() <= 0.6


@pytest.mark.parametrize(("through_plane", "changed"), [(2.9, True), (3.1, False)])
def test_strongly_anisotropic_scans_become_coarser_in_plane_only(through_plane, changed):
    """An image that varies along D alone stays as it is if only H and W become coarser."""
    plan = small_plan(spacing_mm=(through_plane, 1.0, 1.0), patch_size=(8, 8, 8))
    sample = case()
    sample["image"] = np.broadcast_to(sample["image"][:, :, :1, :1], sample["image"].shape).copy()
    pipeline = augmentation(plan, only(low_resolution=1.0))
    pipeline.set_random_state(seed=0)
    exact = augmentation(plan, only())(dict(sample))
    found = pipeline(dict(sample))
    assert torch.allclose(found["image"], exact["image"], atol=1e-5) != changed


def test_every_probability_and_range_arrives_in_its_step():
    config = AugmentationConfig(
        noise=0.11, noise_variance=0.04, blur=0.12, blur_sigma=(0.6, 0.9), brightness=0.13,
        brightness_range=(0.8, 1.3), contrast=0.14, contrast_range=(0.7, 1.2), low_resolution=0.16,
        low_resolution_range=(0.4, 0.8), gamma=0.17, gamma_inverted=0.18, gamma_range=(0.6, 1.6),
    )  # fmt: skip
    more = [lambda sample: sample]
    steps = augmentation(small_plan(), config, more).transforms
    warp, noise, blur, brightness, contrast, coarse, inverted, gamma, own, *_ = steps
    assert [step.prob for step in (noise, blur, brightness, contrast, coarse, inverted, gamma)] == [
        0.11, 0.12, 0.13, 0.14, 0.16, 0.18, 0.17,
    ]  # fmt: skip
    assert noise.rand_gaussian_noise.std == pytest.approx(0.2)
    assert blur.sigma == (0.6, 0.9)
    assert brightness.scaler.factors == pytest.approx((-0.2, 0.3))
    assert contrast.scaler.factors == pytest.approx((-0.3, 0.2))
    assert (coarse.zoom, coarse.axes) == ((0.4, 0.8), (0, 1, 2))
    for step, inverts in ((inverted, True), (gamma, False)):
        assert (step.gamma, step.inverted) == ((0.6, 1.6), inverts)
    assert own is more[0]
    assert warp.config == config


TWO = {
    "channels": (Channel(name="CT"), Channel(name="PET")),
    "network": small_plan().network.model_copy(update={"in_channels": 2}),
}


@pytest.mark.parametrize("make", [augmentation, cropping])
def test_channel_dropout_sets_one_of_several_channels_to_0(make):
    plan = small_plan(**TWO)
    expected = make(plan, only())(case(2))
    pipeline = make(plan, only(channel_dropout=0.5))
    pipeline.set_random_state(seed=0)
    kept = []
    for _ in range(200):
        found = pipeline(case(2))
        assert torch.equal(found["label"], expected["label"])
        same = [torch.equal(*pair) for pair in zip(found["image"], expected["image"], strict=True)]
        assert all(one or not channel.any() for one, channel in zip(same, found["image"], strict=True))
        kept.append(tuple(same))
    assert (False, False) not in kept
    # Binomial, three standard deviations.
    assert abs(kept.count((True, True)) - 100) < 22
    assert abs(kept.count((True, False)) - kept.count((False, True))) < 31


def test_a_single_channel_is_never_dropped():
    pipeline = augmentation(small_plan(), only(channel_dropout=1.0))
    assert torch.equal(pipeline(case())["image"], augmentation(small_plan(), only())(case())["image"])
    names = [type(step).__name__ for step in pipeline.transforms]
    assert "RandChannelDropoutd" not in names
