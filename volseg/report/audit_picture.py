"""The picture of a questioned reference: the scan, the reference and the prediction, side by side in one slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from volseg.config import Label
from volseg.data.grid.geometry import Geometry, ras_order
from volseg.files import whole_file
from volseg.report.colours import label_colours
from volseg.report.drawing import (
    PLANES,
    Plane,
    draw_fill,
    draw_mask,
    draw_outlines,
    draw_scan,
    oriented,
    slice_of,
    window,
)
from volseg.report.fitting import shortened, width_of, wrapped
from volseg.report.save_figure import save_figure
from volseg.text import printable

DPI = 100
# All lengths in inches.
_PANEL, _TALLEST, _GAP, _LINE = 3.1, 4.2, 0.25, 0.24
_WIDTH = 3 * _PANEL + 4 * _GAP
_PAGE, _INK, _FAINT, _MARK = "#111418", "#f2f2f2", "#b4bac1", "#ffffff"
_TITLE_SIZE, _SIZE = 12, 10
# Around the labels, in voxels and as a fraction of their extent.
_MARGIN_VOXELS, _MARGIN = 8, 0.35


@dataclass(frozen=True, eq=False)
class Questioned:
    """A slice in which a reference is questioned.

    Args:
        image: (I, J, K), the first channel of the scan.
        reference: (I, J, K) label values.
        prediction: (I, J, K) label values.
        finding: the questioned voxels of the slice, 2-D bool in the order of the two other voxel axes.
        axis: the voxel axis across the slice.
        place: a voxel in it.
        geometry: of the arrays.
        shown: labels to draw.
    """

    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    finding: np.ndarray
    axis: int
    place: tuple[int, int, int]
    geometry: Geometry
    shown: Sequence[Label]


def save_audit_picture(questioned: Questioned, title: str, note: str, path: Path) -> None:
    """Write the picture as a PNG: three panels of the same slice, the questioned voxels outlined in white.

    Args:
        questioned: the slice.
        title: the line above.
        note: the sentence below it.
        path: of the PNG, written whole or not at all.

    Raises:
        ResourceError: the file could not be written.
    """
    figure = draw_audit_picture(questioned, title, note)
    with whole_file(path) as temporary:
        save_figure(figure, temporary, dpi=DPI, facecolor=_PAGE)


def draw_audit_picture(questioned: Questioned, title: str, note: str) -> Figure:
    """The figure of `save_audit_picture`, for `DPI` dots per inch."""
    order, _ = ras_order(questioned.geometry.affine)
    plane = next(plane for plane in PLANES if order[plane.normal] == questioned.axis)
    image, reference, prediction, finding = _cuts(questioned, plane)
    rows, columns = _extent(reference, prediction, finding)
    spacing = [questioned.geometry.spacing_mm[axis] for axis in order]
    width_mm, height_mm = len(columns) * spacing[plane.horizontal], len(rows) * spacing[plane.vertical]
    inches = min(_PANEL / width_mm, _TALLEST / height_mm)
    lines = wrapped(printable(note), _WIDTH - 2 * _GAP, _SIZE)
    top = (2.2 + len(lines)) * _LINE
    height = top + height_mm * inches + 3.2 * _LINE
    figure = Figure(figsize=(_WIDTH, height), facecolor=_PAGE)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        defaults: dict[str, Any] = {"color": _INK, "fontsize": _SIZE, "va": "center", "parse_math": False}
        figure.text(x / _WIDTH, y / height, text, **(defaults | style))

    shades = window(questioned.image)
    title = shortened(printable(title), _WIDTH - 2 * _GAP, _TITLE_SIZE, "bold")
    write(_GAP, height - 0.8 * _LINE, title, fontsize=_TITLE_SIZE, weight="bold")
    for number, line in enumerate(lines):
        write(_GAP, height - (1.8 + number) * _LINE, line, color=_FAINT)
    colours = np.array(label_colours(questioned.shown)).reshape(-1, 3) / 255.0
    panels = ((f"scan, {plane.name}", None), ("reference", reference), ("model", prediction))
    for number, (name, labels) in enumerate(panels):
        left = _GAP + number * (_PANEL + _GAP) + (_PANEL - width_mm * inches) / 2
        bottom = 2.2 * _LINE
        box = (left / _WIDTH, bottom / height, width_mm * inches / _WIDTH, height_mm * inches / height)
        axes = figure.add_axes(box)
        axes.set_axis_off()
        draw_scan(axes, image, shades)
        if labels is not None:
            draw_fill(axes, labels, questioned.shown, colours)
            draw_outlines(axes, labels, questioned.shown, colours, "solid")
        draw_mask(axes, finding, _MARK, "dashed")
        axes.set(xlim=(columns[0], columns[-1] + 1), ylim=(rows[0], rows[-1] + 1))
        write(left, bottom + height_mm * inches + 0.5 * _LINE, name, weight="bold")
        before, behind, above, below = plane.letters
        for x, letter, at in ((left, before, "left"), (left + width_mm * inches, behind, "right")):
            write(x, bottom - 0.5 * _LINE, letter, color=_FAINT, ha=at)
        middle = left + width_mm * inches / 2
        write(middle, bottom - 0.5 * _LINE, below, color=_FAINT, ha="center")
        write(middle, bottom + height_mm * inches + 0.5 * _LINE, above, color=_FAINT, ha="center")
    _legend(figure, height, questioned.shown, colours, write)
    return figure


def _cuts(questioned: Questioned, plane: Plane) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The slice of the image, the reference, the prediction and the finding, each (rows, columns) as seen."""
    order, flips = ras_order(questioned.geometry.affine)
    finding = np.expand_dims(questioned.finding, questioned.axis)
    arrays = []
    for array in (questioned.image, questioned.reference, questioned.prediction, finding):
        cut = [slice(None)] * 3
        if array.shape[questioned.axis] > 1:
            cut[questioned.axis] = slice(questioned.place[questioned.axis], questioned.place[questioned.axis] + 1)
        arrays.append(slice_of(oriented(array[tuple(cut)], order, flips), plane, [0, 0, 0]))
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _extent(*masks: np.ndarray) -> tuple[range, range]:
    """The rows and columns of all labels and the finding, with a margin."""
    there = np.logical_or.reduce([mask > 0 for mask in masks])
    found = []
    for axis, size in ((1, there.shape[0]), (0, there.shape[1])):
        used = np.flatnonzero(there.any(axis=axis))
        margin = max(_MARGIN_VOXELS, round(_MARGIN * (used[-1] + 1 - used[0])))
        found.append(range(max(0, int(used[0]) - margin), min(size, int(used[-1]) + 1 + margin)))
    return found[0], found[1]


def _legend(figure: Figure, height: float, shown: Sequence[Label], colours: np.ndarray, write: Any) -> None:
    """One line with the colours of the labels, as many as fit, and the outline of the finding."""
    y, x = 0.6 * _LINE, _GAP
    write(x, y, "white: questioned", color=_FAINT)
    x += width_of("white: questioned", _SIZE) + 0.3
    for label, colour in zip(shown, colours, strict=True):
        name = shortened(printable(label.name), 2.5, _SIZE)
        if x + 0.25 + width_of(name, _SIZE) > _WIDTH - _GAP - 0.3:
            write(x, y, "...", color=_FAINT)
            return
        corner = (x / _WIDTH, (y - 0.07) / height)
        figure.add_artist(
            Rectangle(corner, 0.2 / _WIDTH, 0.14 / height, facecolor=colour, transform=figure.transFigure)
        )
        write(x + 0.27, y, name)
        x += 0.27 + width_of(name, _SIZE) + 0.3
