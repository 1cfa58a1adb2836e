"""The series among DICOM files, which of them is meant, copies of its files, and their order in time."""

import filecmp
import re
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from volseg.data.io.choice import Choice
from volseg.data.io.dicom.files import name_order
from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.values import count, described, number, numbers, printable, text, texts
from volseg.errors import InputError
from volseg.text import shortened

# What images share that are slices of one scan though each has a SeriesInstanceUID of its own.
_SHARED = ("SeriesNumber", "StudyInstanceUID", "Modality", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing")
# Values of ImageType.
LOCALISERS = {"LOCALIZER", "SCOUT", "LOCALISER"}
# In what the files of one SOPInstanceUID may be the same.
SAME_FILE, SAME_PIXELS = "same file", "same SOPInstanceUID, place and pixels"
# Series of one image each, such as the planes of a localiser, that are no scan.
_FEW = 3


class Series(NamedTuple):
    """The images of one series; `uid` is empty if the files state none, and the first if every image has its own."""

    uid: str
    headers: list[Header]

    @property
    def number(self) -> str:
        """SeriesNumber, "?" if it is not stated."""
        return _plain(text(self.headers[0].data, "SeriesNumber")) or "?"

    @property
    def uids(self) -> set[str]:
        """The SeriesInstanceUIDs of its images."""
        return {text(header.data, "SeriesInstanceUID") for header in self.headers}

    @property
    def modality(self) -> str:
        """Modality, "?" if it is not stated."""
        return printable(text(self.headers[0].data, "Modality")) or "?"

    def __str__(self) -> str:
        """A series in a few words without patient data."""
        return f"number {self.number}: {self.content}"

    @property
    def content(self) -> str:
        """Modality, description, images, size, spacing and echo time."""
        data = self.headers[0].data
        spacing = numbers(data, "PixelSpacing")
        echo = number(data, "EchoTime")
        parts = [
            self.modality,
            described(data, "SeriesDescription"),
            f"{self.images} images of {count(data, 'Columns')} x {count(data, 'Rows')}",
            f"{spacing[-1]:g} x {spacing[0]:g} mm" if spacing else "",
            f"echo time {echo:g} ms" if echo else "",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def record(self) -> dict[str, str]:
        """What the record of a result says of it, without patient data."""
        return {"uid": self.uid, "number": self.number, "modality": self.modality}

    @property
    def images(self) -> int:
        """The number of its frames."""
        return sum(header.frames for header in self.headers)

    @property
    def image_types(self) -> set[str]:
        """All values of ImageType of all its images."""
        return {part for header in self.headers for part in texts(header.data, "ImageType")}


def series_among(headers: Sequence[Header]) -> list[Series]:
    """The series in the order of their numbers.

    Some anonymisers write one SeriesInstanceUID into all files, so that study and patient tell series apart too; files
    without one are told apart by study, patient and number. Images that have a SeriesInstanceUID each, as some scanners
    write them, are one series if all else agrees.
    """
    found: dict[Hashable, Series] = {}
    for header in headers:
        uid = text(header.data, "SeriesInstanceUID")
        place = (uid, "" if uid else text(header.data, "SeriesNumber"), *_owner(header))
        found.setdefault(place, Series(uid, [])).headers.append(header)
    joined = _joined(list(found.values()))
    return sorted(joined, key=lambda one: (number(one.headers[0].data, "SeriesNumber") or 0, one.uid))


def _owner(header: Header) -> tuple[str, str]:
    """Study and patient."""
    return text(header.data, "StudyInstanceUID"), text(header.data, "PatientID")


def _joined(found: Sequence[Series]) -> list[Series]:
    """The series, with those of one image each joined where they differ in place alone."""
    groups: dict[Hashable, list[Series]] = {}
    for one in found:
        groups.setdefault(_likeness(one) or id(one), []).append(one)
    joined: list[Series] = []
    for group in groups.values():
        places = {tuple(texts(one.headers[0].data, "ImagePositionPatient")) for one in group}
        if len(places) == len(group):
            joined.append(Series(group[0].uid, [header for one in group for header in one.headers]))
        else:
            joined.extend(group)
    return joined


def _likeness(series: Series) -> Hashable:
    """What series of one image that are slices of one scan share; None for other series."""
    header = series.headers[0]
    stated = [tuple(texts(header.data, name)) for name in _SHARED]
    if not series.uid or len(series.headers) > 1 or header.frames > 1 or not all(stated):
        return None
    return (*stated, *_owner(header), header.sop_class, described(header.data, "SeriesDescription"))


def chosen_series(found: Sequence[Series], choice: Choice, source: str) -> tuple[Series, list[str]]:
    """The only series, the chosen one, or the only one that a model can mean; and warnings.

    Raises:
        InputError: several are left, or the chosen one does not exist.
    """
    numbers = [one.number for one in found]
    listed = "".join(
        f"\n  {one}" + (f", UID {printable(one.uid) or 'absent'}" if numbers.count(one.number) > 1 else "")
        for one in found
    )
    listed += _shared_uids(found) or _single_images(found)
    if choice.series is not None:
        wanted = [one for one in found if choice.series in one.uids or _plain(choice.series) == one.number]
        if len(wanted) == 1:
            return wanted[0], _unnamed(wanted[0])
        if not wanted:
            raise InputError(
                f"{source} has no series {shortened(str(choice.series), 200)}; choose one of its {len(found)} "
                f"series:{listed}"
            )
        raise InputError(_ambiguous(wanted, choice.series, source))
    if len(found) == 1:
        return found[0], _unnamed(found[0])
    left = [one for one in found if not reason_aside(one, choice)]
    if len(left) != 1:
        raise InputError(
            f"{source} contains {len(found)} DICOM series; choose one with --series NUMBER or UID (series= in Python), "
            f"or give one folder per series:{listed}"
        )
    aside = "; ".join(f"{one} ({reason_aside(one, choice)})" for one in found if one is not left[0])
    return left[0], [f"Series {left[0].number} is taken; set aside: {aside}.", *_unnamed(left[0])]


def _plain(value: str) -> str:
    """A series number without leading zeros; other texts as they are, without control characters."""
    return value.lstrip("0") or "0" if value.isascii() and value.isdigit() else printable(value)


def _ambiguous(wanted: Sequence[Series], chosen: str, source: str) -> str:
    """The sentence about a choice that fits several series."""
    uids = [printable(one.uid) for one in wanted]
    if len(set(uids)) == len(uids):
        return f"{source} has {len(uids)} series of number {chosen}; choose one by its UID: {', '.join(uids)}."
    return f"{source} has {len(uids)} series {chosen}{_shared_uids(wanted)}"


def _shared_uids(found: Sequence[Series]) -> str:
    """A sentence about series with one SeriesInstanceUID, which no choice tells apart; empty if there are none."""
    uids = [one.uid for one in found if one.uid]
    most = max(map(uids.count, uids), default=0)
    if most < 2:
        return ""
    return f"; one SeriesInstanceUID in {most} studies or patients: give the folder of one of them."


def _single_images(found: Sequence[Series]) -> str:
    """A sentence about many series of one image; empty if there are others."""
    if len(found) <= _FEW or any(one.images > 1 for one in found):
        return ""
    return "\nEvery image has a SeriesInstanceUID of its own, as some scanners write; give the slices of one volume."


def reason_aside(series: Series, choice: Choice) -> str:
    """Why a series cannot be meant where there are others; empty if it can."""
    types = series.image_types
    if types & LOCALISERS:
        return "localiser"
    if all(header.is_picture for header in series.headers):
        return "secondary capture"
    if choice.modality is None:
        return ""
    if series.modality != choice.modality:
        return f"the model takes {choice.modality}"
    return "derived" if "DERIVED" in types else ""


def _unnamed(series: Series) -> list[str]:
    """A warning for files without SeriesInstanceUID, or with one each."""
    if len(series.uids) > 1:
        return [
            f"Every image has a SeriesInstanceUID of its own, as some scanners write; the {series.images} images of "
            f"series {series.number} are taken as one series."
        ]
    if series.uid:
        return []
    return [f"SeriesInstanceUID is absent; the {series.images} images are taken as one series."]


def sameness(first: Header, second: Header) -> str:
    """In what two files of one SOPInstanceUID are the same; empty if their pixels differ."""
    if filecmp.cmp(first.path, second.path, shallow=False):
        return SAME_FILE
    return SAME_PIXELS if first.syntax == second.syntax and first.stored() == second.stored() else ""


def in_time(headers: dict[str, Header]) -> dict[str, int]:
    """The place of each file in time, then by InstanceNumber, then by the numbers in its name."""
    keys: list[Callable[[Header], Hashable]] = [
        lambda one: _time(one, "AcquisitionDateTime", ""),
        lambda one: _time(one, "AcquisitionDate", "AcquisitionTime"),
        lambda one: _time(one, "ContentDate", "ContentTime"),
        lambda one: count(one.data, "InstanceNumber") or None,
    ]
    stated = [
        values for key in keys if None not in (values := {name: key(one) for name, one in headers.items()}).values()
    ]

    def place(name: str) -> tuple[list[Hashable], list[tuple[bool, int, str]]]:
        return [values[name] for values in stated], name_order(str(headers[name].path))

    return {name: at for at, name in enumerate(sorted(headers, key=place))}


def _time(header: Header, date: str, time: str) -> tuple[str, float] | None:
    """Date and time; None if the time is absent or no number."""
    day = text(header.data, date)
    clock = text(header.data, time) if time else day[8:]
    found = re.match(r"\d+(\.\d*)?", clock)
    return (day[:8], float(found[0])) if found else None
