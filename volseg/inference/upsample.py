"""Labels in image space from slabs of logits in network space, resampling logits only at class boundaries.

Linear interpolation is a convex combination: where the source voxels around a target voxel agree on the winning class,
that class wins after interpolation too, and nothing needs to be computed. Only between voxels that disagree are logits
interpolated, in float32. The labels equal those of interpolating all logits and taking the largest.

Tensors are in stream order (K, planes, rows, columns), see `volseg.inference.stream`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch

from volseg.config import Triple
from volseg.data.grid.resample import linear_stencil, nearest_index

Decide: TypeAlias = Callable[[torch.Tensor, torch.dtype], torch.Tensor]
# Called with a target plane, the rows, and their logits (K, rows, columns), which are overwritten afterwards.
Sink: TypeAlias = Callable[[int, slice, torch.Tensor], None]

# Logits interpolated at a time: few enough for a processor's cache, many enough to keep a GPU busy.
BLOCK_LOGITS = {"cpu": 1 << 19, "cuda": 1 << 25}
# Above this fraction of disagreeing voxels, interpolating the whole block is faster than gathering some of it.
DENSE_FRACTION = 0.5


def label_slabs(
    slabs: Iterable[tuple[int, torch.Tensor]],
    source: Triple,
    target: Triple,
    decide: Decide | None = None,
    nearest_axis: int | None = None,
    sink: Sink | None = None,
    rule: str = "scipy",
) -> Iterator[tuple[int, torch.Tensor]]:
    """Resample logits to another grid and decide the classes there, a few planes at a time.

    Args:
        slabs: (first plane, finite logits (K, planes, rows, columns) float32), in order, without gaps, at least one.
        source: (planes, rows, columns) of all slabs together.
        target: (planes, rows, columns) of the labels. Half-pixel convention, edges clamped.
        decide: the class at each voxel from logits (K, ...), which it may overwrite: `winner` (the default) or
            `last_present`.
        nearest_axis: 0, 1 or 2 for nearest neighbour along that axis; the others are linear.
        sink: also called with the interpolated logits, which are then computed everywhere.
        rule: of the nearest neighbour, see `volseg.data.grid.resample.nearest_index`.

    Yields:
        Index of the first target plane, and classes (planes, rows, columns), uint8 up to 254 classes and int16 above;
        in order, without gaps.
    """
    stream = iter(slabs)
    first_slab = next(stream)
    classes, device = first_slab[1].shape[0], first_slab[1].device
    stencils = [_stencil(source[axis], target[axis], rule if axis == nearest_axis else None) for axis in range(3)]
    layers = _layers(stencils[0])
    voxels = BLOCK_LOGITS.get(device.type, BLOCK_LOGITS["cpu"]) // max(classes, 8)
    blocks = _blocks(stencils[1], stencils[2], voxels, device)
    dtype = torch.uint8 if classes < 255 else torch.int16
    labeller = _BlockLabeller(decide or winner, dtype, sink, everywhere=device.type == "cuda" or sink is not None)

    previous: list[torch.Tensor] = []
    for start, slab in chain([first_slab], stream):
        planes = dict(enumerate([*previous, *slab.unbind(1)], start=start - len(previous)))
        winners = torch.stack([labeller.decide(plane.clone(), labeller.dtype) for plane in planes.values()])
        ready = [layer for layer in layers if layer.upper in planes]
        layers = layers[len(ready) :]
        # The next target planes may lie between this slab and the next.
        previous = [slab[:, -1].clone()]
        if ready:
            first = ready[0].first
            labels = torch.empty((ready[-1].targets.stop - first, *target[1:]), dtype=labeller.dtype, device=device)
            for block in blocks:
                labeller.label_block(labels, first, block, planes, winners, ready)
            yield first, labels


def winner(logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`logits.argmax(0)` of finite float32 (K, ...) as `dtype`, the first of a tie; overwrites `logits`.

    Ten times faster than argmax along a strided axis, because every step uses vector instructions.
    """
    classes = logits.shape[0]
    rank = torch.arange(classes, 0, -1, dtype=logits.dtype, device=logits.device)
    logits.eq_(logits.amax(0)).mul_(rank.reshape(-1, *(1,) * (logits.ndim - 1)))
    return (classes - logits.amax(0)).to(dtype)


def last_present(logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """For overlapping regions: 1 + the last class whose logit is above 0, else 0; overwrites `logits` (K, ...).

    A logit above 0 is a probability above one half. Later regions overwrite earlier ones, as in nnU-Net.
    """
    rank = torch.arange(1, logits.shape[0] + 1, dtype=logits.dtype, device=logits.device)
    logits.gt_(0).mul_(rank.reshape(-1, *(1,) * (logits.ndim - 1)))
    return logits.amax(0).to(dtype)


@dataclass(frozen=True, eq=False)
class _Stencil:
    """For each target index of an axis: two source indices, equal where one is enough, and the weight of the upper."""

    lower: torch.Tensor
    upper: torch.Tensor
    weight: torch.Tensor

    def to(self, device: torch.device) -> "_Stencil":
        """A copy on another device."""
        return _Stencil(self.lower.to(device), self.upper.to(device), self.weight.to(device))

    def interpolate(self, logits: torch.Tensor, dim: int) -> torch.Tensor:
        """Linear interpolation along `dim`."""
        weight = self.weight.reshape(-1, *(1,) * (logits.ndim - 1 - dim))
        return torch.lerp(_gather(logits, self.lower, dim), _gather(logits, self.upper, dim), weight)

    def agree(self, winners: torch.Tensor, dim: int) -> torch.Tensor:
        """The winner along `dim` where both source voxels agree on it, else the mark of disagreement."""
        return _agreed(_gather(winners, self.lower, dim), _gather(winners, self.upper, dim))


@dataclass(frozen=True)
class _Layer:
    """Consecutive target planes between the same two source planes."""

    lower: int
    upper: int
    first: int
    weights: list[float]

    @property
    def targets(self) -> slice:
        return slice(self.first, self.first + len(self.weights))


@dataclass(frozen=True, eq=False)
class _Block:
    """Consecutive target rows, all their columns, and the source rows they need."""

    targets: slice
    sources: slice
    row: _Stencil
    column: _Stencil

    def agree(self, winners: torch.Tensor) -> torch.Tensor:
        """(n, source rows, source columns) winners to the ones that all four in-plane neighbours share, target size."""
        return self.row.agree(self.column.agree(winners[:, self.sources], 2), 1)

    def interpolate(self, plane: torch.Tensor) -> torch.Tensor:
        """Logits (K, source rows, source columns) at all voxels of the block: (K, rows * columns)."""
        return self.row.interpolate(self.column.interpolate(plane[:, self.sources], 2), 1).flatten(1)

    def interpolate_at(self, planes: list[torch.Tensor], index: torch.Tensor) -> list[torch.Tensor]:
        """For each plane the columns `index` of the result of `interpolate`, without computing the others."""
        width, stride = len(self.column.weight), planes[0].shape[2]
        down, across = index // width, index % width
        rows = [each.index_select(0, down) * stride for each in (self.row.lower, self.row.upper)]
        columns = [each.index_select(0, across) for each in (self.column.lower, self.column.upper)]
        corners = [row + column for row in rows for column in columns]
        row_weight, column_weight = self.row.weight.index_select(0, down), self.column.weight.index_select(0, across)
        results = []
        for plane in planes:
            logits = plane[:, self.sources].flatten(1)
            at = [logits.index_select(1, corner) for corner in corners]
            results.append(
                torch.lerp(torch.lerp(at[0], at[1], column_weight), torch.lerp(at[2], at[3], column_weight), row_weight)
            )
        return results


@dataclass(frozen=True, eq=False)
class _BlockLabeller:
    """Labels blocks: how classes are decided, their type, who else gets the logits, and whether all are interpolated.

    A GPU interpolates everywhere: to tell where it need not, the host would wait for it in every block.
    """

    decide: Decide
    dtype: torch.dtype
    sink: Sink | None
    everywhere: bool

    def label_block(
        self,
        labels: torch.Tensor,
        first: int,
        block: _Block,
        planes: dict[int, torch.Tensor],
        winners: torch.Tensor,
        layers: list[_Layer],
    ) -> None:
        """Write the block's rows of all target planes in `layers`; `labels` begin at target plane `first`.

        `winners` are those of `planes`, in order.
        """
        if self.everywhere:
            self._interpolate_all(labels, first, block, planes, layers)
            return
        agreed = dict(zip(planes, block.agree(winners), strict=True))
        bases = torch.stack([_agreed(agreed[layer.lower], agreed[layer.upper]) for layer in layers])
        mixed = bases == torch.iinfo(self.dtype).max
        counts = mixed.view(torch.uint8).flatten(1).sum(1, dtype=torch.int32).tolist()
        known: dict[int, torch.Tensor] = {}
        for layer, base, where, count in zip(layers, bases, mixed, counts, strict=True):
            targets = labels[layer.first - first : layer.targets.stop - first, block.targets]
            if count == 0:
                targets.copy_(base)
            elif count >= DENSE_FRACTION * base.numel():
                known = _around(layer, block, planes, known)
                self._interpolate(targets, layer, block, known)
            else:
                index = where.flatten().nonzero().squeeze(1)
                lower, upper = block.interpolate_at([planes[layer.lower], planes[layer.upper]], index)
                for target, weight in zip(targets, layer.weights, strict=True):
                    base.view(-1)[index] = self.decide(torch.lerp(lower, upper, weight), self.dtype)
                    target.copy_(base)

    def _interpolate_all(
        self, labels: torch.Tensor, first: int, block: _Block, planes: dict[int, torch.Tensor], layers: list[_Layer]
    ) -> None:
        """The same as `label_block`, without looking where planes agree."""
        known: dict[int, torch.Tensor] = {}
        for layer in layers:
            known = _around(layer, block, planes, known)
            targets = labels[layer.first - first : layer.targets.stop - first, block.targets]
            self._interpolate(targets, layer, block, known)

    def _interpolate(self, targets: torch.Tensor, layer: _Layer, block: _Block, known: dict[int, torch.Tensor]) -> None:
        """Label every voxel of the block between two planes, whose in-plane interpolation is `known`."""
        for plane, (target, weight) in enumerate(zip(targets, layer.weights, strict=True), start=layer.first):
            logits = torch.lerp(known[layer.lower], known[layer.upper], weight)
            if self.sink:
                self.sink(plane, block.targets, logits.view(-1, *target.shape))
            target.copy_(self.decide(logits, self.dtype).view_as(target))


def _around(
    layer: _Layer, block: _Block, planes: dict[int, torch.Tensor], known: dict[int, torch.Tensor]
) -> dict[int, torch.Tensor]:
    """The in-plane interpolation of the planes around a layer, of which some may be known."""
    # The upper plane of a layer is the lower one of the next, unless planes are skipped.
    return {
        plane: known[plane] if plane in known else block.interpolate(planes[plane])
        for plane in (layer.lower, layer.upper)
    }


def _agreed(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The winners that two tensors share; elsewhere the mark of disagreement, the largest value of the type."""
    # All bits of the mark are set, so "or" yields it; several times faster than torch.where on small integers.
    return (one != other).to(one.dtype).mul_(torch.iinfo(one.dtype).max).bitwise_or_(one)


def _gather(values: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """`values.index_select(dim, index)` of a 3-D tensor, several times faster along the last axis."""
    if dim < 2:
        return values.index_select(dim, index)
    return values.flatten(0, 1).index_select(1, index).reshape(*values.shape[:2], -1)


def _stencil(source: int, target: int, nearest: str | None) -> _Stencil:
    """The interpolation of one axis, on the CPU: linear, or by a rule of `nearest_index`."""
    device = torch.device("cpu")
    if nearest:
        index = nearest_index(source, target, device, nearest)
        return _Stencil(index, index, torch.zeros(target))
    lower, upper, weight = linear_stencil(source, target, device)
    # A neighbour of weight 0 does not count in the agreement.
    return _Stencil(lower, torch.where(weight == 0, lower, upper), weight)


def _layers(stencil: _Stencil) -> list[_Layer]:
    """The target planes in order, grouped by the source planes around them."""
    columns = zip(stencil.lower.tolist(), stencil.upper.tolist(), stencil.weight.tolist(), strict=True)
    layers: list[_Layer] = []
    for first, (lower, upper, weight) in enumerate(columns):
        if layers and (layers[-1].lower, layers[-1].upper) == (lower, upper):
            layers[-1].weights.append(weight)
        else:
            layers.append(_Layer(lower, upper, first, [weight]))
    return layers


def _blocks(row: _Stencil, column: _Stencil, voxels: int, device: torch.device) -> list[_Block]:
    """Target rows in groups of about `voxels` voxels."""
    step = max(1, voxels // len(column.weight))
    blocks = []
    for start in range(0, len(row.weight), step):
        targets = slice(start, min(start + step, len(row.weight)))
        lower, upper = row.lower[targets], row.upper[targets]
        first, last = int(lower[0]), int(upper[-1])
        part = _Stencil(lower - first, upper - first, row.weight[targets])
        blocks.append(_Block(targets, slice(first, last + 1), part.to(device), column.to(device)))
    return blocks
