"""Preview of a segmented scan: three orthogonal planes with label overlays, and a legend with volumes.

Arrays here are in RAS+ order (R, A, S) unless they say (I, J, K); lengths on the page are inches.
The view is radiological: the patient's right is on the left of the image, and anterior on the left of the sagittal
plane. All planes have the same scale.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from volseg.config import Label
from volseg.data.grid.geometry import Geometry, ras_order
from volseg.errors import GridError
from volseg.files import whole_file
from volseg.report.colours import label_colours
from volseg.report.drawing import PLANES, draw_fill, draw_outlines, draw_scan, oriented, slice_of, window
from volseg.report.fitting import shortened, width_of, wrapped
from volseg.report.save_figure import save_figure
from volseg.text import printable

DPI = 120
_PLANES_WIDTH, _PLANES_HEIGHT = 10.0, 6.5  # maximum size of the three planes together
_NARROWEST = 1.6  # room for the name of a plane next to the letter above it
_GAP = 0.3  # around each plane, for its letters
_TITLE = 0.4
_TITLE_SIZE = 13  # points, like the other sizes of text
_LINE = 0.26  # of the legend
_COLUMN = 3.4
_COLUMN_GAP = 0.2  # between a text of the legend and the next column
_LEGEND_SIZE = 11
_NOTE_LINE = 0.22
_NOTE_SIZE = 10
_MOST_ROWS = 6  # unless the caller wants more
_TAIL = 6  # characters at the end of a long name, where many names have the side
_PAGE, _INK, _FAINT, _NOTE = "#111418", "#f2f2f2", "#b4bac1", "#ffcf70"


def save_preview(
    image: np.ndarray,
    labels: np.ndarray,
    geometry: Geometry,
    shown: Sequence[Label],
    path: Path,
    **options: Any,
) -> None:
    """Write the figure of `draw_preview` as a PNG.

    Args:
        image: as for `draw_preview`, like the three that follow.
        labels: see `image`.
        geometry: see `image`.
        shown: see `image`.
        path: the PNG, written whole or not at all.
        options: the other arguments of `draw_preview`.

    Raises:
        GridError: the shape of an array differs from that of `geometry`.
        ResourceError: the file could not be written.
    """
    figure = draw_preview(image, labels, geometry, shown, **options)
    with whole_file(path) as temporary:
        save_figure(figure, temporary, dpi=DPI, facecolor=_PAGE)


def draw_preview(
    image: np.ndarray,
    labels: np.ndarray,
    geometry: Geometry,
    shown: Sequence[Label],
    *,
    title: str = "",
    reference: np.ndarray | None = None,
    is_size_known: bool = True,
    notes: Sequence[str] = (),
    most_rows: int = _MOST_ROWS,
) -> Figure:
    """A figure of an axial, a coronal and a sagittal slice with label overlays, for `DPI` dots per inch.

    Each plane is the slice with the most foreground voxels, or the middle one of several equal ones; so it is the
    middle of the scan if there is no foreground. The intensity window is the 1st to the 99th percentile.

    Args:
        image: (I, J, K), any real dtype; voxels that are not finite are black.
        labels: (I, J, K), integers; values not in `shown` are not drawn.
        geometry: the grid of both.
        shown: labels to show, with the name and volume of each in the legend.
        title: a line above, shortened if it does not fit.
        reference: (I, J, K), integers; drawn as dashed outlines for comparison.
        is_size_known: whether the spacing of `geometry` is in millimetres; otherwise there are neither volumes nor a
            scale bar.
        most_rows: of the legend; where not all labels fit, it has the largest ones.
        notes: sentences below the legend. Besides them and the title, the image contains no text about the scan.

    Raises:
        GridError: the shape of an array differs from that of `geometry`.
    """
    for name, array in (("image", image), ("labels", labels), ("reference", reference)):
        if array is not None and array.shape != geometry.shape:
            raise GridError(
                f"The preview's {name} has shape {array.shape}, expected {geometry.shape}, the scan's grid."
            )
    order, flips = ras_order(geometry.affine)
    spacing_mm = [geometry.spacing_mm[axis] for axis in order]
    image, labels = oriented(image, order, flips), oriented(labels, order, flips)
    reference = None if reference is None else oriented(reference, order, flips)

    centre, voxels = _fullest_slices(labels, shown)
    shades = window(image)
    colours = np.array(label_colours(shown)).reshape(-1, 3) / 255.0
    page = _Page(np.multiply(labels.shape, spacing_mm), len(shown), title, notes, most_rows)
    for plane, axes in zip(PLANES, page.planes(), strict=True):
        cut = slice_of(labels, plane, centre)
        draw_scan(axes, slice_of(image, plane, centre), shades)
        draw_fill(axes, cut, shown, colours)
        draw_outlines(axes, cut, shown, colours, "solid")
        if reference is not None:
            draw_outlines(axes, slice_of(reference, plane, centre), shown, colours, "dashed")
        axes.set(xlim=(0, cut.shape[1]), ylim=(0, cut.shape[0]))
    page.legend(shown, voxels * geometry.voxel_ml, colours, is_size_known)
    page.footer("dashed: reference; " if reference is not None else "", is_size_known)
    return page.figure


def _fullest_slices(labels: np.ndarray, shown: Sequence[Label]) -> tuple[list[int], np.ndarray]:
    """The slice with the most foreground voxels along R, A and S, and the number of voxels of each label.

    That of a region counts all its parts. Slice by slice, so that no second array of the scan's size is needed.
    """
    values = [label.value for label in shown]
    parts = [list(label.stored_values) for label in shown]
    values_up_to = max([int(labels.max()), *values, *(value for one in parts for value in one)]) + 1
    is_shown = np.zeros(values_up_to, dtype=bool)
    is_shown[values] = True
    totals = np.zeros(values_up_to, dtype=np.int64)
    counts = [np.zeros(size, dtype=np.int64) for size in labels.shape]
    for level in range(labels.shape[2]):
        cut = labels[:, :, level]
        totals += np.bincount(cut.ravel(), minlength=values_up_to)
        foreground = is_shown[cut]
        counts[0] += foreground.sum(axis=1)
        counts[1] += foreground.sum(axis=0)
        counts[2][level] = foreground.sum()
    fullest = [np.flatnonzero(count == count.max()) for count in counts]
    return [int(slices[len(slices) // 2]) for slices in fullest], np.array([totals[one].sum() for one in parts])


class _Page:
    """The figure: three planes in a row, the legend and notes below, and a last line with scale and orientation.

    Args:
        size_mm: extent of the scan along R, A and S.
        labels: number of labels in the legend.
        title: the line above; empty for none.
        notes: sentences below the legend.
        most_rows: of the legend.
    """

    def __init__(
        self,
        size_mm: np.ndarray,
        labels: int,
        title: str,
        notes: Sequence[str] = (),
        most_rows: int = _MOST_ROWS,
    ) -> None:
        right, anterior, superior = size_mm
        self.inches_per_mm = min(_PLANES_WIDTH / (2 * right + anterior), _PLANES_HEIGHT / max(anterior, superior))
        self.size = size_mm * self.inches_per_mm
        self.cells = [max(self.size[plane.horizontal], _NARROWEST) for plane in PLANES]
        self.width = max(sum(self.cells) + 6 * _GAP, 2 * _COLUMN + 2 * _GAP)
        self.columns = int((self.width - 2 * _GAP) / _COLUMN)
        rows = min(-(-labels // self.columns), most_rows)
        lines = [line for note in notes for line in wrapped(printable(note), self.width - 2 * _GAP, _NOTE_SIZE)]
        self.legend_top = (rows + 1.5) * _LINE + _GAP + len(lines) * _NOTE_LINE
        self.row = max(self.size[1:])
        self.height = self.legend_top + self.row + 2 * _GAP + (_TITLE if title else 0)
        # Whole pixels, so that the last row and column are not half transparent.
        self.width, self.height = (math.ceil(length * DPI) / DPI for length in (self.width, self.height))
        self.rows = rows
        self.figure = Figure(figsize=(self.width, self.height), facecolor=_PAGE)
        title = shortened(printable(title), self.width - 2 * _GAP, _TITLE_SIZE, "bold")
        self._text(_GAP, self.height - _TITLE * 0.6, title, fontsize=_TITLE_SIZE, weight="bold")
        for place, line in enumerate(lines):
            y = self.legend_top - (rows + 0.3) * _LINE - (place + 0.5) * _NOTE_LINE
            self._text(_GAP, y, line, fontsize=_NOTE_SIZE, color=_NOTE)

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Any:
        """Axes at a position on the page, in inches from its lower left corner."""
        axes = self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))
        axes.set_axis_off()
        return axes

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text at a position on the page, in inches; dollar signs do not start a formula."""
        defaults: dict[str, Any] = {"color": _INK, "fontsize": _LEGEND_SIZE, "va": "center", "parse_math": False}
        self.figure.text(x / self.width, y / self.height, text, **(defaults | style))

    def _block(self, left: float, y: float, width: float, height: float, colour: Any) -> None:
        """A filled rectangle, centred vertically on y."""
        corner = (left / self.width, (y - height / 2) / self.height)
        size = (width / self.width, height / self.height)
        self.figure.add_artist(Rectangle(corner, *size, facecolor=colour, transform=self.figure.transFigure))

    def planes(self) -> list[Any]:
        """Axes for each plane, with its name and the letters of its directions around them."""
        made = []
        cell_left = (self.width - sum(self.cells) - 6 * _GAP) / 2 + _GAP
        middle = self.legend_top + _GAP + self.row / 2
        for plane, cell in zip(PLANES, self.cells, strict=True):
            width, height = self.size[plane.horizontal], self.size[plane.vertical]
            centre = cell_left + cell / 2
            left, top = centre - width / 2, middle + height / 2
            before, behind, above, below = plane.letters
            self._text(left - _GAP / 2, middle, before, ha="center", color=_FAINT)
            self._text(left + width + _GAP / 2, middle, behind, ha="center", color=_FAINT)
            self._text(centre, top + _GAP / 2, above, ha="center", color=_FAINT)
            self._text(centre, top - height - _GAP / 2, below, ha="center", color=_FAINT)
            self._text(min(left, cell_left), top + _GAP / 2, plane.name, color=_FAINT, fontsize=10)
            made.append(self._axes(left, top - height, width, height))
            cell_left += cell + 2 * _GAP
        return made

    def legend(
        self, shown: Sequence[Label], volumes_ml: np.ndarray, colours: np.ndarray, is_size_known: bool = True
    ) -> None:
        """Colours, names and volumes; the largest labels if not all fit."""
        named = list(range(len(shown)))
        if len(named) > self.rows * self.columns:
            named = sorted(np.argsort(-volumes_ml, kind="stable")[: self.rows * self.columns - 1].tolist())
        for place in range(min(len(shown), self.rows * self.columns)):
            left = _GAP + _COLUMN * (place // self.rows)
            y = self.legend_top - (place % self.rows + 0.5) * _LINE
            if place == len(named):
                self._text(left, y, f"and {len(shown) - len(named)} smaller", color=_FAINT)
                continue
            index = named[place]
            self._block(left, y, 0.2, 0.15, colours[index])
            volume = f"  {_volume_text(volumes_ml[index]) if is_size_known else '-'} mL"
            room = _COLUMN - 0.3 - _COLUMN_GAP - width_of(volume, _LEGEND_SIZE)
            name = printable(shown[index].name.strip()) or f"label {shown[index].value}"
            self._text(left + 0.3, y, shortened(name, room, _LEGEND_SIZE, tail=_TAIL) + volume)

    def footer(self, note: str, is_size_known: bool) -> None:
        """The scale bar, `note`, and the orientation of the image."""
        y = _GAP / 2 + _LINE / 2
        if is_size_known:
            bar_mm = next((length for length in (100, 50, 10) if length * self.inches_per_mm <= self.width / 4), 1)
            bar = bar_mm * self.inches_per_mm
            self._block(_GAP, y, bar, 0.05, _INK)
            self._text(_GAP + bar + 0.1, y, f"{bar_mm} mm", fontsize=10)
        else:
            self._text(_GAP, y, "size in mm unknown", fontsize=10)
        note = f"{note}radiological view: patient right is on the left"
        self._text(self.width - _GAP, y, note, ha="right", fontsize=10, color=_FAINT)


def _volume_text(volume_ml: float) -> str:
    """Three significant digits; whole millilitres from 100 on."""
    return f"{volume_ml:#.3g}" if volume_ml < 99.95 else f"{volume_ml:,.0f}"
