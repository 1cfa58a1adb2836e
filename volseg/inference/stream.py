"""Logits of a whole volume, slab after slab, from windows that slide along it.

Volumes and windows are (C, D, H, W) in network order. Slabs come in stream order (K, planes, rows, columns): the axis
that the windows slide along first, the other two behind it in their order. A ring buffer one window deep holds the
sums of weighted logits, so memory does not grow with the number of planes.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from typing import TypeAlias

import torch

from volseg.errors import VolsegError
from volseg.inference.windows import Tile, Windows, axis_tiles, constant_of, read_window

Predictor: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Progress: TypeAlias = Callable[[int, int], None]
Place: TypeAlias = tuple[Tile, Tile, Tile]


def stream_logits(
    volume: torch.Tensor,
    predictor: Predictor,
    windows: Windows,
    axis: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Blend the predictor's answers to overlapping windows, and hand on each slab as soon as no window will change it.

    Args:
        volume: (C, D, H, W) float32, float16 or bfloat16, on any device.
        predictor: (B, C, d, h, w) float32 windows to (B, K, d, h, w) logits, on `device`.
        windows: size, overlap and batch of the windows.
        axis: the axis to slide along: 0, 1, 2 for D, H, W.
        device: where windows are made and logits summed.
        progress: called with the number of windows done and of all windows.

    Yields:
        Index of the first plane, and logits (K, planes, rows, columns) float32. Slabs are in order, without gaps. A
        slab lies in the ring buffer: it is valid, and may be overwritten, until the next one is asked for.

    Raises:
        VolsegError: the predictor answered with infinite values or values that are no numbers.
    """
    sizes = volume.shape[1:]
    tiles = [axis_tiles(sizes[i], windows.patch_size[i], windows.overlap, device) for i in range(3)]
    order = [axis, *(other for other in range(3) if other != axis)]
    places = []
    for along in product(*(tiles[i] for i in order)):
        by_axis = dict(zip(order, along, strict=True))
        places.append((by_axis[0], by_axis[1], by_axis[2]))

    ring: Ring | None = None
    for done, (place, answer) in enumerate(_answers(volume, predictor, windows, places, device), start=1):
        if ring is None:
            depth = min(sizes[axis], windows.patch_size[axis])
            ring = Ring(torch.zeros(answer.shape[0], depth, *(sizes[i] for i in order[1:]), device=device))
        yield from ring.finish(place[axis].lower)
        inside = answer[(slice(None), *(tile.inside for tile in place))].movedim(axis + 1, 1)
        ring.add(inside, (place[order[0]], place[order[1]], place[order[2]]))
        if progress:
            progress(done, len(places))
    assert ring is not None
    yield from ring.finish(sizes[axis])


class Ring:
    """Sums of weighted logits for as many planes as a window is deep; plane p lies at p modulo the depth.

    Args:
        sums: zeros, (K, depth, rows, columns) float32.
    """

    def __init__(self, sums: torch.Tensor) -> None:
        self.sums = sums
        self.depth = sums.shape[1]
        self.finished = 0

    def add(self, logits: torch.Tensor, tiles: Place) -> None:
        """Add one window's logits (K, depth, rows, columns), as large as its tiles in stream order."""
        planes, rows, columns = tiles
        weight = planes.weight[:, None, None] * rows.weight[:, None] * columns.weight
        turn = planes.lower % self.depth
        for inside, covered in (
            (slice(0, self.depth - turn), slice(turn, None)),
            (slice(self.depth - turn, None), slice(0, turn)),
        ):
            self.sums[:, covered, rows.covered, columns.covered].addcmul_(logits[:, inside], weight[inside])

    def finish(self, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Hand on the planes before `stop` that are still held, and clear them afterwards."""
        while self.finished < stop:
            turn = self.finished % self.depth
            count = min(stop - self.finished, self.depth - turn)
            slab = self.sums[:, turn : turn + count]
            if not bool(torch.isfinite(torch.stack([slab.amin(), slab.amax()])).all()):
                raise VolsegError(
                    "The network answered with values that are infinite or not numbers, so no labels can be given. "
                    "Check the scan's intensities, or try --precision fp32."
                )
            yield self.finished, slab
            slab.zero_()
            self.finished += count


def _answers(
    volume: torch.Tensor, predictor: Predictor, windows: Windows, places: list[Place], device: torch.device
) -> Iterator[tuple[Place, torch.Tensor]]:
    """Each place in order with its logits (K, d, h, w); a constant window takes no part in a batch."""
    shape = (volume.shape[0], *windows.patch_size)
    if windows.mirror_axes:
        predictor = mirrored(predictor, windows.mirror_axes, windows.batch_size)
    batch = torch.empty((max(1, windows.batch_size >> len(windows.mirror_axes)), *shape), device=device)

    # An answer is as large as a window's logits, and nearly all constant windows of a scan hold its one background.
    @lru_cache(maxsize=1)
    def constant_answer(values: tuple[float, ...]) -> torch.Tensor:
        window = torch.tensor(values, device=device).reshape(1, -1, 1, 1, 1).expand(1, *shape)
        return predictor(window.contiguous())[0]

    waiting: list[tuple[Place, tuple[float, ...] | None]] = []
    filled = 0
    for number, place in enumerate(places, start=1):
        read_window(volume, place, batch[filled])
        values = constant_of(batch[filled])
        waiting.append((place, values))
        filled += values is None
        if filled < len(batch) and number < len(places):
            continue
        answers = iter(predictor(batch[:filled])) if filled else iter(())
        for waiting_place, constant in waiting:
            yield waiting_place, next(answers) if constant is None else constant_answer(constant)
        waiting, filled = [], 0


def mirrored(predictor: Predictor, axes: tuple[int, ...], batch_size: int) -> Predictor:
    """A predictor that averages logits over all mirror images along `axes` of its windows.

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
