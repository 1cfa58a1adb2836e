"""How deep a U-Net goes and with which strides and kernels: nnU-Net v2's rules (Isensee et al. 2021).

All triples are in network order (D, H, W).
"""

import math
from dataclasses import dataclass

from volseg.config import NetworkConfig, Triple

SMALLEST_EDGE = 4


@dataclass(frozen=True)
class Topology:
    """The stages of a U-Net, finest first.

    Args:
        strides: per stage; the first is (1, 1, 1).
        kernels: per stage.
    """

    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    def first(self, stages: int) -> "Topology":
        """The same topology with fewer stages."""
        return Topology(self.strides[:stages], self.kernels[:stages])

    @property
    def divisor(self) -> Triple:
        """What each edge of a patch has to be a multiple of."""
        divisor = [math.prod(stride[axis] for stride in self.strides) for axis in range(3)]
        return (divisor[0], divisor[1], divisor[2])

    def padded(self, patch: Triple) -> Triple:
        """The smallest patch that holds `patch` and fits the strides."""
        edges = [math.ceil(edge / divisor) * divisor for edge, divisor in zip(patch, self.divisor, strict=True)]
        return (edges[0], edges[1], edges[2])


def plan_topology(spacing_mm: tuple[float, float, float], patch: Triple) -> Topology:
    """Stages for a patch of this size and spacing.

    In each stage the axes whose spacing is within a factor of 2 of the smallest are halved, as long as the halves
    have 4 voxels (a single axis is halved from 12 voxels up); a kernel is 1 along an axis until its spacing comes
    within that factor, and 3 from then on. The last stage always has kernels of 3.
    """
    spacing, size = list(spacing_mm), [float(edge) for edge in patch]
    kernel = [1, 1, 1]
    strides: list[Triple] = [(1, 1, 1)]
    kernels: list[Triple] = []
    while axes := _axes_to_halve(spacing, size):
        kernel = [
            3 if grown == 3 or edge / min(spacing) < 2 else 1 for grown, edge in zip(kernel, spacing, strict=True)
        ]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        stride = [2 if axis in axes else 1 for axis in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        for axis in axes:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    return Topology(tuple(strides), (*kernels, (3, 3, 3)))


def feature_map_size(network: NetworkConfig, patch: Triple) -> int:
    """Values that the convolutions of a U-Net put out for one patch: nnU-Net's measure of its memory.

    A residual block counts as two convolutions, and so does a (2+1)D convolution.
    """
    voxels = math.prod(patch)
    sizes = []
    for stride in network.strides:
        voxels //= math.prod(stride)
        sizes.append(voxels)
    halves = 2 if network.block == "conv2plus1d" else 1
    per_block = halves * (2 if network.encoder == "residual" else 1)
    encoder = sum(
        per_block * blocks * width * size
        for blocks, width, size in zip(network.encoder_blocks, network.features, sizes, strict=True)
    )
    # Beside its blocks, each decoder stage has a transposed convolution.
    decoder = sum(
        (halves * blocks + 1) * width * size
        for blocks, width, size in zip(network.decoder_blocks, network.features[:-1], sizes[:-1], strict=True)
    )
    return encoder + decoder + network.classes * sizes[0]


def _axes_to_halve(spacing: list[float], size: list[float]) -> list[int]:
    """The axes that the next stage halves; none when the network is deep enough."""
    long_enough = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_EDGE]
    if not long_enough:
        return []
    smallest = min(spacing[axis] for axis in long_enough)
    axes = [axis for axis in long_enough if spacing[axis] / smallest < 2]
    if len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_EDGE:
        return []
    return axes
