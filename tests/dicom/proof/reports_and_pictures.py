"""What structured reports and pictures of results say of labels, read by software that is not volseg's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import highdicom
import numpy as np
import pydicom

from tests.dicom.proof.other_software import run_program
from tests.dicom.proof.phantom_series import LABELS, Series
from tests.dicom.proof.positions import centre
from volseg.report.colours import label_colours

# Each plane of a picture, from the left: the LPS+ directions to its right and down; the patient's right is on the left.
PLANES = {"axial": ((1, 0, 0), (0, 1, 0)), "coronal": ((1, 0, 0), (0, 0, -1)), "sagittal": ((0, 1, 0), (0, 0, -1))}
_VOLUME = "118565006"
# Outlines are a few pixels wide and drawn in the label's colour itself.
_FEWEST_PIXELS = 12
_WIDEST_GAP = 20


class Reported(NamedTuple):
    """A label in a report: volume in mL and centre of mass in LPS+ millimetres; None where a reader gives none."""

    volume_ml: float
    centre: np.ndarray | None


def true_values(series: Series) -> dict[str, Reported]:
    """What a report of the phantom has to say, from the phantom itself."""
    voxel_ml = abs(np.linalg.det(series.matrix[:3, :3])) / 1000
    masks = {label.name: series.labels == label.value for label in LABELS}
    return {name: Reported(mask.sum() * voxel_ml, centre(mask, series.matrix)) for name, mask in masks.items()}


def report_by_highdicom(file: Path) -> dict[str, Reported]:
    """A report by highdicom: groups of volumes and of points."""
    content = highdicom.sr.srread(file).content
    points = {_label(one.tracking_identifier): one.roi.value[0] for one in content.get_planar_roi_measurement_groups()}
    return {
        _label(one.tracking_identifier): Reported(measured.value, np.array(points[_label(one.tracking_identifier)]))
        for one in content.get_volumetric_roi_measurement_groups()
        for measured in one.get_measurements()
        if measured.name.value == _VOLUME
    }


def report_by_dcmqi(file: Path) -> dict[str, Reported]:
    """A report by dcmqi's `tid1500reader`, which gives no points."""
    made = file.with_name(f"{file.name}.json")
    run_program("tid1500reader", "--inputDICOM", file, "--outputMetadata", made)
    return {
        _label(group["TrackingIdentifier"]): Reported(float(item["value"]), None)
        for group in json.loads(made.read_text())["Measurements"]
        for item in group.get("measurementItems", ())
        if item["quantity"]["CodeValue"] == _VOLUME
    }


def _label(tracking: str) -> str:
    """The label in a tracking identifier, behind the name of the model."""
    return tracking.rpartition(": ")[2]


def places_in_picture(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """By plane and label name, where the outlines of a label lie: pixels to the right and down."""
    pixels = pydicom.dcmread(file).pixel_array.astype(int)
    found = {}
    for plane, (rows, columns) in zip(PLANES, _panels(pixels), strict=True):
        panel = pixels[rows, columns]
        found[plane] = {}
        for label, colour in zip(LABELS, label_colours(LABELS), strict=True):
            drawn = np.argwhere(np.abs(panel - colour).max(-1) <= 6)
            if len(drawn) >= _FEWEST_PIXELS:
                found[plane][label.name] = drawn[:, ::-1].min(0) / 2 + drawn[:, ::-1].max(0) / 2
    return found


def _panels(pixels: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """The three planes, from the left: their air is black, and the page around them is not quite."""
    black = pixels.max(-1) <= 3
    columns = np.flatnonzero(black.sum(0) > 20)
    for run in np.split(columns, np.flatnonzero(np.diff(columns) > _WIDEST_GAP) + 1):
        rows = np.flatnonzero(black[:, run].sum(1) > 20)
        yield slice(rows[0], rows[-1] + 1), slice(run[0], run[-1] + 1)


def wrong_sides(file: Path, series: Series, least_mm: float = 8) -> tuple[list[str], int]:
    """Pairs of labels of a picture that lie the wrong way round, and the number of pairs that were compared.

    Compared are pairs whose centres are `least_mm` or more apart along a side of the picture: it shows cuts, whose
    centres are others.
    """
    true = {name: one.centre for name, one in true_values(series).items()}
    wrong, compared = [], 0
    for plane, places in places_in_picture(file).items():
        for direction, side in zip(PLANES[plane], range(2), strict=True):
            for one, place in places.items():
                for other, its_place in places.items():
                    apart = float(np.dot(direction, true[other] - true[one]))
                    if apart >= least_mm:
                        compared += 1
                        if its_place[side] <= place[side]:
                            wrong.append(f"{plane}: {other} is not {'right of' if side == 0 else 'below'} {one}")
    return wrong, compared
