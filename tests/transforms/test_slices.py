"""Augmentation of patches of one slice: nothing moves between slices."""

import numpy as np
import torch

from tests.pipeline import tiny_plan
from volseg.config import AugmentationConfig
from volseg.data.cases.progressive_patches import patch_size_at
from volseg.networks import UNet
from volseg.transforms.intensity import blurred
from volseg.transforms.pipelines import augmentation

FLAT = {
    "in_channels": 1,
    "classes": 3,
    "features": (4, 8),
    "kernels": ((1, 3, 3), (1, 3, 3)),
    "strides": ((1, 1, 1), (1, 2, 2)),
}
ALWAYS = AugmentationConfig(
    warmup_epochs=0, rotation=1, scaling=1, noise=0, blur=1, brightness=0, contrast=0, low_resolution=1, gamma=0,
    gamma_inverted=0,
)  # fmt: skip


def flat_plan(**changes):
    network = UNet(**FLAT).config
    values = {"dimensions": 2, "patch_size": (1, 16, 16), "mirror_axes": (1, 2), "network": network}
    return tiny_plan(**{**values, **changes})


def test_a_patch_is_of_the_one_slice_it_is_centred_on():
    # As thick as pixels: the distance of slices does not decide.
    plan = flat_plan(spacing_mm=(1.0, 1.0, 1.0))
    slices = np.arange(1.0, 8.0, dtype=np.float32)[:, None, None] * np.ones((7, 40, 40), np.float32)
    case = {"image": slices[None], "label": slices[None].astype(np.uint8)}
    augment = augmentation(plan, ALWAYS)
    for seed in range(20):
        augment.set_random_state(seed=seed)
        sample = augment({**case, "centre": (seed % 7, 20, 20)})
        assert sample["image"].shape == (1, 1, 16, 16)
        assert torch.allclose(sample["image"], torch.tensor(seed % 7 + 1.0), atol=1e-4)
        assert sample["label"].unique().tolist() == [seed % 7 + 1]


def test_blur_leaves_an_axis_of_one_voxel():
    image = torch.randn(2, 1, 12, 12)
    repeated = image.expand(2, 9, 12, 12)
    sigma = np.array([[0.9, 0.6, 0.7], [0.5, 1.0, 0.8]])
    assert torch.allclose(blurred(image, sigma)[:, 0], blurred(repeated, sigma)[:, 4], atol=1e-5)


def test_small_patches_of_slices_grow_in_plane():
    for progress, expected in ((0.0, (1, 64, 96)), (0.5, (1, 96, 144)), (1.0, (1, 128, 192))):
        assert patch_size_at((1, 128, 192), (1, 16, 16), progress) == expected


def test_slices_of_a_batch_are_normalised_each_by_itself():
    """A batch of slices is what nnU-Net's 2-D network sees; a stack in one patch would share its norm."""
    torch.manual_seed(0)
    network = UNet(**FLAT).eval()
    slices = torch.randn(3, 1, 1, 16, 16) * torch.tensor([1.0, 5.0, 20.0]).view(3, 1, 1, 1, 1)
    with torch.no_grad():
        together, alone = network(slices), torch.cat([network(one[None]) for one in slices])
    assert torch.allclose(together, alone, atol=1e-5)
