"""The U-Net: an encoder, a decoder with skip connections, and heads that give class logits.

Tensors are (B, C, D, H, W). With plain `conv3d` blocks this is nnU-Net's PlainConvUNet, with a residual encoder its
ResidualEncoderUNet (Isensee et al. 2024, arXiv 2404.09556), layer for layer, so their weights can be loaded one to one.
The only parameters missing are convolution biases before norms, which have no effect.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from volseg.config import NetworkConfig, Triple
from volseg.errors import UsageError
from volseg.networks.blocks import UNIT_STRIDE, ConvBlock, config_from, encoder_stages, initialise
from volseg.networks.cpu.point_conv import PointConv
from volseg.networks.cpu.up_conv import UpConv


class UNet(nn.Module):
    """A U-Net built from its configuration.

    With instance norm the input has to be larger than `config.divisor` along at least one axis, because a single
    voxel at the deepest stage has no variance.

    Args:
        config: channels, classes, and the blocks of each stage.
        options: instead of `config`, the fields of a `NetworkConfig` that differ from its defaults; lists that are not
            given follow from `features`: `UNet(in_channels=1, classes=3, features=[16, 32, 64])`.

    Attributes:
        encoder: stages, finest first.
        decoder: stages in the order in which they run, coarsest first.
        heads: the 1 x 1 x 1 convolution to class logits of each decoder stage, in the decoder's order (coarsest first);
            without deep supervision only that of the finest stage. `forward` returns their logits finest first.

    Raises:
        ConfigError: invalid options.
        UsageError: fewer than two stages.
    """

    def __init__(self, config: NetworkConfig | None = None, **options: Any) -> None:
        super().__init__()
        config = config_from(config, options)
        if len(config.features) < 2:
            raise UsageError(f"A U-Net needs two stages or more, but features are {config.features}.")
        self.config = config
        self.encoder = encoder_stages(config)
        self.decoder = nn.ModuleList(DecoderStage(s, config) for s in reversed(range(len(config.features) - 1)))
        supervised = config.features[-2::-1] if config.deep_supervision else config.features[:1]
        self.heads = nn.ModuleList(PointConv(channels, config.classes) for channels in supervised)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Compute class logits.

        Args:
            x: (B, in_channels, D, H, W), each size a multiple of `config.divisor`.

        Returns:
            Logits (B, classes, D, H, W). In training with deep supervision: a list of logits, one per decoder stage,
            finest first, each at its own resolution.

        Raises:
            UsageError: wrong number of axes or channels, a size that does not fit, or an input too small for its norm.
        """
        maps = self.decode(x)
        if self.training and self.config.deep_supervision:
            return [head(features) for head, features in zip(self.heads, maps, strict=True)][::-1]
        for features in maps:
            finest = features  # coarser ones are freed
        logits: Tensor = self.heads[-1](finest)
        return logits

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """The finest head as a matrix: weight (classes, features) and bias (classes)."""
        finest = self.heads[-1]
        assert isinstance(finest, nn.Conv3d)
        assert finest.bias is not None
        return finest.weight.flatten(1), finest.bias

    def decode(self, x: Tensor) -> Iterator[Tensor]:
        """The features of each decoder stage for (B, in_channels, D, H, W), coarsest first: the inputs of the heads."""
        _check_input(x, self.config)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            x = stage(x, skips)
            yield x


class DecoderStage(nn.Module):
    """Upsampling by a transposed convolution, concatenation with the skip connection, then conv blocks.

    Args:
        s: the encoder stage of the same resolution.
        config: features, kernels, strides and blocks of all stages.
    """

    def __init__(self, s: int, config: NetworkConfig) -> None:
        super().__init__()
        channels, stride = config.features[s], config.strides[s + 1]
        self.up = UpConv(config.features[s + 1], channels, stride)
        self.blocks = nn.Sequential()
        for block in range(config.decoder_blocks[s]):
            in_channels = channels if block else 2 * channels
            self.blocks.append(ConvBlock(in_channels, channels, config.kernels[s], UNIT_STRIDE, config.at(s)))

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Map (B, features[s + 1], ...) and the last of `skips`, (B, features[s], D, H, W), to that one's shape.

        The skip connection is removed from the list and the blocks are called one by one, so that without gradients
        every tensor is freed right after its use: these are the largest of the network.
        """
        x = self.up.concatenate(x, skips)
        for block in self.blocks:
            x = block(x)
        return x


def _check_input(x: Tensor, config: NetworkConfig) -> None:
    """Reject an input that the network cannot process."""
    if x.ndim != 5:
        raise UsageError(f"The input has {x.ndim} axes, expected 5: (B, C, D, H, W).")
    if x.shape[1] != config.in_channels:
        raise UsageError(f"The input has {x.shape[1]} channels, but the network was built for {config.in_channels}.")
    sizes = list(x.shape[2:])
    needed = [-(-size // divisor) * divisor for size, divisor in zip(sizes, config.divisor, strict=True)]
    if sizes != needed:
        raise UsageError(
            f"The input is {_product(sizes)}, but each size has to be a multiple of {_product(config.divisor)}. "
            f"Pad it to {_product(needed)}."
        )


def _product(sizes: list[int] | Triple) -> str:
    """Sizes for a message, such as 40 x 56 x 40."""
    return " x ".join(str(size) for size in sizes)
