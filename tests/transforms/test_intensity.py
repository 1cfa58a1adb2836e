import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from monai.transforms import AdjustContrast

from volseg.transforms import RandBlurd, RandLowResolutiond
from volseg.transforms.intensity import RandGammad, at_low_resolution, blurred, gamma_corrected


def noise(channels: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(channels, 9, 11, 13)).astype(np.float32))


def test_blurring_is_scipys_gaussian_filter_channel_by_channel():
    image, sigma = noise(), np.array([[0.5, 0.7, 1.0], [1.0, 0.6, 0.9]])
    for channel in range(2):
        expected = scipy.ndimage.gaussian_filter(image[channel].numpy(), sigma[channel], mode="nearest", radius=3)
        assert np.allclose(blurred(image, sigma)[channel], expected, atol=1e-5)


def test_low_resolution_is_torchs_nearest_down_and_linear_up():
    image, zooms = noise(), np.array([[0.5, 0.5, 0.5], [0.8, 0.8, 0.8]])
    found = at_low_resolution(image, zooms)
    for channel, size in enumerate([(4, 6, 6), (7, 9, 10)]):
        small = F.interpolate(image[None, channel, None], size, mode="nearest-exact")
        expected = F.interpolate(small, image.shape[1:], mode="trilinear", align_corners=False)
        assert torch.allclose(found[channel], expected[0, 0], atol=1e-5)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_monais_for_each_channel_by_itself(inverted):
    image = noise() * torch.tensor([1.0, 50.0])[:, None, None, None] + 3
    found = gamma_corrected(image, np.array([0.7, 1.4]), inverted)
    for channel, gamma in enumerate((0.7, 1.4)):
        expected = AdjustContrast(gamma, invert_image=inverted, retain_stats=True)(image[channel])
        assert torch.allclose(found[channel], torch.as_tensor(expected), rtol=1e-4, atol=1e-3)


def test_gamma_leaves_a_constant_channel_beside_another_one():
    image = torch.stack((torch.full((9, 11, 13), -1.3), noise(1)[0]))
    found = gamma_corrected(image, np.array([0.7, 1.4]))
    assert torch.allclose(found[0], image[0])
    assert not torch.allclose(found[1], image[1], atol=0.1)


@pytest.mark.parametrize(("gamma", "below"), [((0.7, 1.5), 0.5), ((0.5, 0.8), 1.0), ((1.3, 1.3), 0.0)])
def test_gamma_is_as_often_below_one_as_above_it_where_the_range_has_both(gamma, below):
    transform = RandGammad("image", 1, gamma).set_random_state(0)
    powers = np.array([transform._power() for _ in range(1000)])
    assert gamma[0] <= powers.min() <= powers.max() <= gamma[1]
    assert np.mean(powers < 1) == pytest.approx(below, abs=0.05)


@pytest.mark.parametrize(
    "transform",
    [RandBlurd("image", 1, (0.5, 1.0)), RandLowResolutiond("image", 1, (0.5, 1.0))],
    ids=lambda t: type(t).__name__,
)
class TestBoth:
    def test_a_constant_stays_constant_to_the_edge(self, transform):
        constant = torch.full((2, 8, 8, 8), -1.3)
        assert torch.allclose(transform({"image": constant})["image"], constant, atol=1e-6)

    def test_it_smooths_and_leaves_its_input_unchanged(self, transform):
        image = noise()
        before = image.clone()
        out = transform.set_random_state(0)({"image": image})["image"]
        assert torch.equal(image, before)
        assert (out.std(dim=(1, 2, 3)) < 0.9 * image.std(dim=(1, 2, 3))).all()

    def test_a_seed_repeats_it(self, transform):
        one, two = (transform.set_random_state(3)({"image": noise()})["image"] for _ in range(2))
        assert torch.equal(one, two)
        assert not torch.equal(one, transform({"image": noise()})["image"])


@pytest.mark.parametrize("kind", [RandBlurd, RandLowResolutiond])
def test_its_frequency_is_the_probability(kind):
    transform = kind("image", 0.3, (0.5, 0.6)).set_random_state(0)
    image = noise(1)
    fraction = np.mean([transform({"image": image})["image"] is not image for _ in range(500)])
    assert fraction == pytest.approx(0.3, abs=0.06)


def test_a_coarse_axis_is_left_unchanged():
    image = torch.arange(9.0).reshape(1, 9, 1, 1).expand(1, 9, 11, 13) ** 2
    assert torch.equal(RandLowResolutiond("image", 1, (0.5, 0.6), axes=(1, 2))({"image": image})["image"], image)
    assert not torch.equal(RandLowResolutiond("image", 1, (0.5, 0.6))({"image": image})["image"], image)
