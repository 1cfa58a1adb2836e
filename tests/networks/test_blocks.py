"""Blocks: parameter counts computed by hand, and values against torch's plain convolutions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volseg.config import NetworkConfig
from volseg.networks import Conv2Plus1d
from volseg.networks.blocks import (
    InPlaneConv,
    ResidualBlock,
    ThroughPlaneConv,
    encoder_stages,
    make_activation,
    make_conv,
    make_norm,
    matched_channels,
)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convolution_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv3d))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("kind", "kernel", "stride", "padding"),
    [
        (InPlaneConv, (1, 3, 3), (1, 1, 1), (0, 1, 1)),
        (InPlaneConv, (1, 5, 3), (1, 2, 1), (0, 2, 1)),
        (ThroughPlaneConv, (3, 1, 1), (1, 1, 1), (1, 0, 0)),
        (ThroughPlaneConv, (5, 1, 1), (2, 1, 1), (2, 0, 0)),
    ],
)
def test_folded_convolutions_equal_the_3d_convolution(kind, kernel, stride, padding, memory_format):
    torch.manual_seed(0)
    conv = kind(3, 4, kernel, stride, padding).to(memory_format=memory_format)
    x = torch.randn(2, 3, 7, 6, 9).contiguous(memory_format=memory_format)
    torch.testing.assert_close(conv(x), F.conv3d(x, conv.weight, conv.bias, stride, padding), rtol=1e-5, atol=1e-5)


def test_conv2plus1d_by_hand():
    """Without norm and with ReLU the two halves are two convolutions of the functional interface."""
    torch.manual_seed(0)
    block = Conv2Plus1d(3, 16, mid=32, norm="none", activation="relu")
    x = torch.randn(1, 3, 8, 32, 32)
    middle = F.conv3d(x, block.in_plane.weight, block.in_plane.bias, padding=(0, 1, 1)).relu()
    expected = F.conv3d(middle, block.through_plane.weight, block.through_plane.bias, padding=(1, 0, 0))
    assert expected.shape == (1, 16, 8, 32, 32)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_conv2plus1d_splits_the_stride():
    block = Conv2Plus1d(2, 4, stride=(2, 1, 3))
    assert block.in_plane.stride == (1, 1, 3)
    assert block.through_plane.stride == (2, 1, 1)
    assert block(torch.randn(1, 2, 8, 5, 9)).shape == (1, 4, 4, 5, 3)


@pytest.mark.parametrize(("in_channels", "out_channels"), [(16, 16), (32, 64), (64, 32), (48, 320)])
def test_weights_of_each_kind(in_channels, out_channels):
    plain = 27 * in_channels * out_channels
    light = Conv2Plus1d(in_channels, out_channels, "light")
    assert convolution_weights(light) == 9 * in_channels * out_channels + 3 * out_channels**2
    matched = Conv2Plus1d(in_channels, out_channels, "matched")
    per_channel = 9 * in_channels + 3 * out_channels
    assert plain - per_channel < convolution_weights(matched) <= plain
    assert parameters(matched) == convolution_weights(matched) + 2 * (plain // per_channel)


def test_light_has_12_of_27_weights_where_channels_stay():
    assert convolution_weights(Conv2Plus1d(24, 24, "light")) * 27 == 27 * 24 * 24 * 12


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel", "expected"),
    [
        (64, 64, (3, 3, 3), 144),  # 27 * 64 / 12, the number in R(2+1)D's first stage
        (1, 32, (3, 3, 3), 8),  # 864 / 105 = 8.2, the bottleneck a stem would have
        (8, 16, (5, 3, 3), 37),  # 5760 / (72 + 80) = 37.9
    ],
)
def test_matched_channels(in_channels, out_channels, kernel, expected):
    assert matched_channels(in_channels, out_channels, kernel) == expected


def test_anisotropic_kernel_leaves_a_plain_convolution():
    config = NetworkConfig(block="conv2plus1d")
    conv = make_conv(4, 8, (1, 3, 3), (1, 2, 2), config)
    assert isinstance(conv, InPlaneConv)
    assert parameters(conv) == 9 * 4 * 8
    assert isinstance(make_conv(4, 8, (3, 3, 3), (1, 1, 1), config), Conv2Plus1d)


def test_convolutions_have_a_bias_only_without_norm():
    assert make_conv(4, 8, (3, 3, 3), (1, 1, 1), NetworkConfig()).bias is None
    assert make_conv(4, 8, (3, 3, 3), (1, 1, 1), NetworkConfig(norm="none")).bias.shape == (8,)


def test_stem_stays_plain():
    stages = encoder_stages(NetworkConfig(block="conv2plus1d", mid="matched"))
    assert isinstance(stages[0][0].conv, nn.Conv3d)
    assert isinstance(stages[0][1].conv, Conv2Plus1d)


def test_residual_block_by_hand():
    torch.manual_seed(0)
    block = ResidualBlock(3, 5, (3, 3, 3), (1, 2, 2), NetworkConfig(norm="none", activation="relu"))
    x = torch.randn(2, 3, 4, 6, 8)
    first = F.conv3d(x, block.first.conv.weight, block.first.conv.bias, (1, 2, 2), 1).relu()
    second = F.conv3d(first, block.second.weight, block.second.bias, 1, 1)
    skip = F.conv3d(F.avg_pool3d(x, (1, 2, 2)), block.skip[1].weight)
    torch.testing.assert_close(block(x), (second + skip).relu(), rtol=1e-4, atol=1e-5)


def test_residual_block_of_one_size_adds_its_input():
    block = ResidualBlock(3, 3, (3, 3, 3), (1, 1, 1), NetworkConfig())
    nn.init.zeros_(block.norm.weight)
    x = torch.rand(1, 3, 4, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("norm", "channels", "groups"), [("group", 32, 8), ("group", 12, 4), ("group", 7, 1)])
def test_group_norm_divides_the_channels(norm, channels, groups):
    assert make_norm(norm, channels).num_groups == groups


def test_norms_and_activations_by_name():
    assert isinstance(make_norm("batch", 4), nn.BatchNorm3d)
    assert isinstance(make_norm("none", 4), nn.Identity)
    x = torch.tensor([-1.0, 2.0])
    assert make_activation("leaky_relu")(x.clone()).tolist() == pytest.approx([-0.01, 2.0])
    assert make_activation("relu")(x.clone()).tolist() == [0.0, 2.0]
    assert make_activation("gelu")(x).tolist() == pytest.approx([-0.15866, 1.9545], abs=1e-4)
