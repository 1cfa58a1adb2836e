"""Stages, kernels and patches against nnU-Net's published plans and by hand. Triples are D, H, W."""

from functools import partial

import pytest
import torch
from torch import nn

from volseg.config import NetworkConfig, PlanChoices
from volseg.errors import ConfigError
from volseg.networks import UNet
from volseg.planning.topology import feature_map_size, fit_patch, network_config, padded, plan_topology

ONE, ALL, PLANE = (1, 1, 1), (2, 2, 2), (1, 2, 2)
BUDGET_8_GB = 560e6


@pytest.mark.parametrize(
    ("spacing", "patch", "strides", "kernels"),
    [
        # The hippocampus, from nnU-Net's plans.json: 36 x 35 x 50 at 1 mm.
        ((1, 1, 1), (36, 35, 50), (ONE, ALL, ALL, ALL), ((3, 3, 3),) * 4),
        # By hand: 3.6 / 0.6 and 3.6 / 1.2 are 2 or more, 3.6 / 2.4 is not; D 20 > 10 > 5, H and W 192 > ... > 6.
        (
            (3.6, 0.6, 0.6),
            (20, 192, 192),
            (ONE, PLANE, PLANE, ALL, ALL, PLANE),
            ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        ),
        # Exactly twice the spacing is not within a factor of 2.
        ((2, 1, 1), (16, 32, 32), (ONE, PLANE, ALL, ALL), ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))),
        # An edge below 8 is never halved; a single axis only from 12 voxels up.
        ((1, 1, 1), (7, 7, 7), (ONE,), ((3, 3, 3),)),
        ((1, 1, 1), (4, 4, 11), (ONE,), ((3, 3, 3),)),
        ((1, 1, 1), (4, 4, 12), (ONE, (1, 1, 2)), ((3, 3, 3),) * 2),
    ],
)
def test_topology(spacing, patch, strides, kernels):
    topology = plan_topology(spacing, patch)
    assert topology.strides == strides
    assert topology.kernels == kernels


def test_features_double_up_to_320():
    network = network_config((128, 128, 128), (1, 1, 1), PlanChoices())
    assert network.features == (32, 64, 128, 256, 320, 320)
    assert network.divisor == (32, 32, 32)


def test_residual_stages_grow_deeper():
    network = network_config((128, 128, 128), (1, 1, 1), PlanChoices(encoder="residual"))
    assert network.encoder_blocks == (1, 3, 4, 6, 6, 6)
    assert network.decoder_blocks == (1,) * 5


def test_choices_override_the_rules():
    choices = PlanChoices(
        features=(8, 16), blocks_per_stage=1, block="conv2plus1d", norm="group", deep_supervision=False
    )
    network = network_config((40, 40, 40), (1, 1, 1), choices, channels=2, classes=4)
    assert network == NetworkConfig(
        in_channels=2,
        classes=4,
        block="conv2plus1d",
        features=(8, 16),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
        kernels=((3, 3, 3),) * 2,
        strides=(ONE, ALL),
        norm="group",
        deep_supervision=False,
    )


def test_more_features_than_stages_are_rejected():
    with pytest.raises(
        ConfigError, match="features has 5 entries, but a patch of 40 x 40 x 56 allows at most 4 stages"
    ):
        network_config((40, 40, 56), (1, 1, 1), PlanChoices(features=(8, 16, 32, 64, 128)))


@pytest.mark.parametrize(
    "choices", [PlanChoices(), PlanChoices(block="conv2plus1d", mid="light")], ids=["conv3d", "conv2plus1d"]
)
def test_feature_map_size_is_the_size_of_all_convolution_outputs(choices):
    patch = (16, 32, 32)
    network = network_config(patch, (2.5, 1, 1), choices, classes=3, width=4)
    sizes = []
    unet = UNet(network).eval()
    for module in unet.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(lambda _module, _input, output: sizes.append(output.numel()))
    unet(torch.zeros(1, 1, *patch))  # with gradients, because without them the upsampling is done in place
    # The stem and in-plane kernels stay one convolution in a (2+1)D network, so there the measure is an upper bound.
    if choices.block == "conv3d":
        assert sum(sizes) == feature_map_size(network, patch)
    else:
        assert 0.75 * feature_map_size(network, patch) < sum(sizes) <= feature_map_size(network, patch)


@pytest.mark.parametrize(
    ("spacing", "median", "expected"),
    [
        ((1, 1, 1), (36, 35, 50), (40, 40, 56)),  # hippocampus: the whole scan
        ((1, 1, 1), (138, 170, 138), (128, 128, 128)),  # brain tumour crops
        ((5, 1.5625, 1.5625), (9, 237, 208), (10, 256, 224)),  # heart cine, thick slices: the whole scan
    ],
)
def test_patch_within_8_gb(spacing, median, expected):
    build = partial(network_config, spacing_mm=spacing, choices=PlanChoices())
    patch = fit_patch(spacing, median, build, BUDGET_8_GB)
    assert patch == expected
    assert feature_map_size(build(patch), patch) <= BUDGET_8_GB


@pytest.mark.parametrize("budget", [1e5, 1e6, 1e7, 1e8, 1e9])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 0.7, 0.7), (1.5, 0.8, 0.8)])
def test_patch_always_fits_the_budget_and_the_strides(budget, spacing):
    build = partial(network_config, spacing_mm=spacing, choices=PlanChoices())
    median = (90, 300, 420)
    patch = fit_patch(spacing, median, build, budget)
    network = build(patch)
    assert feature_map_size(network, patch) <= budget
    assert padded(patch, network) == patch
    assert all(edge < size + divisor for edge, size, divisor in zip(patch, median, network.divisor, strict=True))
