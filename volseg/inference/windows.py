"""Positions of sliding windows, and the weights that blend their outputs.

Windows form a regular grid, so positions and weights are separable: a `Tile` is the extent of a window along one axis,
and a window is three of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from volseg.config import Triple
from volseg.errors import UsageError


@dataclass(frozen=True)
class Windows:
    """Size, overlap, batch and test-time flips of sliding windows.

    Args:
        patch_size: (d, h, w) of a window.
        overlap: least overlap of neighbouring windows, 0 to <1.
        batch_size: the most windows in one call of the predictor.
        mirror_axes: network axes (0, 1, 2) over whose flips the output is averaged (test-time augmentation).
        exchange: the network axis whose flips exchange outputs, and the pairs of outputs: those of left and right
            labels; None: no flip does.
    """

    patch_size: Triple
    overlap: float = 0.5
    batch_size: int = 1
    mirror_axes: tuple[int, ...] = ()
    exchange: tuple[int, tuple[tuple[int, int], ...]] | None = None

    @property
    def exchanged(self) -> tuple[int, tuple[tuple[int, int], ...]] | None:
        """`exchange`, if the axis is one of `mirror_axes`."""
        return self.exchange if self.exchange and self.exchange[0] in self.mirror_axes else None


@dataclass(frozen=True, eq=False)
class Tile:
    """One window along one axis.

    Args:
        start: volume index of the window's first voxel; negative where the window is padded.
        lower, upper: the voxels of the volume that the window covers: lower <= index < upper.
        weight: (upper - lower,) float32, the weight of the window's output at each of these voxels; the weights of all
            windows add up to 1.
        is_padded: whether the window extends beyond the volume.
    """

    start: int
    lower: int
    upper: int
    weight: torch.Tensor
    is_padded: bool

    @property
    def inside(self) -> slice:
        """The part of the window inside the volume."""
        return slice(self.lower - self.start, self.upper - self.start)

    @property
    def covered(self) -> slice:
        """The part of the volume inside the window."""
        return slice(self.lower, self.upper)


def check_overlap(overlap: float) -> None:
    """Check the overlap of neighbouring windows.

    Raises:
        UsageError: it is not within 0 to <1.
    """
    if not 0 <= overlap < 1:
        raise UsageError(f"The overlap is {overlap}, expected 0 to <1. The default is 0.5.")


def window_count(size: int, patch: int, overlap: float) -> int:
    """The number of `window_starts`."""
    if size <= patch:
        return 1
    # The same floating-point product as in nnU-Net, rounded up, so that both choose the same grid.
    count = math.ceil((size - patch) / (patch * (1.0 - overlap))) + 1
    # An overlap so high that steps are below a voxel would only repeat windows.
    return min(count, size - patch + 1)


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of evenly spaced windows over `size` voxels, as in nnU-Net.

    The fewest windows that overlap by at least `overlap`; the first and last end with the volume. A volume smaller than
    the window is centred in a single one, whose start is then negative.
    """
    if size <= patch:
        return [-((patch - size) // 2)]
    count = window_count(size, patch, overlap)
    step = (size - patch) / (count - 1)
    return [round(step * index) for index in range(count)]


def gaussian(patch: int) -> torch.Tensor:
    """Importance of a window's voxels along one axis: (patch,) float32, 1 at voxel patch // 2, sigma patch / 8.

    No value is below exp(-8), because no voxel is more than 4 sigma from the middle.
    """
    distance = torch.arange(patch, dtype=torch.float64) - patch // 2
    return torch.exp(-0.5 * (distance / (patch / 8.0)) ** 2).to(torch.float32)


def axis_tiles(size: int, patch: int, overlap: float, device: torch.device) -> list[Tile]:
    """All windows along one axis, in order, with weights that add up to 1 at every voxel.

    The importance of a window is an outer product over the axes and the windows form a full grid, so the sum over all
    windows is an outer product too. Dividing by it here, axis by axis, replaces a volume of summed weights.
    """
    importance = gaussian(patch)
    spans = [(start, max(start, 0), min(start + patch, size)) for start in window_starts(size, patch, overlap)]
    total = torch.zeros(size)
    for start, lower, upper in spans:
        total[lower:upper] += importance[lower - start : upper - start]
    tiles = []
    for start, lower, upper in spans:
        weight = (importance[lower - start : upper - start] / total[lower:upper]).to(device)
        tiles.append(Tile(start, lower, upper, weight, upper - lower < patch))
    return tiles


def read_window(volume: torch.Tensor, tiles: tuple[Tile, Tile, Tile], window: torch.Tensor) -> None:
    """Copy one window of `volume` (C, D, H, W) into `window` (C, d, h, w), with zeros outside the volume."""
    inside, covered = [tile.inside for tile in tiles], [tile.covered for tile in tiles]
    part = window[(slice(None), *inside)]
    if part.shape != window.shape:
        window.zero_()
    part.copy_(volume[(slice(None), *covered)])


def window_constants(volume: torch.Tensor, tiles: Sequence[Sequence[Tile]]) -> torch.Tensor:
    """The value of each channel in windows where every channel is constant; NaN in all other windows.

    Computed for all windows at once, axis by axis, so that there is only one transfer from a GPU.

    Args:
        volume: (C, D, H, W).
        tiles: of D, H and W.

    Returns:
        (windows along D, H, W, C) float32 on the CPU.
    """
    # The longest axis first, window by window, so that no tensor as long as it is allocated.
    longest, *others = sorted(range(3), key=lambda axis: -volume.shape[axis + 1])
    low, high = (
        torch.cat([_extremes(volume, longest, one, others, tiles, reduce) for one in tiles[longest]], longest + 1).cpu()
        for reduce in (torch.amin, torch.amax)
    )
    # A window that extends beyond the volume also contains zeros.
    d, h, w = (torch.tensor([one.is_padded for one in along]) for along in tiles)
    padded = d[:, None, None] | h[:, None] | w
    constant = (low == high) & ((low == 0) | ~padded)
    return low.where(constant.all(0), torch.nan).movedim(0, -1)


def _extremes(
    volume: torch.Tensor,
    longest: int,
    tile: Tile,
    others: Sequence[int],
    tiles: Sequence[Sequence[Tile]],
    reduce: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """(C, windows along D, H, W) float32: an extreme of each window that is `tile` along the longest axis."""
    found = reduce(volume.narrow(longest + 1, tile.lower, len(tile.weight)), longest + 1, keepdim=True)
    for axis in others:
        parts = [found.narrow(axis + 1, one.lower, len(one.weight)) for one in tiles[axis]]
        found = torch.cat([reduce(part, axis + 1, keepdim=True) for part in parts], axis + 1)
    return found.to(torch.float32)
