"""Depth, strides, kernels and patch size of a U-Net by nnU-Net v2's rules (Isensee et al. 2021).

All triples are in network order (D, H, W).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from volseg.config import Block, NetworkConfig, PlanChoices, Triple, checked
from volseg.errors import ConfigError

Spacing = tuple[float, float, float]
SMALLEST_EDGE = 4
INITIAL_PATCH_VOXELS, INITIAL_SLICE_PIXELS = 256**3, 2048**2
LARGEST_WIDTH = 320
# The least fraction of the median scan that a patch should see.
COVERAGE = 0.25
NETWORK_CHOICES = {"architecture", "block", "mid", "encoder", "norm", "activation", "deep_supervision"}


@dataclass(frozen=True)
class Topology:
    """The stages of a U-Net, finest first.

    Args:
        strides: per stage; the first is (1, 1, 1).
        kernels: per stage.
    """

    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]


def plan_topology(spacing_mm: Spacing, patch: Triple) -> Topology:
    """Stages for a patch of this size and spacing.

    Each stage halves the axes whose spacing is within a factor of 2 of the smallest, while the halves have at least 4
    voxels (a single axis is halved from 12 voxels up). A kernel is 1 along an axis until its spacing is within that
    factor, and 3 in all later stages. The last stage always has kernels of 3, but along an axis of one voxel all are 1.
    """
    spacing, size = list(spacing_mm), [float(edge) for edge in patch]
    kernel = [1, 1, 1]
    widest = [1 if edge == 1 else 3 for edge in patch]
    strides: list[Triple] = [(1, 1, 1)]
    kernels: list[Triple] = []
    while axes := _axes_to_halve(spacing, size):
        finest = min(along for along, edge in zip(spacing, patch, strict=True) if edge > 1)
        kernel = [
            most if finer == 3 or along / finest < 2 else 1
            for finer, along, most in zip(kernel, spacing, widest, strict=True)
        ]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        stride = [2 if axis in axes else 1 for axis in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        for axis in axes:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    return Topology(tuple(strides), (*kernels, as_triple(widest)))


def feature_map_size(network: NetworkConfig, patch: Triple) -> int:
    """Number of values in all convolution outputs of a U-Net for one patch: nnU-Net's estimate of its memory.

    A residual block counts as two convolutions, and so does a (2+1)D convolution.
    """
    voxels = math.prod(patch)
    sizes = []
    for stride in network.strides:
        voxels //= math.prod(stride)
        sizes.append(voxels)
    halves = [2 if block == "conv2plus1d" else 1 for block in network.blocks]
    per_block = 2 if network.encoder == "residual" else 1
    encoder = sum(
        half * per_block * blocks * width * size
        for half, blocks, width, size in zip(halves, network.encoder_blocks, network.features, sizes, strict=True)
    )
    # Each decoder stage also has a transposed convolution.
    decoder = sum(
        (half * blocks + 1) * width * size
        for half, blocks, width, size in zip(
            halves[:-1], network.decoder_blocks, network.features[:-1], sizes[:-1], strict=True
        )
    )
    return encoder + decoder + network.classes * sizes[0]


def network_config(
    patch: Triple,
    spacing_mm: Spacing,
    choices: PlanChoices,
    channels: int = 1,
    classes: int = 2,
    width: int = 32,
    block: Block = "conv3d",
) -> NetworkConfig:
    """The network for patches of this size and spacing.

    Args:
        patch: the smallest patch size that the network has to accept.
        spacing_mm: of the network's grid.
        choices: what the user has fixed; features, if fixed, determine the number of stages.
        channels: of the input.
        classes: background included.
        width: features of the finest stage; they double from stage to stage, up to 320.
        block: convolution type of all stages, unless the user has fixed it.

    Raises:
        ConfigError: more features than the patch allows stages.
    """
    topology = plan_topology(spacing_mm, patch)
    possible = len(topology.strides)
    features = choices.features or tuple(min(width * 2**stage, LARGEST_WIDTH) for stage in range(possible))
    stages = len(features)
    if stages > possible:
        raise ConfigError(
            f"plan.features has {stages} entries, but a patch of {sizes_text(patch)} allows at most {possible} stages. "
            "Give fewer features or a larger patch."
        )
    # As in nnU-Net: a residual encoder has more blocks in coarser stages, and a light decoder.
    blocks = choices.blocks_per_stage or 2
    encoder_blocks, decoder_blocks = (blocks,) * stages, (blocks,) * (stages - 1)
    if choices.encoder == "residual" and not choices.blocks_per_stage:
        encoder_blocks, decoder_blocks = (1, 3, 4, *(6,) * stages)[:stages], (1,) * (stages - 1)
    document = {
        "in_channels": channels,
        "classes": classes,
        "features": features,
        "encoder_blocks": encoder_blocks,
        "decoder_blocks": decoder_blocks,
        "kernels": topology.kernels[:stages],
        "strides": topology.strides[:stages],
        "block": block,
        **choices.model_dump(include=NETWORK_CHOICES, exclude_none=True),
    }
    return checked(NetworkConfig, document, "The network")


def fit_patch(spacing_mm: Spacing, median: Triple, build: Callable[[Triple], NetworkConfig], budget: float) -> Triple:
    """The largest patch with about the proportions of the median scan whose feature maps fit into the budget.

    Args:
        spacing_mm: of the network's grid.
        median: voxels of the median scan on that grid.
        build: the network for a patch.
        budget: largest number of values in the feature maps of one patch.
    """
    scale = (INITIAL_PATCH_VOXELS * math.prod(spacing_mm)) ** (1 / 3)
    if median[0] == 1:
        scale = (INITIAL_SLICE_PIXELS * math.prod(spacing_mm[1:])) ** (1 / 2)
    patch = [min(round(scale / spacing), edge) or 1 for spacing, edge in zip(spacing_mm, median, strict=True)]
    while True:
        fitting = padded(as_triple(patch), build(as_triple(patch)))
        network = build(fitting)
        if feature_map_size(network, fitting) <= budget:
            return fitting
        # Of axes as long as the scan, the last is shortened first, so that a scan with few thick slices keeps them all.
        divisible = [axis for axis in (2, 1, 0) if fitting[axis] > network.divisor[axis]]
        if not divisible:
            return fitting
        axis = max(divisible, key=lambda one: fitting[one] / median[one])
        # The step is the divisor of the shorter patch, which may be smaller than that of the current one.
        patch, shorter = list(fitting), list(fitting)
        shorter[axis] -= network.divisor[axis]
        patch[axis] -= build(as_triple(shorter)).divisor[axis]


def little_seen(patch: Triple, median: Triple, spacing_mm: Spacing) -> str:
    """A warning with the numbers if a patch sees less than a quarter of the median scan, else "".

    nnU-Net's rule for a second configuration at low resolution. A coarser spacing is not planned by itself, because
    small structures lose more by it: Dice 0.774 instead of 0.798 for sarcomas at 1.95 instead of 0.98 mm
    (benchmarks/EXPERIMENTS.md), although a patch saw all of the scan.

    Args:
        patch: voxels.
        median: voxels of the median scan on the same grid.
        spacing_mm: of the grid.
    """
    shares = [min(edge / whole, 1.0) for edge, whole in zip(patch, median, strict=True)]
    seen = math.prod(shares)
    if seen >= COVERAGE:
        return ""
    # Along D nothing is gained where a patch has all slices, or is one of them.
    growing = [share < 1 and edge > 1 for share, edge in zip(shares, patch, strict=True)]
    factor = (COVERAGE / seen) ** (1 / max(1, sum(growing)))
    coarser = [along * (factor if grows else 1) for along, grows in zip(spacing_mm, growing, strict=True)]
    proposed = ", ".join(f"{one:.2g}" for one in coarser)
    return (
        f"A patch of {sizes_text(patch)} sees {100 * seen:.2g} % of the median scan of {sizes_text(median)} voxels, "
        f"and may not tell where in the body it is; plan.spacing_mm=[{proposed}] would see {100 * COVERAGE:.0f} %, "
        "with less detail"
    )


def padded(patch: Triple, network: NetworkConfig) -> Triple:
    """The smallest patch that contains `patch` and is a multiple of the network's strides."""
    return as_triple([math.ceil(edge / one) * one for edge, one in zip(patch, network.divisor, strict=True)])


def as_triple(values: Sequence[int]) -> Triple:
    """Three values as a tuple of known length."""
    return values[0], values[1], values[2]


def sizes_text(values: Triple) -> str:
    """Sizes for messages: "40 x 40 x 56"."""
    return " x ".join(str(value) for value in values)


def _axes_to_halve(spacing: list[float], size: list[float]) -> list[int]:
    """The axes that the next stage halves; none if the network is deep enough."""
    long_enough = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_EDGE]
    if not long_enough:
        return []
    smallest = min(spacing[axis] for axis in long_enough)
    axes = [axis for axis in long_enough if spacing[axis] / smallest < 2]
    if len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_EDGE:
        return []
    return axes
