"""The description of a network."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from volseg.config.values import Activation, Frozen, Mid, Name, Norm, Size, Triple
from volseg.text import shortened

Block = Literal["conv3d", "conv2plus1d"]
# Discriminated before validation, so that an error names only one of the two.
Blocks = Annotated[
    Annotated[Block, Tag("all")] | Annotated[tuple[Block, ...], Tag("each")],
    Discriminator(lambda value: "all" if isinstance(value, str) else "each"),
]
STAGES = 4
# The architecture of a network of the caller's own, which no file describes: see `volseg.networks.own`.
CUSTOM = "custom"
# Bounds that no real network comes near: the largest residual encoders of nnU-Net have 9 stages, 512 features,
# 60 blocks and 1e9 weights at most.
MOST_STAGES, MOST_BLOCKS, LARGEST_KERNEL, LARGEST_STRIDE, MOST_WEIGHTS = 12, 500, 31, 64, 4 * 10**9


class NetworkConfig(Frozen):
    """A network, stage by stage; stage 0 is the finest. All per-stage lists have one entry per encoder stage.

    Lists that are not given follow from `features`: two blocks per stage, kernels of 3, strides of 2.
    """

    architecture: Name = Field("unet", description="a name in `volseg.networks.NETWORKS`; custom: a caller's own")
    in_channels: Size = 1
    classes: Size = Field(2, description="background included")
    block: Blocks = Field("conv3d", description="of all stages, or one for each")
    mid: Mid = "light"
    encoder: Literal["plain", "residual"] = "plain"
    features: tuple[Size, ...] = Field(
        tuple(32 * 2**stage for stage in range(STAGES)), min_length=1, max_length=MOST_STAGES
    )
    encoder_blocks: tuple[int, ...] = (2,) * STAGES
    decoder_blocks: tuple[int, ...] = (2,) * (STAGES - 1)
    kernels: tuple[Triple, ...] = ((3, 3, 3),) * STAGES
    strides: tuple[Triple, ...] = ((1, 1, 1), *((2, 2, 2),) * (STAGES - 1))
    norm: Norm = "instance"
    activation: Activation = "leaky_relu"
    deep_supervision: bool = True

    @model_validator(mode="before")
    @classmethod
    def _fill_stages(cls, given: Any) -> Any:
        features = given.get("features") if isinstance(given, dict) else None
        if not isinstance(features, list | tuple) or len(features) > MOST_STAGES:
            return given
        stages = len(features)
        filled = {
            "encoder_blocks": (2,) * stages,
            "decoder_blocks": (2,) * (stages - 1),
            "kernels": ((3, 3, 3),) * stages,
            "strides": ((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
        }
        return filled | given

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        stages = len(self.features)
        lengths = {
            "encoder_blocks": (len(self.encoder_blocks), stages),
            "decoder_blocks": (len(self.decoder_blocks), stages - 1),
            "kernels": (len(self.kernels), stages),
            "strides": (len(self.strides), stages),
            "block": (len(self.blocks), stages),
        }
        for name, (found, expected) in lengths.items():
            if found != expected:
                raise ValueError(f"network.{name} has {found} entries, but {stages} features need {expected}")
        if any(size % 2 == 0 or size < 1 for kernel in self.kernels for size in kernel):
            raise ValueError(f"network.kernels are {self.kernels}, but kernel sizes have to be odd")
        if self.strides[0] != (1, 1, 1) or any(step < 1 for stride in self.strides for step in stride):
            raise ValueError(f"network.strides are {self.strides}, but have to start with (1, 1, 1) and be 1 or more")
        if min(*self.features, *self.encoder_blocks, *self.decoder_blocks) < 1:
            raise ValueError("network.features, encoder_blocks and decoder_blocks have to be 1 or more")
        return self._within_bounds()

    def _within_bounds(self) -> Self:
        """Refuse a network that no machine could hold."""
        largest = {
            "kernel sizes": (max(size for kernel in self.kernels for size in kernel), LARGEST_KERNEL),
            "strides": (max(step for stride in self.strides for step in stride), LARGEST_STRIDE),
            "blocks": (sum(self.encoder_blocks) + sum(self.decoder_blocks), MOST_BLOCKS),
        }
        for name, (found, most) in largest.items():
            if found > most:
                raise ValueError(f"network has {name} of {shortened(str(found), 30)}, but at most {most} are supported")
        if (weights := self._most_weights()) > MOST_WEIGHTS:
            raise ValueError(f"network has up to {weights:.1e} weights, but at most {MOST_WEIGHTS:.0e} are supported")
        return self

    def _most_weights(self) -> int:
        """An upper bound of the number of weights, by its 3-D convolutions."""
        total = 0
        for s, (features, kernel, stride) in enumerate(zip(self.features, self.kernels, self.strides, strict=True)):
            finer = self.features[s - 1] if s else self.in_channels
            decoder = self.decoder_blocks[s] + 1 if s < len(self.decoder_blocks) else 0
            middle = self.mid * sum(kernel) // features if isinstance(self.mid, int) else 0
            # A residual block has two convolutions.
            first = 2 * max(finer, features) * features
            others = 2 * features * (features + middle) * (self.encoder_blocks[s] + decoder)
            total += math.prod(kernel) * (first + others) + math.prod(stride) * finer * features
        return total

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The convolution type of each stage."""
        return (self.block,) * len(self.features) if isinstance(self.block, str) else self.block

    def at(self, stage: int) -> Self:
        """This configuration with the convolution type of one stage in every stage."""
        return self.model_copy(update={"block": self.blocks[stage]})

    @property
    def divisor(self) -> Triple:
        """The product of all strides; each spatial size of the input has to be a multiple of it."""
        total = [1, 1, 1]
        for stride in self.strides:
            total = [a * b for a, b in zip(total, stride, strict=True)]
        return (total[0], total[1], total[2])
