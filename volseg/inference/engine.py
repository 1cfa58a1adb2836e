"""From a volume on the network's grid to labels on the scan's grid: windows, blending and upsampling in one stream."""

from collections.abc import Iterator

import torch

from volseg.config import Triple
from volseg.inference.stream import SLAB_LOGITS, Predictor, Progress, stream_logits, stream_order
from volseg.inference.upsample import Decide, Sink, label_slabs, winner
from volseg.inference.windows import Windows


@torch.no_grad()
def segment(
    volume: torch.Tensor,
    predictor: Predictor,
    windows: Windows,
    box_shape: Triple,
    *,
    decide: Decide = winner,
    nearest_axis: int | None = None,
    device: torch.device | None = None,
    sink: Sink | None = None,
    slab_logits: int = SLAB_LOGITS,
    progress: Progress | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Label a volume a few planes at a time; beyond it, memory does not grow with the length of its longest axis.

    Args:
        volume: (C, D, H, W) on the network's grid, float32, float16 or bfloat16, on any device.
        predictor: answers windows on `device`.
        windows: size, overlap, batch and mirroring of the windows.
        box_shape: (D0, H0, W0) of the scan's grid before it was resampled to (D, H, W).
        decide: the class at each voxel: `winner`, or `last_present` for overlapping regions.
        nearest_axis: the axis of the volume (0, 1, 2) that is carried back by nearest neighbour; the others are linear.
        device: where windows, logits and labels are computed; the volume's own by default.
        sink: also given the logits on the scan's grid, in stream order.
        slab_logits: logits on the network's grid that are held at a time, at least those of one plane.
        progress: called with the number of windows done and of all windows.

    Yields:
        Index of the first plane along the axis `stream_order(D, H, W)` begins with, and class indices (planes, rows,
        columns) in that order, uint8 up to 254 classes and int16 above; in order, without gaps.

    Raises:
        VolsegError: the predictor answered with infinite values or values that are no numbers.
    """
    d, h, w = volume.shape[1:]
    order = stream_order((d, h, w))
    slabs = stream_logits(volume, predictor, windows, order, device or volume.device, slab_logits, progress)
    yield from label_slabs(
        slabs,
        source=(volume.shape[1 + order[0]], volume.shape[1 + order[1]], volume.shape[1 + order[2]]),
        target=(box_shape[order[0]], box_shape[order[1]], box_shape[order[2]]),
        decide=decide,
        nearest_axis=None if nearest_axis is None else order.index(nearest_axis),
        sink=sink,
    )
