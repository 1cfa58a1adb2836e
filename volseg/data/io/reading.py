"""Read images: voxels in the file's dtype and voxel order, their geometry in RAS+ millimetres, and warnings.

NIfTI and FreeSurfer MGH are read with nibabel, NRRD, MetaImage and DICOM with SimpleITK. Every image passes the same
checks (volseg.data.io.checks).
"""

import contextlib
import io
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip
from isal.isal_zlib import IsalError
from nibabel.arrayproxy import ArrayProxy
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from volseg.data.grid.geometry import Geometry
from volseg.data.io.checks import check_affine, check_container, check_label, check_nifti, check_scan
from volseg.data.io.formats import ITK_SUFFIXES, MGH_SUFFIXES, SUFFIXES, image_suffix
from volseg.errors import GridError, InputError
from volseg.files import access_to

# The highest compression ratio of deflate. A header that declares more is corrupt, and no memory is allocated for it.
_LARGEST_GZIP_RATIO = 1032
# Bytes decompressed at a time.
_CHUNK = 1 << 22
# Errors of nibabel, gzip and the system on corrupt files.
UNREADABLE = (
    OSError,
    EOFError,
    ArithmeticError,
    ValueError,
    TypeError,
    KeyError,
    IsalError,
    HeaderDataError,
    WrapStructError,
    MGHError,
)


@dataclass(frozen=True, eq=False)
class Scan:
    """An image in image space.

    Args:
        channels: one (I, J, K) array per channel, in the file's dtype and native byte order; float32 if the file has a
            scaling. Read-only: it may be the caller's memory.
        geometry: of every channel.
        header: nibabel header of a NIfTI or MGH image, whose geometry fields results copy bit by bit; else None.
        source: its path or kind, for messages.
        warnings: assumptions made when reading, one sentence each.
    """

    channels: tuple[np.ndarray, ...]
    geometry: Geometry
    header: Any
    source: str
    warnings: tuple[str, ...]


class Stored(NamedTuple):
    """An image before its voxels are checked: (I, J, K) or (I, J, K, C) and an affine."""

    array: np.ndarray
    affine: np.ndarray
    header: Any
    source: str
    warnings: list[str]


def read_scan(path: Path, channels: int = 1) -> Scan:
    """Read one image.

    Args:
        path: a file with one of SUFFIXES, a folder or .zip of one DICOM series, or a multi-frame .dcm.
        channels: expected number; several come from a 4-D file (I, J, K, C).

    Raises:
        InputError: it is missing, corrupt, or fails a requirement of volseg.data.io.checks or volseg.data.io.dicom.
    """
    return _as_scan(read_stored(Path(path)), channels)


def read_channels(paths: Sequence[Path], channels: int = 1) -> Scan:
    """Read one case: a single file with all channels, or one file per channel, all with the same geometry.

    Header, geometry and source are those of the first file.

    Raises:
        GridError: the files differ in geometry.
        InputError: as `read_scan`, or the number of files is neither 1 nor `channels`.
    """
    if len(paths) == 1:
        return read_scan(paths[0], channels)
    if len(paths) != channels:
        raise InputError(f"The case of {paths[0]} has {len(paths)} files, expected 1 or {channels}.")
    scans = [read_scan(path) for path in paths]
    for scan in scans:
        _require_geometry(scan.geometry, scans[0].geometry, scan.source, "the first channel")
    warnings = tuple(dict.fromkeys(warning for scan in scans for warning in scan.warnings))
    return replace(scans[0], channels=tuple(scan.channels[0] for scan in scans), warnings=warnings)


def read_label(path: Path, like: Geometry | None = None, known: Collection[int] | None = None) -> Scan:
    """Read a label image: one channel of uint8, or uint16 if a value exceeds 255.

    Args:
        path: as for `read_scan`.
        like: the required geometry; None for any.
        known: the values allowed apart from 0; None for any.

    Raises:
        GridError: its geometry differs from `like`.
        InputError: it is missing, corrupt, or fails a requirement of volseg.data.io.checks.
    """
    stored = read_stored(Path(path))
    warnings = stored.warnings + check_affine(stored.affine, stored.source)
    label = check_label(stored.array, stored.source, known)
    geometry = Geometry(label.shape, stored.affine)
    if like is not None:
        _require_geometry(geometry, like, stored.source, "the image or reference it belongs to")
    return Scan((label,), geometry, stored.header, stored.source, tuple(warnings))


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
        _require_geometry(found, expected, images[0].source, whose)


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
        return np.asarray(value, dtype=dtype)
    # PyTorch raises RuntimeError for a tensor that requires a gradient.
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).split(". ")[0].rstrip(".")
        raise InputError(f"{what} cannot be made from a {type(value).__name__} ({reason}); give {expected}.") from error


def scan_from_nibabel(image: Any, channels: int = 1) -> Scan:
    """Take a nibabel spatial image. Results of a NIfTI image keep its sform, qform and units.

    Raises:
        InputError: it is corrupt, has no affine, or fails a requirement of volseg.data.io.checks.
    """
    name = image.get_filename()
    source = str(name) if name else "The nibabel image"
    proxy = image.dataobj
    with _unreadable_as_input_error(source):
        if isinstance(proxy, ArrayProxy):
            array = _scaled(np.asarray(proxy.get_unscaled()), float(proxy.slope), float(proxy.inter))
        else:
            array = np.asarray(proxy)
    if isinstance(image.header, nib.Nifti1Header):
        affine, warnings = check_nifti(image.header, image.header["pixdim"][1:4].astype(np.float64), source)
        return _as_scan(Stored(array, affine, image.header.copy(), source, warnings), channels)
    if image.affine is None:
        raise InputError(f"{source} has no affine; add one.")
    header = image.header.copy() if isinstance(image, nib.MGHImage) else None
    return _as_scan(Stored(array, np.array(image.affine, dtype=np.float64), header, source, []), channels)


def scan_from_sitk(image: Any, channels: int = 1) -> Scan:
    """Take a SimpleITK image; its voxels are not copied.

    Raises:
        InputError: it fails a requirement of volseg.data.io.checks.
    """
    from volseg.data.io.itk import voxels_of  # noqa: PLC0415 - SimpleITK is loaded only where it is needed

    return _as_scan(Stored(*voxels_of(image), None, "The SimpleITK image", []), channels)


def _as_scan(stored: Stored, channels: int) -> Scan:
    """The scan of an image, after the checks that every image has to pass."""
    warnings = stored.warnings + check_affine(stored.affine, stored.source)
    volumes = check_scan(stored.array, channels, stored.source)
    return Scan(volumes, Geometry(volumes[0].shape, stored.affine), stored.header, stored.source, tuple(warnings))


def read_stored(path: Path) -> Stored:
    """Read an image by its suffix, without checking its voxels.

    Raises:
        InputError: it is missing, unreadable, corrupt, or not an image.
    """
    _require_readable(path)
    suffix = image_suffix(path)
    if path.is_dir() or path.suffix.lower() in (".zip", ".dcm"):
        from volseg.data.io.dicom import read_dicom  # noqa: PLC0415 - SimpleITK is loaded only where it is needed

        array, affine, warnings = read_dicom(path)
        return Stored(array, affine, None, str(path), warnings)
    if suffix in ITK_SUFFIXES:
        from volseg.data.io.itk import read_file, voxels_of  # noqa: PLC0415 - as above

        return Stored(*voxels_of(read_file(path, suffix)), None, str(path), [])
    if suffix is None:
        raise InputError(f"{path} has no supported image format. Supported: {', '.join(SUFFIXES)}, or DICOM.")
    with _unreadable_as_input_error(str(path)), open(path, "rb") as raw:
        check_container(raw.read(2), suffix, str(path))
        raw.seek(0)
        compressed = suffix in (".nii.gz", ".mgz")
        opened: contextlib.AbstractContextManager[io.BufferedIOBase]
        opened = igzip.IGzipFile(fileobj=raw) if compressed else contextlib.nullcontext(raw)
        with opened as stream:
            largest = path.stat().st_size * (_LARGEST_GZIP_RATIO if compressed else 1)
            load = _load_mgh if suffix in MGH_SUFFIXES else _load_nifti
            stored = load(stream, largest, str(path))
            # To the end of the stream, where gzip has its checksum.
            while compressed and stream.read(2**20):
                pass
    return stored


def _require_readable(path: Path) -> None:
    """Reject a missing or unreadable path, which SimpleITK would report as corrupt."""
    with access_to(path):
        if not path.exists():
            raise InputError(f"{path} does not exist", "add it, or give another file", "missing file")
        if path.is_file():
            open(path, "rb").close()
        elif not path.is_dir():
            raise InputError(f"{path} is neither a file nor a folder", "give another file", "no file")


def _load_nifti(stream: io.BufferedIOBase, largest: int, source: str) -> Stored:
    """Read a single-file NIfTI-1 or NIfTI-2 image."""
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    if start[344:348] == b"n+1\0":
        kind = nib.Nifti1Header
    elif start[4:8] == b"n+2\0":
        kind = nib.Nifti2Header
    else:
        raise InputError(f"{source} is not a single-file NIfTI image; convert it, or correct its suffix.")
    pixdim = kind(start[: kind.sizeof_hdr], check=False)["pixdim"][1:4].astype(np.float64)
    stream.seek(0)
    header = kind.from_fileobj(stream)
    affine, warnings = check_nifti(header, pixdim, source)
    slope, inter = header.get_slope_inter()
    array = _voxels(stream, header, largest, source)
    scaled = _scaled(array, 1.0 if slope is None else slope, 0.0 if inter is None else inter)
    return Stored(scaled, affine, header, source, warnings)


def _load_mgh(stream: io.BufferedIOBase, largest: int, source: str) -> Stored:
    """Read a FreeSurfer MGH image."""
    if stream.read(4) != b"\0\0\0\1":
        raise InputError(f"{source} is not a FreeSurfer MGH file; correct its suffix.")
    stream.seek(0)
    header = nib.MGHImage.header_class.from_fileobj(stream)
    affine = np.array(header.get_affine(), dtype=np.float64)
    return Stored(_voxels(stream, header, largest, source), affine, header, source, [])


def _voxels(stream: io.BufferedIOBase, header: Any, largest: int, source: str) -> np.ndarray:
    """The unscaled values, memory-mapped if the file is not compressed; `largest` is the most bytes it can have."""
    shape = tuple(int(size) for size in header.get_data_shape())
    dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    if min(shape, default=0) < 1:
        raise InputError(f"{source} is empty: its size is {' x '.join(map(str, shape))}.")
    needed = offset + math.prod(shape) * dtype.itemsize
    if needed > largest:
        raise InputError(
            f"{source} is truncated: its header declares {needed} bytes, found at most {largest}; copy it again."
        )
    if isinstance(stream, igzip.IGzipFile):
        return _decompressed(stream, np.empty(shape, dtype, order="F"), offset)
    array: np.ndarray = np.asarray(ArrayProxy(stream, (shape, dtype, offset)).get_unscaled())
    return array


def _decompressed(stream: io.BufferedIOBase, array: np.ndarray, offset: int) -> np.ndarray:
    """The array, filled chunk by chunk, so that its bytes are not in memory twice."""
    stream.seek(offset)
    remaining = memoryview(array.T.reshape(-1).view(np.uint8).data)
    while remaining:
        count = stream.readinto(remaining[:_CHUNK])
        if not count:
            raise EOFError("it ends before its last voxel")
        remaining = remaining[count:]
    return array


def _scaled(array: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Values times slope plus inter, as float32 (float64 stays); unchanged without a scaling."""
    if (slope, inter) == (1.0, 0.0) or array.dtype.kind not in "iuf":
        return array
    kind = np.float64 if array.dtype.itemsize > 4 and array.dtype.kind == "f" else np.float32
    scaled: np.ndarray = np.multiply(array, kind(slope), dtype=kind)
    scaled += kind(inter)
    return scaled


@contextlib.contextmanager
def _unreadable_as_input_error(source: str) -> Iterator[None]:
    """Report any failure to read as a corrupt file, unless the system denies access to it."""
    try:
        with access_to(source):
            yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{source} cannot be read: corrupt, truncated or of an unknown type ({reason}); copy it again."
        ) from error


def _require_geometry(found: Geometry, expected: Geometry, source: str, whose: str) -> None:
    """Reject a geometry that differs from the expected one."""
    if not found.same_grid(expected):
        raise GridError(
            f"{source} has another geometry than {whose}: {_description(found)}, expected {_description(expected)}",
            "resample it",
            "geometry differs",
        )


def _description(geometry: Geometry) -> str:
    """Size, spacing, orientation and origin in a few words."""
    size = " x ".join(str(size) for size in geometry.shape)
    spacing = " x ".join(f"{spacing:.3g}" for spacing in geometry.spacing_mm)
    return f"{size} voxels of {spacing} mm, {geometry.axis_codes}, from {np.round(geometry.affine[:3, 3], 2).tolist()}"
