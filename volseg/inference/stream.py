"""Logits of a whole volume, slab after slab, from windows that slide along it.

Volumes and windows are (C, D, H, W) in network order. Slabs come in stream order (K, planes, rows, columns): the axis
that the windows slide along first, the other two behind it in their order. A ring buffer one window deep holds the
sums of weighted answers, so memory does not grow with the number of planes.

The weights of a voxel's windows add up to 1, so a network's last layer, a 1 x 1 x 1 convolution, may as well follow
the blending: once per voxel instead of once per window, with as many channels in the ring as the network has features
there, be the classes ever so many. `Predictor.head` is that layer.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeAlias

import torch

from volseg.config import Triple
from volseg.errors import VolsegError
from volseg.inference.windows import Tile, Windows, axis_tiles, read_window, window_constants

Answer: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Progress: TypeAlias = Callable[[int, int], None]
Place: TypeAlias = tuple[Tile, Tile, Tile]
# What the channels of a window hold that is constant; None for all other windows.
Values: TypeAlias = tuple[float, ...] | None

# Logits handed on at a time: a few planes, however many classes there are.
SLAB_LOGITS = 1 << 24


@dataclass(frozen=True)
class Head:
    """A linear layer from blended answers to logits, the same at every voxel.

    Args:
        weight: (K, A) float32.
        bias: (K,) float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Predictor:
    """What the engine asks of a network.

    Args:
        answer: (B, C, d, h, w) float32 windows to (B, A, d, h, w), on the engine's device.
        head: turns blended answers into logits; None where the answers are the logits.
    """

    answer: Answer
    head: Head | None = None


def stream_order(shape: Triple) -> Triple:
    """The axes of a volume in stream order: the longest first, because the ring is as large as the other two."""
    axis = max(range(3), key=lambda one: shape[one])
    others = [other for other in range(3) if other != axis]
    return (axis, others[0], others[1])


def stream_logits(
    volume: torch.Tensor,
    predictor: Predictor,
    windows: Windows,
    order: Triple,
    device: torch.device,
    slab_logits: int = SLAB_LOGITS,
    progress: Progress | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Blend the predictor's answers to overlapping windows, and hand on each slab as soon as no window will change it.

    Args:
        volume: (C, D, H, W) float32, float16 or bfloat16, on any device.
        predictor: answers windows.
        windows: size, overlap and batch of the windows.
        order: the axes of the volume in stream order.
        device: where windows are made and answers summed.
        slab_logits: logits handed on at a time, at least those of one plane.
        progress: called with the number of windows done and of all windows.

    Yields:
        Index of the first plane, and logits (K, planes, rows, columns) float32. Slabs are in order, without gaps.

    Raises:
        VolsegError: the predictor answered with infinite values or values that are no numbers.
    """
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
    for done, (place, answer) in enumerate(_answers(volume, predictor.answer, windows, places, device), start=1):
        if ring is None:
            depth = min(sizes[axis], windows.patch_size[axis])
            shape = (depth, sizes[order[1]], sizes[order[2]], answer.shape[0])
            ring = Ring(torch.zeros(shape, device=device), predictor.head, slab_logits)
        yield from ring.finish(place[axis].lower)
        inside = answer[(slice(None), *(tile.inside for tile in place))].permute(*(i + 1 for i in order), 0)
        ring.add(inside, (place[order[0]], place[order[1]], place[order[2]]))
        del answer, inside  # an answer is large, and the next one is about to be computed
        if progress:
            progress(done, len(places))
    assert ring is not None
    yield from ring.finish(sizes[axis])


class Ring:
    """Sums of weighted answers for as many planes as a window is deep; plane p lies at p modulo the depth.

    Channels come last, as they do in the memory of a network's answers: adding a window is up to ten times faster.

    Args:
        sums: zeros, (depth, rows, columns, A) float32.
        head: see `Predictor`.
        slab_logits: see `stream_logits`.
    """

    def __init__(self, sums: torch.Tensor, head: Head | None, slab_logits: int) -> None:
        self.sums = sums
        self.head = head
        self.depth, rows, columns, channels = sums.shape
        classes = head.weight.shape[0] if head else channels
        self.step = max(1, slab_logits // (rows * columns * classes))
        self.finished = 0

    def add(self, answer: torch.Tensor, tiles: Place) -> None:
        """Add one window's answer (depth, rows, columns, A), as large as its tiles in stream order."""
        planes, rows, columns = tiles
        weight = (planes.weight[:, None, None] * rows.weight[:, None] * columns.weight)[..., None]
        turn = planes.lower % self.depth
        for inside, covered in (
            (slice(0, self.depth - turn), slice(turn, None)),
            (slice(self.depth - turn, None), slice(0, turn)),
        ):
            self.sums[covered, rows.covered, columns.covered].addcmul_(answer[inside], weight[inside])

    def finish(self, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Hand on the planes before `stop` that are still held, and clear them."""
        while self.finished < stop:
            turn = self.finished % self.depth
            count = min(stop - self.finished, self.depth - turn, self.step)
            slab = self.sums[turn : turn + count]
            logits = self._logits(slab)
            slab.zero_()
            if not bool(torch.isfinite(torch.stack([logits.amin(), logits.amax()])).all()):
                raise VolsegError(
                    "The network answered with values that are infinite or not numbers, so no labels can be given. "
                    "Check the scan's intensities, or try --precision fp32."
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


def _answers(
    volume: torch.Tensor,
    predictor: Answer,
    windows: Windows,
    places: list[tuple[Place, Values]],
    device: torch.device,
) -> Iterator[tuple[Place, torch.Tensor]]:
    """Each place in order with its answer (A, d, h, w); a window of constant `Values` takes no part in a batch."""
    shape = (volume.shape[0], *windows.patch_size)
    if windows.mirror_axes:
        predictor = mirrored(predictor, windows.mirror_axes, windows.batch_size)
    batch = torch.empty((max(1, windows.batch_size >> len(windows.mirror_axes)), *shape), device=device)

    # An answer is large, and nearly all constant windows of a scan hold its one background.
    @lru_cache(maxsize=1)
    def constant_answer(values: tuple[float, ...]) -> torch.Tensor:
        window = torch.tensor(values, device=device).reshape(1, -1, 1, 1, 1).expand(1, *shape)
        return predictor(window.contiguous())[0]

    waiting: list[tuple[Place, Values]] = []
    filled = 0
    for number, (place, values) in enumerate(places, start=1):
        waiting.append((place, values))
        if values is None:
            read_window(volume, place, batch[filled])
            filled += 1
        if filled < len(batch) and number < len(places):
            continue
        answers = iter(predictor(batch[:filled])) if filled else iter(())
        for waiting_place, constant in waiting:
            yield waiting_place, next(answers) if constant is None else constant_answer(constant)
        del answers
        waiting, filled = [], 0


def mirrored(predictor: Answer, axes: tuple[int, ...], batch_size: int) -> Answer:
    """A predictor that averages answers over all mirror images along `axes` of its windows.

    As many mirror images go through `predictor` together as `batch_size` has room for.
    """
    flips: list[tuple[int, ...]] = [()]
    for axis in axes:
        flips += [(*flip, axis + 2) for flip in flips]

    def average(batch: torch.Tensor) -> torch.Tensor:
        together = max(1, batch_size // len(batch))
        total: torch.Tensor | None = None
        for first in range(0, len(flips), together):
            group = flips[first : first + together]
            answers = predictor(torch.cat([batch.flip(flip) for flip in group]))
            for flip, answer in zip(group, answers.chunk(len(group)), strict=True):
                image = answer.to(torch.float32).flip(flip)
                total = image if total is None else total.add_(image)
        assert total is not None
        return total.div_(len(flips))

    return average
