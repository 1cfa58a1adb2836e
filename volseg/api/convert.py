"""Convert scans, and labels in DICOM, to image files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from volseg.data.grid.geometry import require_geometry, volume_of
from volseg.data.io.choice import Choice, chosen
from volseg.data.io.dicom_labels.placing import Target, target_series
from volseg.data.io.dicom_labels.reader import LabelImage, holds_labels, labels_among, read_dicom_labels
from volseg.data.io.formats import is_dicom, sibling
from volseg.data.io.inputs import protect_scans
from volseg.data.io.provenance import input_of
from volseg.data.io.reading import Scan, read_image
from volseg.data.io.writing import write_image, write_labels, written_suffix
from volseg.errors import InputError, UsageError
from volseg.files import access_to, finish_files, given_path, require_writable, whole_files, write_json
from volseg.text import first_few
from volseg.version import __version__


def convert(
    source: str | Path,
    output: str | Path,
    like: str | Path | None = None,
    *,
    series: str | int | None = None,
    volume: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a scan, or the labels of a DICOM segmentation or structure set, as an image file.

    A scan keeps its voxels and its geometry: integers stay integers, scaled values are float32 (float64 where that is
    not exact). Labels of a segmentation (SEG) or structure set (RTSTRUCT) lie on the grid of the series they belong to,
    which is looked for in their folder and the folder above; a SEG without one has its own grid. With `like`, they lie
    on that scan's grid. A label has its SegmentNumber or ROINumber as value; labels that overlap have a value for each
    overlap.

    Args:
        source: a scan, a DICOM series folder or zip, or a DICOM SEG or RTSTRUCT (a file, or a folder that holds one).
        output: the file, ending in .nii.gz, .nii, .mgz, .mgh, .nrrd or .mha; its record is written to <stem>.json.
        like: a scan of any format whose grid the labels get; for a scan as `source`, the geometry it must have.
        series: SeriesInstanceUID or SeriesNumber, where `like`, or else `source`, holds several DICOM series.
        volume: number of a volume of a 4-D scan, from 1.
        overwrite: replace an existing file.

    Returns:
        The record: "input" (UIDs of DICOM, else the SHA-256 of the files), "warnings", and for labels "labels" (name to
        value, or to the values that a label consists of) and "segments" (number, voxels, volume_ml and codes by name).

    Raises:
        UsageError: an option has an invalid value, or the output exists or cannot be written.
        GridError: labels do not belong to the scan, or `source` has another geometry than `like`.
        InputError: a file is missing, corrupt, or no 3-D image.
        ResourceError: the disk is full.
    """
    path, target = given_path(source), given_path(output)
    beside = None if like is None else given_path(like)
    _check_output([path] if beside is None else [path, beside], target, overwrite)
    choice = chosen(series, volume, False)
    with access_to(path):
        if not path.exists():
            raise InputError(f"{path} does not exist", "give a scan, or a DICOM SEG or RTSTRUCT", "missing file")
        has_labels = is_dicom(path) and holds_labels(path)
    if has_labels:
        on = None if beside is None else _target(beside, choice)
        found = read_dicom_labels(path, on, choice)
        return _save(_of_labels(found), target, lambda file: _write_labels(found, path, file))
    scan = read_image(path, choice)
    if beside is not None:
        require_geometry(scan.geometry, read_image(beside).geometry, str(path), "the scan of --like")
    beside_scan = labels_among(path) if is_dicom(path) else []
    said = (
        [f"Labels are there as well: {first_few(beside_scan)}; give such a file to convert them."]
        if beside_scan
        else []
    )
    record = {**scan.chosen, "input": input_of(scan, [path]), "warnings": [*scan.warnings, *said]}
    return _save(record, target, lambda file: write_image(scan, file))


def _check_output(inputs: Sequence[Path], output: Path, overwrite: bool) -> None:
    """Reject an output that is no image file, exists, would overwrite an input, or cannot be written."""
    written_suffix(output, "Images")
    protect_scans([output], inputs)
    finish_files(output.parent, [output.name])
    files = [output, sibling(output, ".json")]
    existing = [file for file in files if os.path.exists(file)]
    if existing and not overwrite:
        raise UsageError(f"{existing[0]} exists already. Give another --output, or add --overwrite.")
    require_writable(files)


def _target(path: Path, choice: Choice) -> Target:
    """The grid of the scan at a path."""
    with access_to(path):
        if not path.exists():
            raise InputError(f"{path} does not exist", "give the scan that the labels belong to", "missing file")
        if is_dicom(path):
            return target_series(path, choice)
    scan = read_image(path, choice)
    return Target(scan.geometry, "the scan", None, scan.header, warnings=scan.warnings, unstated=scan.unstated)


def _write_labels(found: LabelImage, path: Path, output: Path) -> None:
    scan = Scan((found.merged.array,), found.geometry, found.header, str(path), found.warnings, found.unstated)
    write_labels(found.merged.array, scan, output)


def _of_labels(found: LabelImage) -> dict[str, Any]:
    """The record of labels, which `volseg evaluate --labels` reads."""
    merged = found.merged
    has_regions = any(len(values) > 1 for values in merged.values.values())
    # Regions in the order in which they can be drawn over each other.
    parts = sorted(found.parts, key=lambda part: (-merged.voxels[part.number] if has_regions else 0, part.number))
    values = {part.name: merged.values[part.number] for part in parts}
    voxel_ml = None if found.unstated else found.geometry.voxel_ml
    return {
        "input": dict(found.record),
        "labels": {name: list(some) if len(some) > 1 else some[0] for name, some in values.items()},
        **({"regions_class_order": [part.number for part in parts]} if has_regions else {}),
        "segments": {
            part.name: {
                "number": found.numbers[part.number],
                "voxels": (voxels := merged.voxels[part.number]),
                "volume_ml": None if voxel_ml is None else volume_of(voxels, voxel_ml),
                "reason": found.unstated or None,
                "codes": {name: dict(code) for name, code in part.codes.items()},
            }
            for part in parts
        },
        "warnings": list(found.warnings),
    }


def _save(record: dict[str, Any], output: Path, write: Callable[[Path], None]) -> dict[str, Any]:
    """Write an image and its record, both or none."""
    document = {"volseg_version": __version__, **record}
    with whole_files(output.parent, output.name) as folder:
        write_json(folder / sibling(output, ".json").name, document)
        write(folder / output.name)
    return document
