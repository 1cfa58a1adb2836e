"""From a scan on the network's grid to label values on the scan's own grid."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from volseg.api.budget import SLAB_LOGITS_PER_VOXEL, Chunking
from volseg.config import Plan
from volseg.data.geometry import GridMap
from volseg.data.probabilities import probability_file
from volseg.data.resample import separate_axis
from volseg.device import has_room
from volseg.heap import kept_heap
from volseg.inference.engine import segment
from volseg.inference.stream import Head, Predictor, stream_order
from volseg.inference.upsample import Sink, last_present, winner
from volseg.inference.windows import Windows
from volseg.networks import UNet
from volseg.precision import autocast, exact_float32
from volseg.progress import Progress, silent


def label_volume(
    network: nn.Module,
    volume: Tensor,
    grid: GridMap,
    plan: Plan,
    windows: Windows,
    dtype: torch.dtype,
    progress: Progress = silent,
    sink: Sink | None = None,
    chunk: Chunking | None = None,
) -> np.ndarray:
    """Label values on the stored grid for a scan on the network's grid.

    Args:
        network: in evaluation mode, on the device that computes.
        volume: (C, D, H, W) float32.
        grid: the way back.
        plan: of the network.
        windows: how the volume is cut.
        dtype: of feature maps.
        progress: told how many windows are done.
        sink: also given all logits on the scan's grid, see `volseg.inference.engine`.
        chunk: how much is held at a time.

    Returns:
        (I, J, K) uint8, or uint16 when a label value is above 255; background outside the box of `grid`.

    Raises:
        VolsegError: the network answered with values that are no numbers.
    """
    device = next(network.parameters()).device
    values = [0, *(label.value for label in plan.labels)]
    table = np.array(values, dtype=np.uint8 if max(values) < 256 else np.uint16)
    d, h, w = volume.shape[1:]
    order = stream_order((d, h, w))
    # Planes are written as they come; memory is quickest where each of them lies in one piece.
    stored = np.zeros(grid.stored_shape, table.dtype, order="F" if grid.axes[order[0]] == 2 else "C")
    planes_of = grid.into(stored).transpose(order)
    chunk = chunk or Chunking()
    with torch.inference_mode(), exact_float32(device, dtype), kept_heap() if chunk.keep_heap else nullcontext():
        for first, planes in segment(
            volume.to(device) if has_room(device, volume.nbytes) else volume,
            predictor_of(network, plan.network.classes, device, dtype),
            windows,
            grid.box_shape,
            decide=last_present if plan.regions else winner,
            nearest_axis=nearest_axis(plan, grid),
            device=device,
            sink=sink,
            slab_logits=SLAB_LOGITS_PER_VOXEL * chunk.voxels,
            progress=lambda done, total: progress("segment", done / total, f"window {done} of {total}"),
        ):
            for target, plane in zip(planes_of[first : first + len(planes)], planes.cpu().numpy(), strict=True):
                np.take(table, plane, out=target, mode="clip")
    return stored


@contextmanager
def probability_sink(path: Path | None, volume: Tensor, grid: GridMap, plan: Plan) -> Iterator[Sink | None]:
    """What `label_volume` needs to write probabilities of `volume` to `path`; None for no path."""
    if path is None:
        yield None
        return
    d, h, w = volume.shape[1:]
    with probability_file(path, grid, stream_order((d, h, w)), plan.network.classes, plan.regions) as write:
        yield write


def predictor_of(network: nn.Module, classes: int, device: torch.device, dtype: torch.dtype) -> Predictor:
    """A network as the engine takes it; its last layer follows the blending where that leaves less to blend."""

    def logits(batch: Tensor) -> Tensor:
        with autocast(device, dtype):
            found: Tensor = network(batch)
        return found

    if not isinstance(network, UNet) or network.config.features[0] >= classes:
        return Predictor(logits)
    decode, head = network.decode, Head(*network.head)

    def features(batch: Tensor) -> Tensor:
        with autocast(device, dtype):
            for maps in decode(batch):
                finest = maps  # and only the last one is kept
        return finest

    return Predictor(features, head)


def nearest_axis(plan: Plan, grid: GridMap) -> int | None:
    """The axis of the network's grid whose logits are carried back by nearest neighbour, if any."""
    way = plan.logits_resampling
    axis = separate_axis(way, plan.spacing_mm, grid.spacing_mm)
    return axis if way.separate_order == 0 else None
