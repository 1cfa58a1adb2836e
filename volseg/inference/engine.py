"""From a volume on the network's grid to labels on the scan's grid: windows, blending and upsampling in one stream."""

import torch

from volseg.config import Triple
from volseg.inference.stream import Predictor, Progress, stream_logits
from volseg.inference.upsample import labels_from_slabs
from volseg.inference.windows import Windows


@torch.no_grad()
def segment(
    volume: torch.Tensor,
    predictor: Predictor,
    windows: Windows,
    box_shape: Triple,
    *,
    device: torch.device | None = None,
    nearest_axis: int | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Label a volume; beyond it and its labels, memory does not grow with the length of its longest axis.

    Args:
        volume: (C, D, H, W) on the network's grid, float32, float16 or bfloat16, on any device.
        predictor: (B, C, d, h, w) float32 windows to (B, K, d, h, w) logits, on `device`.
        windows: size, overlap, batch and mirroring of the windows.
        box_shape: (D0, H0, W0) of the scan's grid before it was resampled to (D, H, W).
        device: where windows, logits and labels are computed; the volume's own by default.
        nearest_axis: the axis of the volume (0, 1, 2) that is carried back by nearest neighbour; the others are linear.
        progress: called with the number of windows done and of all windows.

    Returns:
        (D0, H0, W0) class indices on the volume's device, uint8 up to 255 classes and int16 above; the memory order
        has the longest axis first.

    Raises:
        VolsegError: the predictor answered with infinite values or values that are no numbers.
    """
    shape = volume.shape[1:]
    axis = max(range(3), key=lambda one: shape[one])
    order = [axis, *(other for other in range(3) if other != axis)]
    slabs = stream_logits(volume, predictor, windows, axis, device or volume.device, progress)
    labels = labels_from_slabs(
        slabs,
        source=(shape[order[0]], shape[order[1]], shape[order[2]]),
        target=(box_shape[order[0]], box_shape[order[1]], box_shape[order[2]]),
        nearest_axis=None if nearest_axis is None else order.index(nearest_axis),
        labels_device=volume.device,
    )
    return labels.movedim(0, axis)
