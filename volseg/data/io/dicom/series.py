"""The series among DICOM files, and which of them is meant."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from volseg.data.io.choice import Choice
from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.values import count, number, numbers, text, texts
from volseg.errors import InputError

_SCREENSHOTS = "1.2.840.10008.5.1.4.1.1.7"


class Series(NamedTuple):
    """The images of one series; `uid` is empty if the files state none."""

    uid: str
    headers: list[Header]

    @property
    def number(self) -> str:
        """SeriesNumber, "?" if it is not stated."""
        return text(self.headers[0].data, "SeriesNumber") or "?"

    @property
    def modality(self) -> str:
        """Modality, "?" if it is not stated."""
        return text(self.headers[0].data, "Modality") or "?"

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
            " ".join(text(data, "SeriesDescription").split()),
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
    """The series in the order of their numbers; files without SeriesInstanceUID are told apart by study and number."""
    found: dict[Hashable, Series] = {}
    for header in headers:
        uid = text(header.data, "SeriesInstanceUID")
        place = uid or (text(header.data, "StudyInstanceUID"), text(header.data, "SeriesNumber"))
        found.setdefault(place, Series(uid, [])).headers.append(header)
    return sorted(found.values(), key=lambda one: (number(one.headers[0].data, "SeriesNumber") or 0, one.uid))


def chosen_series(found: Sequence[Series], choice: Choice, source: str) -> tuple[Series, list[str]]:
    """The only series, the chosen one, or the only one that a model can mean; and warnings.

    Raises:
        InputError: several are left, or the chosen one does not exist.
    """
    listed = "".join(f"\n  {one}" for one in found)
    if choice.series is not None:
        wanted = [one for one in found if choice.series in (one.uid, one.number)]
        if len(wanted) == 1:
            return wanted[0], _unnamed(wanted[0])
        if not wanted:
            raise InputError(f"{source} has no series {choice.series}; choose one of its {len(found)} series:{listed}")
        uids = ", ".join(one.uid for one in wanted)
        raise InputError(f"{source} has {len(wanted)} series of number {choice.series}; choose one by its UID: {uids}.")
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


def reason_aside(series: Series, choice: Choice) -> str:
    """Why a series cannot be meant where there are others; empty if it can."""
    types = series.image_types
    if types & {"LOCALIZER", "SCOUT", "LOCALISER"}:
        return "localiser"
    if any(header.sop_class.startswith(_SCREENSHOTS) for header in series.headers):
        return "secondary capture"
    if choice.modality is None:
        return ""
    if series.modality != choice.modality:
        return f"the model takes {choice.modality}"
    return "derived" if "DERIVED" in types else ""


def _unnamed(series: Series) -> list[str]:
    """A warning for files without SeriesInstanceUID."""
    if series.uid:
        return []
    return [f"SeriesInstanceUID is absent; the {series.images} images are taken as one series."]
