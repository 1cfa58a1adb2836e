"""Read images: voxels in the file's dtype and voxel order, their geometry in RAS+ millimetres, and warnings.

Each format has a reader of its own headers (volseg.data.io.readers, volseg.data.io.dicom). Every image passes the same
checks (volseg.data.io.checks).
"""

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

from volseg.data.grid.geometry import Geometry, require_geometry
from volseg.data.grid.shear import find_shear, upright_geometry
from volseg.data.io import itk_files
from volseg.data.io.checks import check_affine, check_container, check_label, check_scan, check_volume
from volseg.data.io.choice import ONLY, Choice
from volseg.data.io.dicom_labels.label_names import Named, Table, by_name
from volseg.data.io.formats import ITK_SUFFIXES, MGH_SUFFIXES, SUFFIXES, image_suffix, is_dicom
from volseg.data.io.readers import mgh, nifti
from volseg.data.io.readers.nibabel_image import stored_from_nibabel
from volseg.data.io.readers.stored import Stored, unreadable_as_input_error
from volseg.data.io.readers.streams import most_bytes
from volseg.errors import InputError
from volseg.files import access_to, open_to_read

_WHOSE = "the image or reference it belongs to"


@dataclass(frozen=True, eq=False)
class Scan:
    """An image in image space.

    Args:
        channels: one (I, J, K) array per channel, in the file's dtype and native byte order; float32 if the file has a
            scaling, or what holds a large offset. Read-only: it may be the caller's memory.
        geometry: of every channel.
        header: nibabel header of a NIfTI or MGH image, whose geometry fields results copy bit by bit; else None.
        source: its path or kind, for messages.
        warnings: assumptions made when reading, one sentence each.
        unstated: why no volume in mL can be given, see `volseg.data.io.readers.stored.Stored`; empty if it can.
        chosen: which series and volume of its path it is, for the record; see `Stored`.
        untilt: whether its slices are tilted, and the network shall see them upright, see `volseg.data.grid.shear`.
            Channels and geometry are as stored all the same.
        slices: the headers of a DICOM series, see `Stored`; results in DICOM's own formats refer to them.
        named: the labels of a DICOM object by their names, with the values that `channels` has for them; else None.
        frames: the FrameOfReferenceUIDs of a DICOM object with labels.
    """

    channels: tuple[np.ndarray, ...]
    geometry: Geometry
    header: Any
    source: str
    warnings: tuple[str, ...]
    unstated: str = ""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    untilt: bool = False
    slices: tuple[Any, ...] = ()
    named: Named | None = None
    frames: frozenset[str] = frozenset()


def read_scan(path: Path, channels: int = 1, choice: Choice = ONLY) -> Scan:
    """Read one image.

    Args:
        path: a file with one of SUFFIXES, a folder or .zip of one DICOM series, or a multi-frame .dcm.
        channels: expected number; several come from a 4-D file (I, J, K, C).
        choice: which volume is meant, where there are several, and whether tilted slices are made upright.

    Raises:
        InputError: it is missing, corrupt, or fails a requirement of volseg.data.io.checks or volseg.data.io.dicom.
    """
    scan = _as_scan(read_stored(Path(path), choice), channels)
    return made_upright(scan) if choice.untilt else scan


def read_channels(paths: Sequence[Path], channels: int = 1, choice: Choice = ONLY) -> Scan:
    """Read one case: a single file with all channels, or one file per channel, all with the same geometry.

    Header, geometry and source are those of the first file.

    Raises:
        GridError: the files differ in geometry.
        InputError: as `read_scan`, or the number of files is neither 1 nor `channels`.
    """
    if len(paths) == 1:
        return read_scan(paths[0], channels, choice)
    if len(paths) != channels:
        raise InputError(f"The case of {paths[0]} has {len(paths)} files, expected 1 or {channels}.")
    scans = [read_scan(path, choice=choice) for path in paths]
    for scan in scans:
        require_geometry(scan.geometry, scans[0].geometry, scan.source, "the first channel")
    warnings = tuple(dict.fromkeys(warning for scan in scans for warning in scan.warnings))
    origins = tuple(one for scan in scans for one in scan.chosen.get("input", (None,)))
    return replace(
        scans[0],
        channels=tuple(scan.channels[0] for scan in scans),
        warnings=warnings,
        chosen={**scans[0].chosen, "input": origins},
    )


def read_label(
    path: Path,
    like: Geometry | Scan | None = None,
    known: Collection[int] | None = None,
    labels: Table | None = None,
) -> Scan:
    """Read a label image: one channel of uint8, or uint16 if a value exceeds 255.

    Args:
        path: as for `read_scan`; or a DICOM segmentation or structure set, or a folder or .zip that holds only one.
        like: the required geometry, or the label image that has it, on which DICOM is placed; None for any.
        known: the values allowed apart from 0; None for any.
        labels: name to values, which the labels of DICOM get by their names; None: they are numbered as there.

    Raises:
        GridError: its geometry differs from `like`, or has no voxels in common with it.
        InputError: it is missing, corrupt, fails a requirement of volseg.data.io.checks, or `labels` lacks a name.
    """
    if (found := _dicom_labels(Path(path), like, known, labels)) is not None:
        return found
    required = like.geometry if isinstance(like, Scan) else like
    stored = read_stored(Path(path))
    warnings = stored.warnings + check_affine(stored.affine, stored.source)
    label = check_label(stored.array, stored.source, known)
    geometry = Geometry(label.shape, stored.affine)
    if required is not None:
        require_geometry(geometry, required, stored.source, _WHOSE)
    return Scan((label,), geometry, stored.header, stored.source, tuple(warnings), stored.unstated, stored.chosen)


def read_label_of(path: Path, image: Path, known: Collection[int] | None = None, labels: Table | None = None) -> Scan:
    """Read the label image of an image; DICOM is placed on the image's grid, others keep theirs.

    Args:
        path: as for `read_label`.
        image: as for `read_scan`.
        known: as for `read_label`.
        labels: as for `read_label`.

    Raises:
        GridError: DICOM that does not belong to the image.
        InputError: as `read_label`, also for the image.
    """
    if not is_dicom(path):
        return read_label(path, known=known)
    stored = read_stored(image)
    check_affine(stored.affine, stored.source)
    return read_label(path, Geometry(stored.array.shape[:3], stored.affine), known, labels)


def holds_dicom_labels(path: Path) -> bool:
    """Whether a path is, or holds only, a DICOM segmentation or structure set and no images.

    Raises:
        InputError: it cannot be read, or holds several of them.
    """
    if not is_dicom(path):
        return False
    from volseg.data.io.dicom_labels.reader import holds_labels  # noqa: PLC0415 - pydicom is loaded where it is needed

    return holds_labels(path)


def _dicom_labels(
    path: Path, like: Geometry | Scan | None, known: Collection[int] | None, labels: Table | None
) -> Scan | None:
    """A DICOM segmentation or structure set as a label image; None if the path holds neither."""
    _require_readable(path)
    if not holds_dicom_labels(path):
        return None
    # pydicom is loaded only where it is needed.
    from volseg.data.io.dicom_labels.placing import Target  # noqa: PLC0415
    from volseg.data.io.dicom_labels.reader import read_dicom_labels  # noqa: PLC0415

    source = str(path)
    target = None
    if like is not None:
        target = (
            Target(like.geometry, like.source, frames=like.frames) if isinstance(like, Scan) else Target(like, _WHOSE)
        )
    found = read_dicom_labels(path, target)
    found.reject_overlaps(source)
    axes = check_affine(found.geometry.affine, source)
    array, about = found.merged.array, list[str]()
    if labels is not None:
        array, about = by_name(array, found.named, labels, source)
    label = check_label(array, source, known)
    return Scan(
        (label,), found.geometry, found.header, source, (*axes, *found.warnings, *about), named=found.named,
        frames=found.frames,
    )  # fmt: skip


def read_image(path: Path, choice: Choice = ONLY) -> Scan:
    """Read one 3-D image of any content, such as a constant one; tilted slices stay as they are.

    Returns:
        Its voxels as stored: integers stay integers, scaled values are float32, or float64 where that is not exact.

    Raises:
        InputError: it is missing, corrupt, has no valid affine, or is no 3-D image of one number per voxel.
    """
    stored = read_stored(path, replace(choice, untilt=True))
    warnings = stored.warnings + check_affine(stored.affine, stored.source)
    volume = check_volume(stored.array, stored.source)
    geometry = Geometry(volume.shape, stored.affine)
    return Scan((volume,), geometry, stored.header, stored.source, tuple(warnings), stored.unstated, stored.chosen)


def compare_grids(path: Path, reference: Path, whose: str) -> None:
    """Check that two images have the same geometry, whatever their voxels are.

    Args:
        path: as for `read_scan`.
        reference: the other image.
        whose: the role of `reference` for the message, such as "its image".

    Raises:
        GridError: they differ.
        InputError: one of them is missing, corrupt or has no valid affine.
    """
    images = [read_stored(Path(one)) for one in (path, reference)]
    for image in images:
        check_affine(image.affine, image.source)
    # Images with fewer axes are rejected when their voxels are checked.
    if min(image.array.ndim for image in images) >= 3:
        found, expected = (Geometry(image.array.shape[:3], image.affine) for image in images)
        require_geometry(found, expected, images[0].source, whose)


def scan_from_array(array: np.ndarray, affine: np.ndarray, channels: int = 1) -> Scan:
    """Take an array (I, J, K), or (I, J, K, C), with its 4 x 4 affine to RAS+ millimetres; not copied.

    Raises:
        InputError: they are not arrays of numbers, or fail a requirement of volseg.data.io.checks.
    """
    voxels = _as_array(array, None, "The array", "numbers in (I, J, K)")
    matrix = _as_array(affine, np.float64, "The array's affine", "a 4 x 4 matrix to RAS+ millimetres")
    return _as_scan(Stored(voxels, matrix.copy(), None, "The array", []), channels)


def _as_array(value: Any, dtype: type | None, what: str, expected: str) -> np.ndarray:
    """A value as an array, not copied if it is one already."""
    try:
        # NumPy would drop the imaginary part.
        if dtype is not None and np.iscomplexobj(value):
            raise TypeError("it is complex")
        return np.asarray(value, dtype=dtype)
    # PyTorch raises RuntimeError for a tensor that requires a gradient.
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).split(". ")[0].rstrip(".")
        raise InputError(f"{what} cannot be made from a {type(value).__name__} ({reason}); give {expected}.") from error


def scan_from_nibabel(image: Any, channels: int = 1) -> Scan:
    """Take a nibabel spatial image. Results of a NIfTI image keep its sform, qform and units.

    Raises:
        InputError: it is corrupt, states no affine, or fails a requirement of volseg.data.io.checks.
    """
    return _as_scan(stored_from_nibabel(image), channels)


def scan_from_sitk(image: Any, channels: int = 1) -> Scan:
    """Take a SimpleITK image; its voxels are not copied.

    Raises:
        InputError: it fails a requirement of volseg.data.io.checks.
    """
    from volseg.data.io.readers.itk import check_kind, voxels_of  # noqa: PLC0415 - SimpleITK is loaded only where needed

    check_kind(image, channels)
    return _as_scan(Stored(*voxels_of(image), None, "The SimpleITK image", []), channels)


def _as_scan(stored: Stored, channels: int) -> Scan:
    """The scan of an image, after the checks that every image has to pass."""
    warnings = stored.warnings + check_affine(stored.affine, stored.source)
    volumes = check_scan(stored.array, channels, stored.source)
    geometry = Geometry(volumes[0].shape, stored.affine)
    return Scan(
        volumes, geometry, stored.header, stored.source, tuple(warnings), stored.unstated, stored.chosen,
        slices=stored.slices,
    )  # fmt: skip


def made_upright(scan: Scan) -> Scan:
    """The scan with the wish that the network sees its slices upright; the same scan if they are not tilted."""
    shear = find_shear(scan.geometry.affine)
    if shear is None:
        return scan
    # What is said of the axes is said of the upright grid.
    axes = check_affine(scan.geometry.affine, scan.source)
    others = [warning for warning in scan.warnings if warning not in axes]
    upright = check_affine(upright_geometry(scan.geometry).affine, scan.source)
    said = (
        f"The slices are tilted by {shear.degrees:.1f} degrees: resampled to an upright grid for the network, and the "
        "labels to the slices."
    )
    return replace(scan, warnings=(*others, *upright, said), untilt=True)


def read_stored(path: Path, choice: Choice = ONLY) -> Stored:
    """Read an image by its suffix, without checking its voxels.

    Raises:
        InputError: it is missing, unreadable, corrupt, or not an image; or it has no such series or volume.
    """
    _require_readable(path)
    if is_dicom(path):
        from volseg.data.io.dicom.reader import read_dicom  # noqa: PLC0415 - pydicom is loaded only where it is needed

        return read_dicom(path, choice)
    if choice.series is not None:
        raise InputError(f"{path} is not DICOM, so it has no series {choice.series}; leave out --series.")
    stored = _read_file(path, image_suffix(path))
    return stored if choice.volume is None else _one_volume(stored, choice.volume)


def count_volumes(path: Path, choice: Choice = ONLY) -> int:
    """The number of volumes of a 4-D image or DICOM series; 1 for a 3-D one.

    Raises:
        InputError: as `read_scan`.
    """
    _require_readable(path)
    if is_dicom(path):
        from volseg.data.io.dicom.reader import count_volumes as of_series  # noqa: PLC0415 - as above

        return of_series(path, choice)
    shape = read_stored(path).array.shape
    # An image of more dimensions is rejected with the reason when it is read.
    return shape[3] if len(shape) == 4 else 1


def _read_file(path: Path, suffix: str | None) -> Stored:
    """Read a single file by its suffix."""
    if suffix in ITK_SUFFIXES:
        return itk_files.load(path)
    if suffix is None:
        raise InputError(f"{path} has no supported image format. Supported: {', '.join(SUFFIXES)}, or DICOM.")
    with unreadable_as_input_error(str(path)), open_to_read(path) as raw:
        check_container(raw.read(544), suffix, str(path))
        raw.seek(0)
        compressed = suffix in (".nii.gz", ".mgz")
        opened: contextlib.AbstractContextManager[io.BufferedIOBase]
        opened = igzip.IGzipFile(fileobj=raw) if compressed else contextlib.nullcontext(raw)
        with opened as stream:
            largest = most_bytes(path, compressed)
            load = mgh.load if suffix in MGH_SUFFIXES else nifti.load
            # Each reads to the end of the stream, where gzip has its checksum.
            return load(stream, largest, str(path))


def _one_volume(stored: Stored, number: int) -> Stored:
    """Volume `number`, from 1, of a 4-D image."""
    count = int(np.prod(stored.array.shape[3:]))
    size = " x ".join(map(str, stored.array.shape))
    if stored.array.ndim > 4:
        raise InputError(
            f"{stored.source} ({size}) has {stored.array.ndim} dimensions, so its volumes have no single number; give "
            "a 3-D or 4-D image."
        )
    if not 1 <= number <= count:
        raise InputError(f"{stored.source} ({size}) has no volume {number}; give a number from 1 to {count}.")
    array = stored.array if stored.array.ndim == 3 else stored.array[..., number - 1]
    return stored._replace(array=array, chosen={**stored.chosen, "volume": number})


def _require_readable(path: Path) -> None:
    """Reject a missing or unreadable path, which SimpleITK would report as corrupt."""
    with access_to(path):
        if not path.exists():
            raise InputError(f"{path} does not exist", "add it, or give another file", "missing file")
        if path.is_file():
            open_to_read(path).close()
        elif not path.is_dir():
            raise InputError(f"{path} is neither a file nor a folder", "give another file", "no file")
