"""Read one volume of DICOM: a folder, a .zip, a DICOMDIR or a file of one series.

Requirements, in addition to those of volseg.data.io.checks on every image:

    files     no corrupt file among the possible slices: DICOM of the slices' SOP class, or with the suffix .dcm or
              .ima, or empty and with the same suffix as the slices; segmentations, structure sets, reports and other
              objects are passed over by name
    series    one series, the chosen one, or the only one that a model can mean (`series`)
    volume    one volume, or the chosen one (`volumes`): one echo, time point, b value, image type, ...
    place     every slice states PixelSpacing, ImageOrientationPatient and ImagePositionPatient; all have the same size,
              spacing and orientation; one slice per position, gaps within 10 % of their median, stacked along their
              normal within 0.5 degrees unless asked to `untilt` (`stack`)
    pixels    grey values, as many bytes as stated, with a whole modality transform (`pixels`); compressed frames are
              whole, of the stated size, and decoded without a complaint (`decode`)

Messages contain no patient data.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import UID

from volseg.data.io.choice import ONLY, Choice
from volseg.data.io.dicom.files import files_of, kind_of
from volseg.data.io.dicom.frames import Frame, frames_of
from volseg.data.io.dicom.header import Header, Unusable, read_header
from volseg.data.io.dicom.mosaic import is_mosaic, unpacked
from volseg.data.io.dicom.pixels import voxels
from volseg.data.io.dicom.series import Series, chosen_series, reason_aside, series_among
from volseg.data.io.dicom.stack import stacked
from volseg.data.io.dicom.values import number, text
from volseg.data.io.dicom.volumes import volume_of, volumes_of
from volseg.data.io.formats import DICOM_SUFFIXES
from volseg.data.io.readers.stored import Stored
from volseg.errors import InputError
from volseg.text import first_few


def read_dicom(path: Path, choice: Choice) -> Stored:
    """Read one volume.

    Args:
        path: a folder, a .zip, a DICOMDIR, or a DICOM file.
        choice: which series and volume.

    Returns:
        Voxels (I, J, K) after the modality transform, the affine, and warnings.

    Raises:
        InputError: a requirement of this module is not met.
        ResourceError: the temporary folder has no room for the files of a .zip.
    """
    source = str(path)
    with files_of(path) as names:
        frames, warnings, series = _frames(names, choice, source)
        warnings += _other_modality(frames[0], choice)
        chosen = {"series": series.record} | ({} if choice.volume is None else {"volume": choice.volume})
        if is_mosaic(frames):
            array, affine, more = unpacked(frames, choice, source)
            return Stored(array, affine, None, source, warnings + more, chosen=chosen)
        volume, about = volume_of(frames, choice, source)
        slices, affine, stack_warnings = stacked(volume.frames, source, choice.untilt)
        array, value_warnings = voxels(slices, source)
        found = [*warnings, *about, *stack_warnings, *value_warnings]
        return Stored(array, affine, None, source, found, chosen=chosen, slices=tuple(slices))


def count_volumes(path: Path, choice: Choice) -> int:
    """The number of volumes of the series, from headers alone.

    Raises:
        InputError: as `read_dicom`.
    """
    with files_of(path) as names:
        frames, _, _ = _frames(names, choice, str(path))
        return len(frames) if is_mosaic(frames) else len(volumes_of(frames, str(path))[0])


def stored_bytes(path: Path, choice: Choice = ONLY) -> int:
    """The bytes of all pixels of the series that is meant, without compression, from headers alone.

    Raises:
        InputError: a folder, .zip or DICOMDIR cannot be read, or it is not clear which series is meant.
    """
    with files_of(path) as names:
        headers, _ = _headers(names)
    if not headers:
        return 0
    sizes = ("Rows", "Columns", "BitsAllocated")
    return sum(
        one.frames * int(np.prod([number(one.data, name) or 0 for name in sizes])) // 8
        for one in chosen_series(series_among(headers), choice, str(path))[0].headers
    )


def series_in(path: Path) -> dict[str, str]:
    """The series of a folder, .zip or DICOMDIR: "series NUMBER" (the UID where a number is there twice) and content."""
    with files_of(path) as names:
        headers, _ = _headers(names)
    series = series_among(headers)
    numbers = [one.number for one in series]
    keys = [one.number if numbers.count(one.number) == 1 else one.uid for one in series]
    return {f"series {key}": f"{one.content}, UID {one.uid or 'absent'}" for key, one in zip(keys, series, strict=True)}


def series_uids(files: Sequence[Path], choice: Choice = ONLY) -> dict[str, str] | None:
    """The series of the images among files; None for other objects alone.

    Returns:
        By SeriesInstanceUID, empty for files that state none: why it cannot be meant where there are other series;
        empty if it can.
    """
    headers, unusable = _headers({file: file.name for file in files})
    if not headers and all(one.kind for one in unusable):
        return None
    return {one.uid: reason_aside(one, choice) if one.uid else "" for one in series_among(headers)}


def _headers(names: dict[Path, str]) -> tuple[list[Header], list[Unusable]]:
    """The headers of images among files given with their names for messages, and the other files."""
    found = [read_header(path, name) for path, name in names.items()]
    return [one for one in found if isinstance(one, Header)], [one for one in found if isinstance(one, Unusable)]


def _frames(names: dict[Path, str], choice: Choice, source: str) -> tuple[list[Frame], list[str], Series]:
    """The frames of the series that is meant, among files given with their names for messages, warnings, the series."""
    headers, unusable = _headers(names)
    _reject_corrupt_slices(unusable, headers, source)
    if not headers:
        objects = sorted({one.kind for one in unusable if one.kind})
        if objects:
            raise InputError(
                f"{source} contains no scan but DICOM of another kind ({first_few(objects)}); give the folder of the "
                "series that it belongs to."
            )
        zipped = "unpack it if it holds other scans, or " if source.lower().endswith(".zip") else ""
        raise InputError(f"{source} contains no DICOM images; {zipped}give the folder of one DICOM series.")
    series, warnings = chosen_series(series_among(headers), choice, source)
    slices, pictures = _without_pictures(series.headers)
    frames = [frame for header in slices for frame in frames_of(header, source)]
    return frames, _passed_over(unusable) + warnings + pictures, series


def _without_pictures(headers: list[Header]) -> tuple[list[Header], list[str]]:
    """The images of a series without secondary captures, such as dose sheets, if there are others; and a warning."""
    kept = [header for header in headers if not header.is_picture]
    if not kept or len(kept) == len(headers):
        return headers, []
    return kept, [f"Secondary captures of the series are set aside: {len(headers) - len(kept)}."]


def _passed_over(unusable: Sequence[Unusable]) -> list[str]:
    """A warning that names objects which are no scans."""
    # What is no slice though it cannot be read (`_reject_corrupt_slices`) has another SOP class, if any.
    kinds = [one.kind or (UID(one.sop_class).name if one.reason and one.sop_class else "") for one in unusable]
    objects = [kind.removesuffix(" Storage") for kind in kinds if kind and kind != "DICOMDIR"]
    counted = [f"{objects.count(kind)} {kind}" for kind in dict.fromkeys(objects)]
    return [f"Passed over, because they are no scans: {first_few(counted)}."] if counted else []


def _other_modality(frame: Frame, choice: Choice) -> list[str]:
    """A warning for a scan of another modality than the model takes."""
    stated = text(frame.header.data, "Modality")
    if not stated or choice.modality in (None, stated):
        return []
    return [f"The scan is {stated}, but the model takes {choice.modality}."]


def _reject_corrupt_slices(unusable: Sequence[Unusable], headers: Sequence[Header], source: str) -> None:
    """Reject a series with unreadable files that may be slices: without them the volume would be incomplete."""
    classes = {header.sop_class for header in headers}
    kinds = {kind_of(header.name) for header in headers}
    corrupt = [one for one in unusable if one.reason and _may_be_slice(one, classes, kinds)]
    if not corrupt:
        return
    named = first_few([f"{one.name} ({one.reason})" for one in corrupt])
    if not headers:
        raise InputError(
            f"{source} contains no readable DICOM images: {named}; copy them again, or give the folder of one DICOM "
            "series."
        )
    raise InputError(
        f"{source}: {len(corrupt)} DICOM files cannot be read: {named}; copy them again, or remove files that are not "
        "slices."
    )


def _is_class(uid: str) -> bool:
    """Whether a UID is a SOP class of DICOM or of a vendor; one that was cut short or changed is none."""
    return UID(uid).is_valid and (UID(uid).name != uid or not uid.startswith("1.2.840.10008."))


def _may_be_slice(file: Unusable, classes: set[str], kinds: set[str]) -> bool:
    """Whether an unreadable file may be a slice, given the SOP classes and suffixes of the readable slices."""
    if file.sop_class:
        # Other objects have another SOP class. Without a readable slice, any class may be a slice.
        return not classes or any(one.startswith(file.sop_class) for one in classes) or not _is_class(file.sop_class)
    # A failed copy leaves a file that is empty or full of zeros.
    return not file.empty or kind_of(file.name) in kinds or kind_of(file.name) in DICOM_SUFFIXES
