"""Read the labels of a DICOM segmentation or structure set as a label image."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.data.grid.geometry import Geometry
from volseg.data.io.choice import ONLY, Choice
from volseg.data.io.dicom.files import files_of
from volseg.data.io.dicom.header import read_object, sop_class_of
from volseg.data.io.dicom.values import printable, text
from volseg.data.io.dicom_labels.contours_on_grid import draw_structures
from volseg.data.io.dicom_labels.frames_on_grid import draw_segments, own_grid
from volseg.data.io.dicom_labels.label_names import Named
from volseg.data.io.dicom_labels.objects import KINDS, SEGMENTATION, STRUCTURES, Part, label_file, label_files
from volseg.data.io.dicom_labels.overlaps import Canvas, Merged, about_overlaps, reject_overlaps
from volseg.data.io.dicom_labels.placing import NO_SERIES, Target, connection, series_beside
from volseg.data.io.dicom_labels.segmentation import Segmentation, open_segmentation
from volseg.data.io.dicom_labels.structures import StructureSet, open_structures
from volseg.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelImage:
    """The labels of a DICOM object on a grid.

    Args:
        merged: the label image and the values of each label.
        parts: the labels; their numbers are their values.
        numbers: SegmentNumber or ROINumber by value.
        geometry: of the label image.
        header: nibabel header of the scan whose grid it has, if that is a NIfTI or MGH image; else None.
        unstated: why no volume in mL can be given; empty if it can.
        frames: the FrameOfReferenceUIDs of the labels.
        record: the kind of the object and its UIDs, and those of the series whose grid it has.
        warnings: assumptions made, one sentence each.
    """

    merged: Merged
    parts: tuple[Part, ...]
    numbers: Mapping[int, int]
    geometry: Geometry
    header: Any
    unstated: str
    frames: frozenset[str]
    record: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def named(self) -> Named:
        """Its labels by name."""
        numbers = {part.name: part.number for part in self.parts}
        return Named(numbers, {name: self.merged.values[number] for name, number in numbers.items()})

    def reject_overlaps(self, source: str) -> None:
        """Reject labels that overlap unless one contains the other.

        Raises:
            InputError: it names them.
        """
        reject_overlaps(self.merged, self.parts, source)


def holds_labels(path: Path) -> bool:
    """Whether a path is, or holds only, a DICOM segmentation or structure set and no images.

    Raises:
        InputError: it cannot be read, or holds several of them.
    """
    with files_of(path) as names:
        return label_file(names, str(path)) is not None


def labels_among(path: Path) -> list[str]:
    """The segmentations and structure sets of a folder, .zip or DICOMDIR: their names for messages and their kinds."""
    with files_of(path) as names:
        return label_files(names)


def open_labels(path: Path, names: Mapping[Path, str]) -> Segmentation | StructureSet:
    """The only segmentation or structure set among the files of a path, without its pixels.

    Raises:
        InputError: it cannot be read, or there is none or several.
    """
    source = str(path)
    file = label_file(names, source)
    if file is None:
        raise InputError(f"{source} holds no DICOM segmentation or structure set; give its file.")
    header = read_object(file, names[file])
    return open_structures(header, source) if sop_class_of(file) == STRUCTURES else open_segmentation(header, source)


def read_dicom_labels(path: Path, target: Target | None = None, choice: Choice = ONLY) -> LabelImage:
    """Read the only segmentation or structure set of a path, see `holds_labels`.

    Args:
        path: a file, a folder or a .zip that holds one of them.
        target: the grid that the labels are placed on. None: that of the series beside it; for a segmentation for which
            there is none, or whose voxels are not those of the series, its own grid.
        choice: which volume of the series beside it, for its grid.

    Raises:
        GridError: it does not belong to the grid, see `volseg.data.io.dicom_labels.placing`.
        InputError: it cannot be read, see `volseg.data.io.dicom_labels`.
    """
    with files_of(path) as names:
        found = open_labels(path, names)
        if target is not None:
            return _on_target(found, target)
        try:
            return _beside(found, path, choice)
        except InputError as error:
            if isinstance(found, StructureSet):
                raise
            return _on_own_grid(found, error)


def _beside(found: Segmentation | StructureSet, path: Path, choice: Choice) -> LabelImage:
    """The labels on the grid of the series beside their file."""
    target = series_beside(path / "any" if path.is_dir() else path, found.references, choice)
    placed = _on_target(found, target)
    logger.info("%s: on the grid of the series %s, which lies beside it", found.source, target.series)
    return placed


def _on_own_grid(found: Segmentation, error: InputError) -> LabelImage:
    """The segments on their own grid, because there is no other for the reason of an error."""
    geometry, warnings = own_grid(found)
    canvas = Canvas(geometry.shape, found.source)
    warnings += draw_segments(found, geometry, canvas, "its own grid")
    there = "no series that it belongs to lies beside it"
    if error.problem != NO_SERIES:
        there = f"the series beside it cannot be used ({error.found.removeprefix(f'{found.source}: ').rstrip('.')})"
    warnings.append(
        f"The label image covers only the slices from the first frame to the last, because {there}; volseg convert "
        "--like SCAN gives the grid of the scan."
    )
    return _image(found, canvas, Target(geometry, "its own grid"), warnings)


def _on_target(found: Segmentation | StructureSet, target: Target) -> LabelImage:
    warnings = connection(found.references, target, found.source)
    canvas = Canvas(target.geometry.shape, found.source)
    if isinstance(found, Segmentation):
        warnings += draw_segments(found, target.geometry, canvas, target.name)
    else:
        warnings += draw_structures(found, target.geometry, canvas, target.name)
    return _image(found, canvas, target, warnings)


def _image(found: Segmentation | StructureSet, canvas: Canvas, target: Target, warnings: list[str]) -> LabelImage:
    merged = canvas.merged(found.parts)
    empty = [part.name for part in found.parts if not merged.voxels[part.number]]
    said = [f"Labels without a voxel: {', '.join(empty)}."] if empty else []
    data = found.header.data
    record: dict[str, Any] = {
        "kind": KINDS[SEGMENTATION if isinstance(found, Segmentation) else STRUCTURES],
        **({"type": found.kind} if isinstance(found, Segmentation) else {}),
        "sop_instance_uid": printable(text(data, "SOPInstanceUID")),
        "series_uid": printable(text(data, "SeriesInstanceUID")),
        "grid_of_series": target.series or None,
    }
    every = (*target.warnings, *found.warnings, *warnings, *about_overlaps(merged, found.parts), *said)
    numbers = found.numbers if isinstance(found, StructureSet) else {part.number: part.number for part in found.parts}
    unique = tuple(dict.fromkeys(every))
    return LabelImage(
        merged, found.parts, numbers, target.geometry, target.header, target.unstated, found.references.frames, record,
        unique,
    )  # fmt: skip
