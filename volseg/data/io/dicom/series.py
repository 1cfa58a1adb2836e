"""Read one DICOM series (a folder, a .zip of a folder, or a multi-frame file) as one volume.

Requirements on a series, in addition to those of volseg.data.io.checks on every image:

    - one series in the folder and its subfolders; files that are not DICOM images are skipped
    - no corrupt file among the possible slices: DICOM of the slices' SOP class, or with the suffix .dcm or .ima, or
      empty and with the same suffix as the slices
    - every slice has a position and an orientation; all have the same size, pixel spacing and orientation
    - one image per position (a time series or a multi-echo series is 4-D)
    - gaps between slices within 10 % of their median (otherwise a slice is missing)
    - slices stacked along their normal within 0.5 degrees (otherwise gantry tilt)

Slices are sorted by position, never by name or instance number. The spacing along the stack comes from the positions,
never from SliceThickness, except for a single slice. Messages contain no patient data.
"""

import os
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePath
from shutil import copyfileobj

import numpy as np
import SimpleITK as sitk

from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.data.io.formats import DICOM_SUFFIXES, begins_as_dicom
from volseg.data.io.readers.itk import voxels_of
from volseg.errors import InputError, ResourceError
from volseg.files import access_to
from volseg.text import first_few

LARGEST_ZIP_BYTES = 16 * 2**30

_UNREADABLE_PIXELS = "the DICOM pixel data cannot be read (corrupt or unsupported compression); copy it again."
_UNEVEN, _UNEVEN_WARNED = 0.1, 0.01
_TILT_DEGREES = 0.5
_SERIES, _SERIES_NUMBER, _MODALITY = "0020|000e", "0020|0011", "0008|0060"
_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_SPACING_BETWEEN, _THICKNESS = "0018|0088", "0018|0050"
_SOP_CLASS = "0008|0016"
# Enhanced and legacy-converted enhanced CT, MR and PET: multi-frame images with a position for each frame.
_ENHANCED = ("2.1", "2.2", "4.1", "4.4", "128.1", "130")
# Bytes at the start of a file that contain its SOP class.
_START_BYTES = 1024
# The start of element (0002,0002), Media Storage SOP Class UID, in every file with the DICM prefix.
_CLASS_ELEMENT = b"\2\0\2\0UI"


@dataclass(frozen=True, eq=False)
class _Image:
    """The header of one DICOM file; LPS+ millimetres."""

    path: Path
    tags: dict[str, str]
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    position: np.ndarray
    axes: np.ndarray
    pixel: int


def read_dicom(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read one DICOM series.

    Args:
        path: a folder, a .zip, or a .dcm file.

    Returns:
        Voxels (I, J, K) after RescaleSlope and RescaleIntercept, the 4 x 4 affine to RAS+ millimetres, and warnings.

    Raises:
        InputError: a requirement of this module is not met.
        ResourceError: the temporary folder has no room for the files of a .zip.
    """
    if path.suffix.lower() == ".zip" and not path.is_dir():
        with tempfile.TemporaryDirectory(prefix="volseg-") as folder:
            return _read_files(_unpack(path, Path(folder)), str(path))
    if not path.is_dir():
        return _read_files({path: path.name}, str(path))
    with access_to(path):
        files = sorted(_files_below(path))
    return _read_files({file: str(file.relative_to(path)) for file in files}, str(path))


def _files_below(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, all of which have to be readable.

    A broken link with the suffix of a slice is included, so that reading it fails.
    """

    def fail(error: OSError) -> None:
        raise error

    below = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=fail) for name in names]
    return [file for file in below if file.is_file() or (file.is_symlink() and _kind(file.name) in DICOM_SUFFIXES)]


def _read_files(names: dict[Path, str], source: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read the single series among files, given with their names for messages."""
    headers = {file: _header(file) for file in names}
    images = [image for image in headers.values() if image is not None]
    _reject_corrupt_slices([file for file, image in headers.items() if image is None], images, names, source)
    if not images:
        raise InputError(f"{source} contains no DICOM images; give the folder of one DICOM series.")
    series: dict[str, list[_Image]] = {}
    for image in images:
        series.setdefault(image.tags[_SERIES], []).append(image)
    if len(series) > 1:
        descriptions = "; ".join(_description(one) for one in series.values())
        raise InputError(f"{source} contains {len(series)} DICOM series ({descriptions}); give one folder per series.")
    if any(image.size[2] > 1 for image in images):
        return _read_frames(images, source)
    slices, affine, warnings = _stack(images, source)
    array, _ = voxels_of(_pixels(slices, source))
    # SimpleITK returns rescaled CT in 32 bits; 16 bits take half the memory if the values fit.
    if array.dtype == np.int32 and array.min() >= -(2**15) and array.max() < 2**15:
        array = array.astype(np.int16)
    return array, affine, warnings


def _header(path: Path) -> _Image | None:
    """The header of a file; None if it is not a DICOM image."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    keys = (_SERIES, _SERIES_NUMBER, _MODALITY, _POSITION, _ORIENTATION, _SPACING_BETWEEN, _THICKNESS, _SOP_CLASS)
    tags = {key: reader.GetMetaData(key).strip(" \0") for key in keys if reader.HasMetaDataKey(key)}
    if _SERIES not in tags:
        return None
    axes = np.array(reader.GetDirection()).reshape(3, 3)
    position = np.array(reader.GetOrigin())
    return _Image(path, tags, reader.GetSize(), reader.GetSpacing(), position, axes, reader.GetPixelID())


def _reject_corrupt_slices(unread: list[Path], images: list[_Image], names: dict[Path, str], source: str) -> None:
    """Reject a series with unreadable files that may be slices: without them the volume would be incomplete."""
    if not unread:
        return
    classes = {_stated_class(_start(image.path)) for image in images}
    kinds = {_kind(names[image.path]) for image in images}
    corrupt = [names[file] for file in unread if _may_be_slice(_start(file), names[file], classes, kinds)]
    if corrupt and not images:
        raise InputError(
            f"{source} contains no readable DICOM images (corrupt, truncated, unsupported compression or not an image: "
            f"{first_few(corrupt)}); copy them again, or give the folder of one DICOM series."
        )
    if corrupt:
        raise InputError(
            f"{source}: {len(corrupt)} DICOM files cannot be read (corrupt, truncated or unsupported compression: "
            f"{first_few(corrupt)}); copy them again, or remove files that are not slices."
        )


def _may_be_slice(start: bytes, name: str, classes: set[bytes], kinds: set[str]) -> bool:
    """Whether an unreadable file may be a slice, given the SOP classes and suffixes of the readable slices."""
    if begins_as_dicom(start):
        # Reports and other objects have another SOP class. Without a readable slice, any class may be a slice.
        return not classes or _stated_class(start) in classes | {b""}
    if PurePath(name).name.startswith("."):
        return False
    # A failed copy leaves a file that is empty or full of zeros.
    return _kind(name) in DICOM_SUFFIXES or (not start.strip(b"\0") and _kind(name) in kinds)


def _start(file: Path) -> bytes:
    """The first bytes of a file."""
    with access_to(file), open(file, "rb") as stream:
        return stream.read(_START_BYTES)


def _stated_class(start: bytes) -> bytes:
    """The SOP class in the first bytes of a file; empty if it is missing or the file ends before it."""
    _, element, rest = start.partition(_CLASS_ELEMENT)
    length = int.from_bytes(rest[:2], "little")
    return rest[2 : 2 + length].rstrip(b"\0 ") if element and len(rest) >= 2 + length else b""


def _kind(name: str) -> str:
    """The suffix of a file in lower case; numbers count as one suffix, because file names may be UIDs."""
    suffix = PurePath(name).suffix.lower()
    return ".0" if suffix[1:].isdecimal() else suffix


def _description(images: list[_Image]) -> str:
    """A series in a few words without patient data."""
    first = images[0]
    number, modality = (first.tags.get(key, "?") for key in (_SERIES_NUMBER, _MODALITY))
    return f"number {number}: {modality}, {len(images)} images of {first.size[0]} x {first.size[1]}"


def _stack(images: list[_Image], source: str) -> tuple[list[_Image], np.ndarray, list[str]]:
    """Slices sorted by position, their affine to RAS+ millimetres, and warnings."""
    first = images[0]
    if not all(_POSITION in image.tags and _ORIENTATION in image.tags for image in images):
        raise InputError(
            f"{source}: slices lack ImagePositionPatient or ImageOrientationPatient; export the series again."
        )
    for image in images:
        same_axes = np.allclose(image.axes, first.axes, atol=1e-3)
        if image.size != first.size or not same_axes or not np.allclose(image.spacing[:2], first.spacing[:2], 1e-3):
            raise InputError(
                f"{source}: its {len(images)} images differ in size, pixel spacing or orientation, like a localiser's; "
                "keep only the slices of one volume."
            )
    normal = np.cross(first.axes[:, 0], first.axes[:, 1])
    slices = sorted(images, key=lambda image: float(image.position @ normal))
    if len(slices) == 1:
        step, warnings = _slice_thickness(first, source) * normal, ["Single slice: its thickness is used as spacing."]
    else:
        step, warnings = _step(np.array([image.position for image in slices]), normal, source)
    lps = np.eye(4)
    lps[:3, 0] = first.axes[:, 0] * first.spacing[0]
    lps[:3, 1] = first.axes[:, 1] * first.spacing[1]
    lps[:3, 2] = step
    lps[:3, 3] = slices[0].position
    return slices, LPS_FROM_RAS @ lps, warnings


def _step(positions: np.ndarray, normal: np.ndarray, source: str) -> tuple[np.ndarray, list[str]]:
    """The vector from one slice to the next, computed from sorted positions (K, 3), and warnings."""
    heights = positions @ normal
    gaps = np.diff(heights)
    distinct = 1 + int((gaps > 1e-3).sum())
    if distinct < len(positions):
        raise InputError(
            f"{source}: {len(positions)} images lie at {distinct} positions, so the series is 4-D (time, echoes) or "
            "contains duplicates; keep one image per position."
        )
    typical = float(np.median(gaps))
    uneven = np.abs(gaps - typical)
    if uneven.max() > _UNEVEN * typical:
        odd = [f"{gaps[at]:.2f} mm after slice {at + 1}" for at in np.flatnonzero(uneven > _UNEVEN * typical)]
        raise InputError(
            f"{source}: its {len(positions)} slices are not evenly spaced: the median gap is {typical:.2f} mm, but "
            f"{first_few(odd)}; add the missing slices."
        )
    extent = positions[-1] - positions[0]
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(extent - (extent @ normal) * normal), extent @ normal)))
    if tilt > _TILT_DEGREES:
        raise InputError(
            f"{source}: its slices are stacked {tilt:.1f} degrees off their normal (gantry tilt); "
            "convert it with a tool that corrects the tilt, such as dcm2niix."
        )
    warnings = []
    if uneven.max() > _UNEVEN_WARNED * typical:
        warnings.append(f"Gaps between slices vary from {gaps.min():.3f} to {gaps.max():.3f} mm; their mean is used.")
    return extent / (len(positions) - 1), warnings


def _slice_thickness(image: _Image, source: str) -> float:
    """The thickness in millimetres of a single slice."""
    try:
        thickness = float(image.tags.get(_SPACING_BETWEEN) or image.tags[_THICKNESS])
    except (KeyError, ValueError):
        thickness = 0.0
    if not thickness > 0:
        raise InputError(f"{source}: its single slice has no slice thickness; give the whole series.")
    return thickness


def _pixels(slices: list[_Image], source: str) -> sitk.Image:
    """The voxels of sorted slices."""
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(image.path) for image in slices])
    # Otherwise the first slice's type would clip the values of slices with another rescaling.
    if len({image.pixel for image in slices}) > 1 or slices[0].pixel == sitk.sitkFloat64:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{source}: {_UNREADABLE_PIXELS}") from error


def _read_frames(images: list[_Image], source: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read one multi-frame file; SimpleITK has to recognise its frames as evenly spaced."""
    if len(images) > 1:
        raise InputError(f"{source} contains {len(images)} multi-frame DICOM files; give one.")
    (image,) = images
    if image.tags.get(_SOP_CLASS, "").removeprefix("1.2.840.10008.5.1.4.1.1.") not in _ENHANCED:
        raise InputError(
            f"{source}: multi-frame DICOM other than enhanced CT, MR or PET has no frame positions; give a series of "
            "single slices."
        )
    if image.spacing == (1.0, 1.0, 1.0):
        # SimpleITK silently reports 1 mm for frames that are unevenly spaced or share a position.
        raise InputError(
            f"{source}: the frame positions cannot be determined (unevenly spaced, 4-D, or 1 mm voxels, which "
            "SimpleITK reports in the same way); convert it to NIfTI, for example with dcm2niix."
        )
    try:
        array, affine = voxels_of(sitk.ReadImage(str(image.path), imageIO="GDCMImageIO"))
    except RuntimeError as error:
        raise InputError(f"{source}: {_UNREADABLE_PIXELS}") from error
    return array, affine, ["Multi-frame DICOM: the frames are read as one evenly spaced stack."]


def _unpack(path: Path, folder: Path) -> dict[Path, str]:
    """Extract the files of a .zip into one folder as numbers; the archive's own names are used only in messages."""
    names = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            total = sum(member.file_size for member in members)
            if total > LARGEST_ZIP_BYTES:
                raise InputError(
                    f"{path} unpacks to {total / 2**30:.1f} GiB, at most {LARGEST_ZIP_BYTES / 2**30:.1f} are accepted; "
                    "unpack it and give the folder."
                )
            if any(member.flag_bits & 1 for member in members):
                raise InputError(f"{path} is encrypted; unpack it and give the folder.")
            for number, member in enumerate(members):
                extracted = folder / f"{number:06}"
                names[extracted] = member.filename
                with archive.open(member) as stream, open(extracted, "wb") as file:
                    copyfileobj(stream, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{path} is not a readable .zip file ({error}); copy it again.") from error
    except OSError as error:
        raise ResourceError(f"Could not unpack {path} to {folder}: {error.strerror or error}.") from error
    return names
