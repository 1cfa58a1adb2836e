"""DICOM: one series, as a folder, a .zip of one, or a multi-frame file, to one volume.

Required of a series, beside what volseg.data.io.checks asks of every image:

    - one series in the folder and the folders in it; files that are no DICOM image are passed over
    - no file that may be one of its slices is damaged: DICOM of the slices' class, or .dcm or .ima by its name, or
      empty and named as the slices are
    - every slice states its position and orientation; all share size, pixel spacing and orientation
    - one image per position (a series over time or echoes is 4-D)
    - gaps between slices within 10 % of their median (a slice is missing otherwise)
    - slices stacked along their normal, within 0.5 degrees (gantry tilt otherwise)

Slices are ordered by position, never by name or instance number, and spacing along the stack comes from
the positions, never from SliceThickness; a single slice alone has nothing else. Messages hold no patient data.
"""

import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from shutil import copyfileobj

import numpy as np
import SimpleITK as sitk

from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.data.io.formats import DICOM_SUFFIXES, begins_as_dicom
from volseg.data.io.itk import voxels_of
from volseg.errors import InputError, ResourceError
from volseg.files import access_to

LARGEST_ZIP_BYTES = 16 * 2**30

_UNEVEN, _UNEVEN_WARNED = 0.1, 0.01
_TILT_DEGREES = 0.5
_SERIES, _SERIES_NUMBER, _MODALITY = "0020|000e", "0020|0011", "0008|0060"
_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_SPACING_BETWEEN, _THICKNESS = "0018|0088", "0018|0050"
_SOP_CLASS = "0008|0016"
# Enhanced and legacy-converted enhanced CT, MR and PET: multi-frame images whose frames have places.
_ENHANCED = ("2.1", "2.2", "4.1", "4.4", "128.1", "130")
# The bytes at the start of a file in which it states its class.
_START_BYTES = 1024
# The element (0002,0002), Media Storage SOP Class UID, as it begins in every file with a magic.
_CLASS_ELEMENT = b"\2\0\2\0UI"


@dataclass(frozen=True, eq=False)
class _Image:
    """What the header of one DICOM file says; LPS+ millimetres."""

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
        Voxels (I, J, K) with the rescaling of the files applied, its 4 x 4 affine to RAS+ millimetres, warnings.

    Raises:
        InputError: a requirement of this module is not met.
        ResourceError: a .zip finds no room in the temporary folder.
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
    """The files in a folder and the folders in it, all of which have to be open to us.

    A broken link named as a slice counts, so that it is missed when it is read.
    """

    def refuse(error: OSError) -> None:
        raise error

    below = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names]
    return [file for file in below if file.is_file() or (file.is_symlink() and _kind(file.name) in DICOM_SUFFIXES)]


def _read_files(names: dict[Path, str], source: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read the one series among files, whose names for messages are given."""
    headers = {file: _header(file) for file in names}
    images = [image for image in headers.values() if image is not None]
    _require_no_damage([file for file, image in headers.items() if image is None], images, names, source)
    if not images:
        raise InputError(f"{source} holds no DICOM images; give the folder of one DICOM series.")
    series: dict[str, list[_Image]] = {}
    for image in images:
        series.setdefault(image.tags[_SERIES], []).append(image)
    if len(series) > 1:
        raise InputError(
            f"{source} holds {len(series)} DICOM series ({'; '.join(_listed(one) for one in series.values())}); "
            "give one folder per series."
        )
    if any(image.size[2] > 1 for image in images):
        return _read_frames(images, source)
    slices, affine, warnings = _stack(images, source)
    array, _ = voxels_of(_pixels(slices, source))
    # Room for half of what SimpleITK rescales CT to, where the values allow it.
    if array.dtype == np.int32 and array.min() >= -(2**15) and array.max() < 2**15:
        array = array.astype(np.int16)
    return array, affine, warnings


def _header(path: Path) -> _Image | None:
    """The header of a file, None where it is no DICOM image."""
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


def _require_no_damage(unread: list[Path], images: list[_Image], names: dict[Path, str], source: str) -> None:
    """Refuse files that may be slices but cannot be read, as the volume without them would be another one."""
    if not unread:
        return
    classes = {_stated_class(_start(image.path)) for image in images}
    kinds = {_kind(names[image.path]) for image in images}
    damaged = [names[file] for file in unread if _may_be_slice(_start(file), names[file], classes, kinds)]
    if damaged and not images:
        raise InputError(
            f"{source} holds no DICOM images that can be read: {_few(damaged)} is damaged, cut short, of an unknown "
            "compression or no image; copy it again, or give the folder of one DICOM series."
        )
    if damaged:
        raise InputError(
            f"{source}: {len(damaged)} of its DICOM files cannot be read, damaged, cut short or of an unknown "
            f"compression ({_few(damaged)}); copy them again, or take away what is no slice."
        )


def _may_be_slice(start: bytes, name: str, classes: set[bytes], kinds: set[str]) -> bool:
    """Whether a file that cannot be read may be one of the slices, whose stated classes and kinds of name are given."""
    if begins_as_dicom(start):
        # A report or the like states another class. Without a slice to compare with, any may be one.
        return not classes or _stated_class(start) in classes | {b""}
    if PurePath(name).name.startswith("."):
        return False
    # A copy that failed leaves a file empty or full of zeros.
    return _kind(name) in DICOM_SUFFIXES or (not start.strip(b"\0") and _kind(name) in kinds)


def _start(file: Path) -> bytes:
    """The first bytes of a file."""
    with access_to(file), open(file, "rb") as stream:
        return stream.read(_START_BYTES)


def _stated_class(start: bytes) -> bytes:
    """The class that a file says to be of, from its first bytes; empty where it is cut before or says none."""
    _, element, rest = start.partition(_CLASS_ELEMENT)
    length = int.from_bytes(rest[:2], "little")
    return rest[2 : 2 + length].rstrip(b"\0 ") if element and len(rest) >= 2 + length else b""


def _kind(name: str) -> str:
    """The suffix of a file in lower case, the same for all numbers: a UID ends in one that tells slices apart."""
    suffix = PurePath(name).suffix.lower()
    return ".0" if suffix[1:].isdecimal() else suffix


def _few(texts: Sequence[str]) -> str:
    """The first of many."""
    return f"{', '.join(texts[:5])}{' and more' if len(texts) > 5 else ''}"


def _listed(images: list[_Image]) -> str:
    """A series in a few words without patient data."""
    first = images[0]
    number, modality = (first.tags.get(key, "?") for key in (_SERIES_NUMBER, _MODALITY))
    return f"number {number}: {modality}, {len(images)} images of {first.size[0]} x {first.size[1]}"


def _stack(images: list[_Image], source: str) -> tuple[list[_Image], np.ndarray, list[str]]:
    """Slices in order of position, their affine to RAS+ millimetres, and warnings."""
    first = images[0]
    if not all(_POSITION in image.tags and _ORIENTATION in image.tags for image in images):
        raise InputError(f"{source}: its images state no position or orientation, so they are no volume.")
    for image in images:
        same_axes = np.allclose(image.axes, first.axes, atol=1e-3)
        if image.size != first.size or not same_axes or not np.allclose(image.spacing[:2], first.spacing[:2], 1e-3):
            raise InputError(
                f"{source}: its {len(images)} images differ in size, pixel spacing or orientation, as a scout's do; "
                "keep the slices of one volume."
            )
    normal = np.cross(first.axes[:, 0], first.axes[:, 1])
    slices = sorted(images, key=lambda image: float(image.position @ normal))
    if len(slices) == 1:
        step, warnings = _lone_step(first, source) * normal, ["One slice alone: its stated thickness is taken."]
    else:
        step, warnings = _step(np.array([image.position for image in slices]), normal, source)
    lps = np.eye(4)
    lps[:3, 0] = first.axes[:, 0] * first.spacing[0]
    lps[:3, 1] = first.axes[:, 1] * first.spacing[1]
    lps[:3, 2] = step
    lps[:3, 3] = slices[0].position
    return slices, LPS_FROM_RAS @ lps, warnings


def _step(positions: np.ndarray, normal: np.ndarray, source: str) -> tuple[np.ndarray, list[str]]:
    """The way from one slice to the next, from ordered positions (K, 3), and warnings."""
    heights = positions @ normal
    gaps = np.diff(heights)
    distinct = 1 + int((gaps > 1e-3).sum())
    if distinct < len(positions):
        raise InputError(
            f"{source}: {len(positions)} images lie at {distinct} positions, so the series is 4-D (time, echoes) or "
            "holds copies; keep one image per position."
        )
    typical = float(np.median(gaps))
    uneven = np.abs(gaps - typical)
    if uneven.max() > _UNEVEN * typical:
        odd = [f"{gaps[at]:.2f} mm after slice {at + 1}" for at in np.flatnonzero(uneven > _UNEVEN * typical)]
        raise InputError(
            f"{source}: its {len(positions)} slices are not evenly spaced, most lie {typical:.2f} mm apart but "
            f"{_few(odd)}; add the missing slices."
        )
    way = positions[-1] - positions[0]
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(way - (way @ normal) * normal), way @ normal)))
    if tilt > _TILT_DEGREES:
        raise InputError(
            f"{source}: its slices are stacked {tilt:.1f} degrees off their normal (gantry tilt); "
            "convert it with a tool that corrects the tilt, such as dcm2niix."
        )
    warnings = []
    if uneven.max() > _UNEVEN_WARNED * typical:
        warnings.append(f"Gaps between slices vary from {gaps.min():.3f} to {gaps.max():.3f} mm: their mean is taken.")
    return way / (len(positions) - 1), warnings


def _lone_step(image: _Image, source: str) -> float:
    """The thickness in millimetres of a slice without neighbours."""
    try:
        thickness = float(image.tags.get(_SPACING_BETWEEN) or image.tags[_THICKNESS])
    except (KeyError, ValueError):
        thickness = 0.0
    if not thickness > 0:
        raise InputError(f"{source}: its one slice states no thickness; give the whole series.")
    return thickness


def _pixels(slices: list[_Image], source: str) -> sitk.Image:
    """The voxels of ordered slices."""
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(image.path) for image in slices])
    # Otherwise the first slice's type would cut the values of slices with another rescaling.
    if len({image.pixel for image in slices}) > 1 or slices[0].pixel == sitk.sitkFloat64:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{source}: its DICOM pixels cannot be read, damaged or of an unknown compression.") from error


def _read_frames(images: list[_Image], source: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read one multi-frame file, whose frames SimpleITK has to find evenly stacked."""
    if len(images) > 1:
        raise InputError(f"{source} holds {len(images)} multi-frame DICOM files; give one.")
    (image,) = images
    if image.tags.get(_SOP_CLASS, "").removeprefix("1.2.840.10008.5.1.4.1.1.") not in _ENHANCED:
        raise InputError(f"{source}: a multi-frame DICOM file that is no enhanced CT, MR or PET has no slice places.")
    if image.spacing == (1.0, 1.0, 1.0):
        # SimpleITK says 1 mm for frames that are uneven or repeat a place, without a word.
        raise InputError(
            f"{source}: the places of its frames could not be established (uneven, 4-D, or 1 mm apart in all "
            "directions, which looks the same); convert it to NIfTI, for example with dcm2niix."
        )
    try:
        array, affine = voxels_of(sitk.ReadImage(str(image.path), imageIO="GDCMImageIO"))
    except RuntimeError as error:
        raise InputError(f"{source}: its DICOM pixels cannot be read, damaged or of an unknown compression.") from error
    return array, affine, ["A multi-frame DICOM file: its frames are taken as one evenly spaced stack."]


def _unpack(path: Path, folder: Path) -> dict[Path, str]:
    """Unpack the files of a .zip into one folder, numbered: the archive's own names are for messages only."""
    names = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            total = sum(member.file_size for member in members)
            if total > LARGEST_ZIP_BYTES:
                raise InputError(
                    f"{path} unpacks to {total / 2**30:.1f} GiB, at most {LARGEST_ZIP_BYTES / 2**30:.1f} are taken; "
                    "unpack it and give the folder."
                )
            if any(member.flag_bits & 1 for member in members):
                raise InputError(f"{path} is encrypted; unpack it and give the folder.")
            for number, member in enumerate(members):
                unpacked = folder / f"{number:06}"
                names[unpacked] = member.filename
                with archive.open(member) as packed, open(unpacked, "wb") as file:
                    copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{path} is no readable .zip file ({error}); copy it again.") from error
    except OSError as error:
        raise ResourceError(f"Could not unpack {path} to {folder}: {error.strerror or error}.") from error
    return names
