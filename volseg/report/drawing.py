"""A slice of a scan with labels over it, drawn on the axes of a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from contourpy import contour_generator
from matplotlib.collections import LineCollection

from volseg.config import Label

_FILL = 0.38
_SAMPLES = 2_000_000  # voxels that are enough to choose the intensity window


@dataclass(frozen=True)
class Plane:
    """A plane perpendicular to the axis `normal`; `letters` are at its left, right, top and bottom."""

    name: str
    normal: int
    horizontal: int
    vertical: int
    letters: tuple[str, str, str, str]


PLANES = (
    Plane("axial", 2, 0, 1, ("R", "L", "A", "P")),
    Plane("coronal", 1, 0, 2, ("R", "L", "S", "I")),
    Plane("sagittal", 0, 1, 2, ("A", "P", "S", "I")),
)


def oriented(array: np.ndarray, order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> np.ndarray:
    """A view of an (I, J, K) array in RAS+ order."""
    return array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def window(image: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of the finite voxels; large scans are sampled on a regular grid."""
    step = int(np.ceil((image.size / _SAMPLES) ** (1 / 3)))
    sample = image[::step, ::step, ::step]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    low, high = np.percentile(sample, (1, 99))
    return float(low), float(high)


def slice_of(volume: np.ndarray, plane: Plane, centre: list[int]) -> np.ndarray:
    """The (row, column) image of a plane: rows from the bottom up, columns from the left."""
    # Not np.take, which would copy the whole of a transposed volume.
    cut: np.ndarray = np.moveaxis(volume, plane.normal, 0)[centre[plane.normal]]
    return cut.T[:, ::-1]  # R and A point to the left


def draw_scan(axes: Any, cut: np.ndarray, window: tuple[float, float]) -> None:
    """Draw the scan in grey."""
    low, high = window
    grey = np.nan_to_num(cut.astype(np.float64), nan=low, posinf=high, neginf=low)
    axes.imshow(
        grey,
        cmap="gray",
        vmin=low,
        vmax=high,
        origin="lower",
        extent=_extent(cut),
        aspect="auto",
        interpolation="hanning",
    )


def draw_fill(axes: Any, cut: np.ndarray, shown: Sequence[Label], colours: np.ndarray) -> None:
    """Draw the labels in transparent colours, voxel by voxel."""
    fill = np.zeros((*cut.shape, 4))
    for label, colour in zip(shown, colours, strict=True):
        fill[cut == label.value] = (*colour, _FILL)
    axes.imshow(fill, origin="lower", extent=_extent(cut), aspect="auto", interpolation="nearest")


def draw_outlines(axes: Any, cut: np.ndarray, shown: Sequence[Label], colours: np.ndarray, style: str) -> None:
    """Draw the outline of each label; where two labels touch, both outlines."""
    for label, colour in zip(shown, colours, strict=True):
        draw_mask(axes, cut == label.value, colour, style)


def draw_mask(axes: Any, mask: np.ndarray, colour: Any, style: str) -> None:
    """Draw the outline of a mask (rows, columns)."""
    if mask.any():
        lines = LineCollection(_outlines(mask), colors=[colour], linewidths=1.3, linestyles=style)
        axes.add_collection(lines, autolim=False)


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask, each (N, 2): columns and rows, where a pixel is from its number to the next."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    lines = contour_generator(z=np.pad(inner.astype(np.float64), 1)).lines(0.5)
    corner = np.array([columns[0] - 0.5, rows[0] - 0.5])
    return [np.asarray(line) + corner for line in lines]


def _extent(cut: np.ndarray) -> tuple[float, float, float, float]:
    """The extent of an image in voxels: left, right, bottom, top."""
    return 0, cut.shape[1], 0, cut.shape[0]
