"""The DICOM series that a result is about, as the objects written for it refer to it.

Headers stay as they were read; nothing here changes them. Positions are LPS+ millimetres, as in DICOM.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.grid.geometry import LPS_FROM_RAS, Geometry
from volseg.data.io.dicom.frames import Frame
from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.values import described, number, text
from volseg.data.io.reading import Scan
from volseg.dicom.uids import derived_uid
from volseg.errors import InputError

# What all slices of a patient share.
_OF_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


class Reference(NamedTuple):
    """What a slice is called: the SOP class and instance of its file, and its frame from 1; 0 for a classic file."""

    sop_class: str
    instance: str
    frame: int


@dataclass(frozen=True, eq=False)
class Source:
    """A series, slice by slice.

    Args:
        slices: along K of the scan, at least one.
        geometry: of the scan, RAS+; labels (I, J, K) are I columns, J rows, K slices.
        volume: its number, where one of several of the series was chosen.
    """

    slices: tuple[Frame, ...]
    geometry: Geometry
    volume: int | None = None

    @property
    def header(self) -> Dataset:
        """The dataset of the first slice, for what all slices share."""
        data: Dataset = self.slices[0].header.data
        return data

    @property
    def study_uid(self) -> str:
        """Its StudyInstanceUID."""
        return text(self.header, "StudyInstanceUID")

    @property
    def series_uid(self) -> str:
        """Its SeriesInstanceUID."""
        return text(self.header, "SeriesInstanceUID")

    @property
    def frame_of_reference_uid(self) -> str:
        """Its FrameOfReferenceUID; if it states none, one of its own: that of nothing else, and always the same."""
        return self._stated_frame_of_reference or derived_uid("frame of reference", self.study_uid, self.series_uid)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be assumed of it, one sentence each."""
        return tuple(self._warnings())

    def _warnings(self) -> Iterator[str]:
        if not self._stated_frame_of_reference:
            yield (
                "The series states no FrameOfReferenceUID: DICOM results have one derived from its SeriesInstanceUID, "
                "which connects them with each other but with no other series."
            )
        varying = [name for name in _OF_PATIENT if len({described(one, name) for one in self.files}) > 1]
        if varying:
            yield (
                f"The slices of the series differ in {', '.join(varying)}; DICOM results state what the first slice "
                "states. Check that all slices are of one patient."
            )

    @property
    def _stated_frame_of_reference(self) -> str:
        return text(self.header, "FrameOfReferenceUID")

    @property
    def series_number(self) -> int | None:
        """Its SeriesNumber, if that is a whole number that is not negative."""
        found = number(self.header, "SeriesNumber")
        return int(found) if found is not None and found >= 0 and float(found).is_integer() else None

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """The file and frame of each slice."""
        return tuple(
            Reference(
                text(one.header.data, "SOPClassUID"),
                text(one.header.data, "SOPInstanceUID"),
                one.index + 1 if "NumberOfFrames" in one.header.data else 0,
            )
            for one in self.slices
        )

    @cached_property
    def headers(self) -> tuple[Header, ...]:
        """The headers of the files, each once, in the order of their first slices."""
        return tuple({id(one.header): one.header for one in self.slices}.values())

    @property
    def files(self) -> tuple[Dataset, ...]:
        """The datasets of the files, each once, in the order of their first slices."""
        return tuple(one.data for one in self.headers)

    @cached_property
    def frames_by_file(self) -> dict[str, tuple[int, ...]]:
        """The frames of the slices by the instance of their file, in ascending order; none for a classic file."""
        found: dict[str, list[int]] = {}
        for one in self.references:
            found.setdefault(one.instance, []).extend([one.frame] if one.frame else [])
        return {instance: tuple(sorted(frames)) for instance, frames in found.items()}

    @cached_property
    def class_by_file(self) -> dict[str, str]:
        """The SOP class of each file by its instance."""
        return {one.instance: one.sop_class for one in self.references}

    @cached_property
    def positions(self) -> np.ndarray:
        """(K, 3) LPS+ mm, the centre of the first pixel of each slice, as stated."""
        return np.array([one.position for one in self.slices], dtype=np.float64)

    @cached_property
    def directions(self) -> np.ndarray:
        """(2, 3) LPS+ unit vectors along a row and along a column: ImageOrientationPatient."""
        affine = LPS_FROM_RAS @ self.geometry.affine
        directions: np.ndarray = (affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)).T
        return directions

    @property
    def pixel_spacing_mm(self) -> tuple[float, float]:
        """Distance between rows, then between columns, as DICOM orders them."""
        columns, rows, _ = self.geometry.spacing_mm
        return rows, columns

    @cached_property
    def slice_distance_mm(self) -> float:
        """Mean distance between neighbouring slices along their normal; that of a single slice is its thickness."""
        if len(self.slices) == 1:
            return float(self.geometry.spacing_mm[2])
        heights = self.positions[[0, -1]] @ np.cross(*self.directions)
        return float(abs(heights[1] - heights[0])) / (len(self.slices) - 1)

    def to_patient(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) in continuous voxel indices (i, j, k) as LPS+ mm, on the grid of the scan."""
        affine = LPS_FROM_RAS @ self.geometry.affine
        moved: np.ndarray = points @ affine[:3, :3].T + affine[:3, 3]
        return moved


def source_of(scan: Scan) -> Source:
    """The series that a scan was read from.

    Raises:
        InputError: the scan is no DICOM, a mosaic, does not state to which study and series it belongs, or has files
            of the same name.
    """
    if not scan.slices:
        raise InputError(
            f"{scan.source} is no DICOM series whose slices are images of their own (other formats and Siemens mosaics "
            "have none), so no DICOM object can refer to them; leave the DICOM formats out of --to."
        )
    _require_names(scan.slices, scan.source)
    _require_own_names(scan.slices, scan.source)
    return Source(scan.slices, scan.geometry, scan.chosen.get("volume"))


def _require_names(slices: Sequence[Frame], source: str) -> None:
    """Reject slices that a result could not name."""
    for one in slices:
        missing = [name for name in _NEEDED if not text(one.header.data, name)]
        if missing:
            raise InputError(
                f"{one.header.among(source)} states no {missing[0]}, so no DICOM object can refer to it; export the "
                "series again, or leave the DICOM formats out of --to."
            )


def _require_own_names(slices: Sequence[Frame], source: str) -> None:
    """Reject files that a result could not tell apart."""
    files: dict[str, Header] = {}
    for one in slices:
        first = files.setdefault(text(one.header.data, "SOPInstanceUID"), one.header)
        if first is not one.header:
            raise InputError(
                f"{one.header.among(source)} has the SOPInstanceUID of {first.name}, expected one of its own, so no "
                "DICOM object can refer to it; export the series again, or leave the DICOM formats out of --to."
            )
