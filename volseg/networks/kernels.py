"""How each device computes the layers: the choices for the CPU and for GPUs side by side.

Everywhere the weights of convolutions are in channels-last format (`WEIGHTS`). Convolutions then compute in that format
whatever the format of their input: on a CPU about twice as fast for large feature maps, and on a GPU the format of the
tensor cores. What follows a convolution must keep the format, because every change of it is a copy of a feature map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

WEIGHTS = torch.channels_last_3d
# Of instance norm: our own sums; torch's batch norm of each sample by itself; torch's instance norm, which copies
# channels-last maps to contiguous ones.
OWN_SUMS, BY_SAMPLE, TORCH = "own sums", "batch norm by sample", "torch"


@dataclass(frozen=True)
class Kernels:
    """How a device computes the layers.

    Args:
        norms: instance norm by the type of the feature maps; `TORCH` for others.
        by_planes: whether in-plane and through-plane convolutions are computed in 2-D; else by the 3-D convolution.
        onednn: whether the layers of `volseg.networks.cpu` call oneDNN themselves: Winograd's convolution, memory that
            is used again, norms in place.
        cudnn: whether cuDNN computes the convolutions. It is told the format of maps with a single channel, whose
            strides leave it open; and it may time its kernels where shapes are fixed, see
            `volseg.precision.tuned_convolutions`.
        head_rows: voxels whose float32 features are in memory at once in the last layer.
    """

    norms: Mapping[torch.dtype, str] = field(default_factory=dict)
    by_planes: bool = True
    onednn: bool = False
    cudnn: bool = False
    head_rows: int = 1 << 20


KERNELS = {
    "cpu": Kernels(
        # torch's batch norm adds up one voxel after the other, which is too coarse for float32.
        norms={torch.float32: OWN_SUMS, torch.bfloat16: BY_SAMPLE},
        by_planes=True,
        onednn=True,
        # Few enough that the float32 copy stays in a processor's cache.
        head_rows=1 << 15,
    ),
    "cuda": Kernels(
        # Its kernels for channels-last maps add up by Welford's algorithm, in float32.
        norms={torch.float32: BY_SAMPLE, torch.bfloat16: BY_SAMPLE, torch.float16: BY_SAMPLE},
        # cuDNN has kernels for both, and folding the axes would copy the maps.
        by_planes=False,
        cudnn=True,
    ),
}
# Such as mps: torch's own layers.
_OTHERS = Kernels()


def kernels_of(x: torch.Tensor) -> Kernels:
    """How the device of a tensor computes."""
    return KERNELS.get(x.device.type, _OTHERS)
