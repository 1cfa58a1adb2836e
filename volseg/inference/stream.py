"""Logits of a whole volume, slab by slab, from sliding windows.

Volumes and windows are (C, D, H, W) in network order. Slabs are in stream order (K, planes, rows, columns): first the
axis along which the windows slide, then the other two in network order. A ring buffer one window deep holds weighted
sums of the windows' outputs, so memory does not grow with the number of planes.

The weights of all windows add up to 1 at every voxel, so a network's last layer, a 1 x 1 x 1 convolution, can follow
the blending: it then runs once per voxel instead of once per window, and the ring has as many channels as that layer
has inputs, for any number of classes. `Predictor.head` is that layer.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeAlias

import torch

from volseg.config import Triple, exchanged_order
from volseg.errors import VolsegError
from volseg.inference.windows import Tile, Windows, axis_tiles, read_window, window_constants

# (B, C, d, h, w) windows to (B, A, d, h, w): logits, or the features before the last layer.
Forward: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Progress: TypeAlias = Callable[[int, int], None]
# Called with the first plane of a slab and its logits (K, planes, rows, columns), which it leaves as they are.
Observer: TypeAlias = Callable[[int, torch.Tensor], None]
Place: TypeAlias = tuple[Tile, Tile, Tile]
# The value of each channel of a constant window; None for all other windows.
Values: TypeAlias = tuple[float, ...] | None

# Logits in one slab: a few planes, for any number of classes.
SLAB_LOGITS = 1 << 24


@dataclass(frozen=True)
class Head:
    """A linear layer from blended features to logits, the same at every voxel.

    Args:
        weight: (K, A) float32.
        bias: (K,) float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Predictor:
    """A network as the engine calls it.

    Args:
        forward: (B, C, d, h, w) float32 windows to (B, A, d, h, w), on the engine's device.
        head: from blended features to logits; None where `forward` gives logits.
    """

    forward: Forward
    head: Head | None = None


@dataclass(frozen=True)
class Engine:
    """Sliding-window inference: the network, the windows, the device and the slab size.

    Args:
        predictor: the network.
        windows: size, overlap, batch and test-time flips of the windows.
        device: where windows are cut and outputs are summed.
        slab_logits: logits in one slab; at least one plane.
        progress: called with the number of windows done and of all windows.
    """

    predictor: Predictor
    windows: Windows
    device: torch.device
    slab_logits: int = SLAB_LOGITS
    progress: Progress | None = None


def stream_order(shape: Triple) -> Triple:
    """The axes of a volume in stream order: the longest first, because a plane of the ring spans the other two."""
    axis = max(range(3), key=lambda one: shape[one])
    others = [other for other in range(3) if other != axis]
    return (axis, others[0], others[1])


def stream_logits(volume: torch.Tensor, engine: Engine, order: Triple) -> Iterator[tuple[int, torch.Tensor]]:
    """Blend the outputs of overlapping windows, and yield each slab as soon as no further window changes it.

    Args:
        volume: (C, D, H, W) float32, float16 or bfloat16, on any device.
        engine: computes the windows.
        order: the axes of the volume in stream order.

    Yields:
        Index of the first plane, and logits (K, planes, rows, columns) float32. Slabs are in order, without gaps.

    Raises:
        VolsegError: the network's output contains NaN or Inf.
    """
    windows, device = engine.windows, engine.device
    sizes = volume.shape[1:]
    axis = order[0]
    tiles = [axis_tiles(sizes[i], windows.patch_size[i], windows.overlap, device) for i in range(3)]
    constants = window_constants(volume, tiles).permute(*order, 3)
    places: list[tuple[Place, Values]] = []
    for index in product(*(range(len(tiles[i])) for i in order)):
        by_axis = {one: tiles[one][number] for one, number in zip(order, index, strict=True)}
        values = tuple(constants[index].tolist())
        places.append(((by_axis[0], by_axis[1], by_axis[2]), None if math.isnan(values[0]) else values))

    ring: Ring | None = None
    for done, (place, output) in enumerate(_outputs(volume, engine, places), start=1):
        if ring is None:
            depth = min(sizes[axis], windows.patch_size[axis])
            shape = (depth, sizes[order[1]], sizes[order[2]], output.shape[0])
            ring = Ring(torch.zeros(shape, device=device), engine.predictor.head, engine.slab_logits)
        yield from ring.finish(place[axis].lower)
        inside = output[(slice(None), *(tile.inside for tile in place))].permute(*(i + 1 for i in order), 0)
        ring.add(inside, (place[order[0]], place[order[1]], place[order[2]]))
        del output, inside  # an output is large, and the next one is about to be computed
        if engine.progress:
            engine.progress(done, len(places))
    assert ring is not None
    yield from ring.finish(sizes[axis])


class Ring:
    """Weighted sums of outputs for as many planes as a window is deep; plane p is at index p modulo the depth.

    Channels come last, as they do in the memory of a network's output: adding a window is up to ten times faster.

    Args:
        sums: zeros, (depth, rows, columns, A) float32.
        head: see `Predictor`.
        slab_logits: see `Engine`.
    """

    def __init__(self, sums: torch.Tensor, head: Head | None, slab_logits: int) -> None:
        self.sums = sums
        self.head = head
        self.depth, rows, columns, channels = sums.shape
        classes = head.weight.shape[0] if head else channels
        self.step = max(1, slab_logits // (rows * columns * classes))
        self.finished = 0

    def add(self, output: torch.Tensor, tiles: Place) -> None:
        """Add one window's output (depth, rows, columns, A), as large as its tiles in stream order."""
        planes, rows, columns = tiles
        weight = (planes.weight[:, None, None] * rows.weight[:, None] * columns.weight)[..., None]
        turn = planes.lower % self.depth
        for inside, covered in (
            (slice(0, self.depth - turn), slice(turn, None)),
            (slice(self.depth - turn, None), slice(0, turn)),
        ):
            self.sums[covered, rows.covered, columns.covered].addcmul_(output[inside], weight[inside])

    def finish(self, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the planes before `stop` that are still in the ring, and clear them."""
        while self.finished < stop:
            turn = self.finished % self.depth
            count = min(stop - self.finished, self.depth - turn, self.step)
            slab = self.sums[turn : turn + count]
            logits = self._logits(slab)
            slab.zero_()
            if not bool(torch.isfinite(torch.stack([logits.amin(), logits.amax()])).all()):
                raise VolsegError(
                    "The network's output contains NaN or Inf, so no labels can be produced. "
                    "Check the intensities of the scan, or try --precision fp32."
                )
            yield self.finished, logits
            self.finished += count

    def _logits(self, slab: torch.Tensor) -> torch.Tensor:
        """(planes, rows, columns, A) as contiguous logits (K, planes, rows, columns)."""
        voxels = slab.flatten(0, 2)
        if self.head is None:
            logits = voxels.T.clone(memory_format=torch.contiguous_format)
        else:
            logits = torch.addmm(self.head.bias[:, None], self.head.weight, voxels.T)
        return logits.view(-1, *slab.shape[:3])


def _outputs(
    volume: torch.Tensor, engine: Engine, places: list[tuple[Place, Values]]
) -> Iterator[tuple[Place, torch.Tensor]]:
    """Each place in order with its output (A, d, h, w); a window of constant `Values` is not part of a batch."""
    windows, device, forward = engine.windows, engine.device, engine.predictor.forward
    shape = (volume.shape[0], *windows.patch_size)
    if windows.mirror_axes:
        forward = averaged_over_flips(forward, windows)
    batch = torch.empty((max(1, windows.batch_size >> len(windows.mirror_axes)), *shape), device=device)

    # Only one, because an output is large, and nearly all constant windows of a scan are the same background.
    @lru_cache(maxsize=1)
    def constant_output(values: tuple[float, ...]) -> torch.Tensor:
        window = torch.tensor(values, device=device).reshape(1, -1, 1, 1, 1).expand(1, *shape)
        return forward(window.contiguous())[0]

    waiting: list[tuple[Place, Values]] = []
    filled = 0
    for number, (place, values) in enumerate(places, start=1):
        waiting.append((place, values))
        if values is None:
            read_window(volume, place, batch[filled])
            filled += 1
        if filled < len(batch) and number < len(places):
            continue
        outputs = iter(forward(batch[:filled])) if filled else iter(())
        for waiting_place, constant in waiting:
            yield waiting_place, next(outputs) if constant is None else constant_output(constant)
        del outputs
        waiting, filled = [], 0


def averaged_over_flips(forward: Forward, windows: Windows) -> Forward:
    """Test-time augmentation: average the outputs over all flips of the windows along `windows.mirror_axes`.

    As many flips go through `forward` together as the batch size allows.
    """
    flips: list[tuple[int, ...]] = [()]
    for axis in windows.mirror_axes:
        flips += [(*flip, axis + 2) for flip in flips]
    exchanging, pairs = windows.exchanged or (None, ())

    def average(batch: torch.Tensor) -> torch.Tensor:
        together = max(1, windows.batch_size // len(batch))
        total: torch.Tensor | None = None
        for first in range(0, len(flips), together):
            group = flips[first : first + together]
            outputs = forward(torch.cat([batch.flip(flip) for flip in group]))
            for flip, output in zip(group, outputs.chunk(len(group)), strict=True):
                image = output.to(torch.float32).flip(flip)
                if exchanging is not None and exchanging + 2 in flip:
                    image = image[:, exchanged_order(image.shape[1], pairs)]
                total = image if total is None else total.add_(image)
        assert total is not None
        return total.div_(len(flips))

    return average
