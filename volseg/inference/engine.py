"""Sliding-window inference on a whole volume: to labels in image space, or to logits for any torch module."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from volseg.config import Triple
from volseg.inference.stream import Engine, Observer, stream_logits, stream_order
from volseg.inference.upsample import Decide, Sink, label_slabs, winner


@dataclass(frozen=True)
class Target:
    """The grid that logits are resampled to, and how a class is decided there.

    Args:
        shape: (D0, H0, W0) of the scan, before it was resampled to the volume's (D, H, W).
        decide: the class at each voxel: `winner`, or `last_present` for overlapping regions.
        nearest_axis: axis of the volume (0, 1, 2) that is resampled by nearest neighbour; the others are linear.
        sink: also called with the logits on that grid, in stream order.
        rule: of the nearest neighbour, see `volseg.data.grid.resample.nearest_index`.
        observer: also called with the logits in network space, slab by slab in stream order.
    """

    shape: Triple
    decide: Decide = winner
    nearest_axis: int | None = None
    sink: Sink | None = None
    rule: str = "scipy"
    observer: Observer | None = None


@torch.no_grad()
def segment(volume: torch.Tensor, engine: Engine, target: Target) -> Iterator[tuple[int, torch.Tensor]]:
    """Label a volume a few planes at a time; beyond it, memory does not grow with the length of its longest axis.

    Args:
        volume: (C, D, H, W) in network space, float32, float16 or bfloat16, on any device.
        engine: computes the windows.
        target: the grid of the labels, and how classes are decided.

    Yields:
        Index of the first plane along the axis `stream_order(D, H, W)` begins with, and class indices (planes, rows,
        columns) in that order, uint8 up to 254 classes and int16 above; in order, without gaps.

    Raises:
        VolsegError: the network's output contains NaN or Inf.
    """
    d, h, w = volume.shape[1:]
    order = stream_order((d, h, w))
    slabs = stream_logits(volume, engine, order)
    yield from label_slabs(
        slabs if target.observer is None else _observed(slabs, target.observer),
        source=(volume.shape[1 + order[0]], volume.shape[1 + order[1]], volume.shape[1 + order[2]]),
        target=(target.shape[order[0]], target.shape[order[1]], target.shape[order[2]]),
        decide=target.decide,
        nearest_axis=None if target.nearest_axis is None else order.index(target.nearest_axis),
        sink=target.sink,
        rule=target.rule,
    )


def _observed(slabs: Iterable[tuple[int, torch.Tensor]], observer: Observer) -> Iterator[tuple[int, torch.Tensor]]:
    """The same slabs, each of which `observer` has seen."""
    for first, slab in slabs:
        observer(first, slab)
        yield first, slab
