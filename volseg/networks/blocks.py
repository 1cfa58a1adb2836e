"""Building blocks of the networks: convolutions, norms, the residual block, and the encoder's stages.

Tensors are (B, C, D, H, W): batch, channels, through-plane, and the two in-plane axes. Kernel sizes are odd and
every convolution pads by half its kernel, so only strides change sizes. No convolution has a bias where a norm
follows, because the norm removes it.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from volseg.config import Activation, Mid, NetworkConfig, Norm, Triple, checked
from volseg.errors import UsageError
from volseg.networks.cpu.conv3d import Conv
from volseg.networks.cpu.instance_norm import InstanceNorm
from volseg.networks.cpu.planar_conv import InPlaneConv, ThroughPlaneConv
from volseg.networks.cuda import AvgPool
from volseg.networks.kernels import WEIGHTS

LEAKY_SLOPE = 0.01
UNIT_STRIDE: Triple = (1, 1, 1)


def config_from(config: NetworkConfig | None, options: Mapping[str, Any]) -> NetworkConfig:
    """`config`, or a configuration with `options` instead of the defaults.

    Raises:
        UsageError: both were given.
        ConfigError: unknown or invalid options.
    """
    if config is None:
        return checked(NetworkConfig, dict(options), "The network's configuration")
    if options:
        raise UsageError(f"Give a NetworkConfig or its fields, found both: {', '.join(options)}.")
    return config


class Conv2Plus1d(nn.Module):
    """A 3-D convolution as two: (1, k, k) in the plane, norm and activation, then (k, 1, 1) through the plane.

    The stride is split between the halves. They have a bias only if `norm` is "none".

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        mid: mid channels, between the halves: "light" for `out_channels`, "matched" for about as many parameters as
            the 3-D convolution has, or a number.
        kernel: kernel size (D, H, W), odd.
        stride: stride (D, H, W).
        norm: norm between the halves.
        activation: activation between the halves.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mid: Mid = "light",
        kernel: Triple = (3, 3, 3),
        stride: Triple = UNIT_STRIDE,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        depth, height, width = kernel
        if mid == "light":
            mid = out_channels
        elif mid == "matched":
            mid = matched_channels(in_channels, out_channels, kernel)
        bias = norm == "none"
        in_stride, through_stride = (1, stride[1], stride[2]), (stride[0], 1, 1)
        self.in_plane = InPlaneConv(
            in_channels, mid, (1, height, width), in_stride, (0, height // 2, width // 2), bias=bias
        )
        self.norm = make_norm(norm, mid)
        self.activation = make_activation(activation)
        self.through_plane = ThroughPlaneConv(
            mid, out_channels, (depth, 1, 1), through_stride, (depth // 2, 0, 0), bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in_channels, D, H, W) to (B, out_channels, D', H', W'), sizes divided by the stride."""
        out: Tensor = self.through_plane(self.activation(self.norm(self.in_plane(x))))
        return out


class ConvBlock(nn.Module):
    """Convolution, norm and activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: kernel size (D, H, W).
        stride: stride (D, H, W).
        config: block, mid, norm and activation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple, config: NetworkConfig
    ) -> None:
        super().__init__()
        self.conv = make_conv(in_channels, out_channels, kernel, stride, config)
        self.norm = make_norm(config.norm, out_channels)
        self.activation = make_activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, out_channels, D', H', W'), sizes divided by the stride."""
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class ResidualBlock(nn.Module):
    """Two convolutions with the residual connection of ResNet-D (He et al. 2019, arXiv 1812.01187).

    The residual connection is average pooling over the stride, then a 1 x 1 x 1 convolution where the number of
    channels changes. This is nnU-Net's BasicBlockD.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: kernel size (D, H, W) of both convolutions.
        stride: stride (D, H, W) of the first.
        config: block, mid, norm and activation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple, config: NetworkConfig
    ) -> None:
        super().__init__()
        self.first = ConvBlock(in_channels, out_channels, kernel, stride, config)
        self.second = make_conv(out_channels, out_channels, kernel, UNIT_STRIDE, config)
        self.norm = make_norm(config.norm, out_channels)
        self.activation = make_activation(config.activation)
        self.skip = nn.Sequential()
        if stride != UNIT_STRIDE:
            # ceil_mode: for sizes that the stride does not divide, as the padded convolution has it.
            self.skip.append(AvgPool(stride))
        if in_channels != out_channels:
            self.skip.append(nn.Conv3d(in_channels, out_channels, 1, bias=False))
            self.skip.append(make_norm(config.norm, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, out_channels, D', H', W'), sizes divided by the stride."""
        out: Tensor = self.activation(self.norm(self.second(self.first(x))) + self.skip(x))
        return out


def encoder_stages(config: NetworkConfig) -> nn.ModuleList:
    """The encoder: one stage per entry of `config.features`, finest first; the first block of each has its stride.

    The very first convolution, the stem, is a plain 3-D one: a "matched" (2+1)D convolution from 1 to 32 channels
    would have a bottleneck of 8. In a plain encoder the stem is the first block of `encoder_blocks`, in a residual
    encoder it comes before them.
    """
    stem_config = config.model_copy(update={"block": "conv3d"})
    stem = ConvBlock(config.in_channels, config.features[0], config.kernels[0], config.strides[0], stem_config)
    make_block = ResidualBlock if config.encoder == "residual" else ConvBlock
    stages = nn.ModuleList()
    in_channels = config.features[0]
    for s, (channels, kernel, stride) in enumerate(zip(config.features, config.kernels, config.strides, strict=True)):
        stage = nn.Sequential()
        if s == 0:
            stage.append(stem)
            stride = UNIT_STRIDE
        for _ in range(config.encoder_blocks[s] - (s == 0 and config.encoder == "plain")):
            stage.append(make_block(in_channels, channels, kernel, stride, config.at(s)))
            in_channels, stride = channels, UNIT_STRIDE
        stages.append(stage)
    return stages


def make_conv(in_channels: int, out_channels: int, kernel: Triple, stride: Triple, config: NetworkConfig) -> nn.Module:
    """The convolution of type `config.block`, a single name; a kernel without through-plane extent is not split."""
    if config.block == "conv2plus1d" and kernel[0] > 1:
        return Conv2Plus1d(in_channels, out_channels, config.mid, kernel, stride, config.norm, config.activation)
    depth, height, width = kernel
    padding = (depth // 2, height // 2, width // 2)
    kind = InPlaneConv if depth == stride[0] == 1 else Conv
    return kind(in_channels, out_channels, kernel, stride, padding, bias=config.norm == "none")


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """A norm by name, which may overwrite its input; "group" has gcd(8, channels) groups."""
    if norm == "instance":
        return InstanceNorm(channels, inplace=True)
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    return nn.Identity()


def make_activation(activation: Activation) -> nn.Module:
    """An activation by name, in place where its gradient allows it."""
    if activation == "leaky_relu":
        return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
    if activation == "relu":
        return nn.ReLU(inplace=True)
    return nn.GELU()


def matched_channels(in_channels: int, out_channels: int, kernel: Triple) -> int:
    """The mid channels that give a (2+1)D convolution the parameters of the 3-D one, rounded down.

    Tran et al. 2018, A Closer Look at Spatiotemporal Convolutions for Action Recognition, arXiv 1711.11248, sec. 3.5.
    """
    depth, plane = kernel[0], kernel[1] * kernel[2]
    return depth * plane * in_channels * out_channels // (plane * in_channels + depth * out_channels)


def initialise(network: nn.Module) -> None:
    """Draw convolution weights from He's normal distribution and set their biases to 0, as nnU-Net does.

    The weights are in the format of `volseg.networks.kernels.WEIGHTS`.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            # Without values there is nothing to draw, but torch would load its compiler for it.
            if not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
            module.weight.data = module.weight.data.contiguous(memory_format=WEIGHTS)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
