"""Names of image files: the supported suffixes, a scan's name without them, and how to recognise DICOM."""

from collections.abc import Sequence
from pathlib import Path

from volseg.errors import UsageError
from volseg.files import access_to, open_to_read

NIFTI_SUFFIXES = (".nii.gz", ".nii")
MGH_SUFFIXES = (".mgz", ".mgh")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
ITK_SUFFIXES = (*NRRD_SUFFIXES, ".mha", ".mhd")
# Suffixes of DICOM files, which often have none of them.
DICOM_SUFFIXES = (".dcm", ".ima")
SUFFIXES = NIFTI_SUFFIXES + MGH_SUFFIXES + ITK_SUFFIXES
# Suffixes of the files that belong to a label image of volseg and could be taken for scans or label images.
# `volseg.api.outputs.add_format` adds to them.
RESULT_SUFFIXES = {".uncertainty.nii.gz", ".seg.dcm", ".rtstruct.dcm", ".sr.dcm", ".sc.dcm"}

# What other files begin with: how they are called, and what to do.
_RENAME = "give it the suffix of its format"
_CONTENTS = (
    (b"\x1f\x8b", "gzip-compressed data", "decompress it once, or give it the suffix of its format"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data", "decompress it"),
    (b"BZh", "bzip2-compressed data", "decompress it"),
    (b"\xfd7zXZ\0", "xz-compressed data", "decompress it"),
    (b"PK\3\4", "a zip archive", "unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (b"<!doctype html", "a web page", "download the file again"),
    (b"<html", "a web page", "download the file again"),
    (b"<?xml", "an XML document", _RENAME),
    (b"NRRD", "an NRRD file", _RENAME),
    (b"ObjectType", "a MetaImage file", _RENAME),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as MINC 2", "convert it to NIfTI"),
    (b"CDF\1", "a NetCDF file, such as MINC 1", "convert it to NIfTI"),
    (b"\x89PNG", "a PNG picture", "give the scan itself"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the scan itself"),
    (b"\0\0\0\1", "a FreeSurfer MGH file", _RENAME),
)


def content_of(start: bytes) -> tuple[str, str] | None:
    """What a file is by its first bytes, up to 544 of them, and what to do with it; None if they tell nothing."""
    if start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0":
        return "a NIfTI file", _RENAME
    if begins_as_dicom(start):
        return "a DICOM file", "give it the suffix .dcm, or give the folder of its series"
    text = start.lstrip().lower()
    found = (
        content[1:] for content in _CONTENTS if start.startswith(content[0]) or text.startswith(content[0].lower())
    )
    return next(found, None)


def image_suffix(path: Path) -> str | None:
    """The image suffix of a file name in lower case (".nii.gz" for "Scan.NII.GZ"); None if it has none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), None)


def begins_as_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes of a file are DICOM: a preamble of 128 bytes with DICM, or a bare dataset."""
    return start[128:132] == b"DICM" or (start[:2] in (b"\2\0", b"\x08\0") and start[3:4] == b"\0")


def is_dicom(path: Path) -> bool:
    """Whether a path is read as DICOM: a folder, a .zip, a DICOMDIR, or a file by its suffix or its first bytes."""
    # A pipe or a device may have no end.
    if path.exists() and not (path.is_file() or path.is_dir()):
        return False
    if path.is_dir() or path.suffix.lower() in (".zip", *DICOM_SUFFIXES) or path.name.upper() == "DICOMDIR":
        return True
    if image_suffix(path) is not None or not path.is_file():
        return False
    with access_to(path), open_to_read(path) as stream:
        return begins_as_dicom(stream.read(132))


def sibling(image: Path, suffix: str) -> Path:
    """The path of a file that belongs to an image: the image's name with another suffix.

    Raises:
        UsageError: the path has no name, like "" and "/".
    """
    if not image.name:
        raise UsageError(f"'{image}' names no file. Give a name that ends in one of {', '.join(SUFFIXES)}.")
    return image.with_name(stem_of(image) + suffix)


def without_result_files(paths: Sequence[Path]) -> list[Path]:
    """Paths of one folder without those that belong to a result there: `<stem>.uncertainty.nii.gz` and the like.

    They do if a label image with their stem is among the paths, in any format.
    """
    images = {stem_of(path) for path in paths if image_suffix(path)}
    return [path for path in paths if result_stem(path) not in images]


def result_stem(path: Path) -> str | None:
    """The stem of the label image that a file belongs to by its name; None if it is no further file of a result."""
    name = path.name.lower()
    suffix = next((one for one in RESULT_SUFFIXES if name.endswith(one) and name != one), None)
    return None if suffix is None else path.name[: -len(suffix)]


def label_name(path: Path) -> str:
    """The name of the scan that a label image belongs to: its stem, without the kind in the suffix of DICOM results."""
    stem = stem_of(path)
    if Path(path).suffix.lower() != ".dcm":
        return stem
    return next((stem.removesuffix(kind) for kind in (".seg", ".rtstruct") if stem.endswith(kind)), stem)


def stem_of(path: Path) -> str:
    """The name of a scan without its suffix: "scan.nii.gz" and "scan.zip" give "scan"; a folder keeps its name."""
    path = Path(path)
    suffix = image_suffix(path) or (path.suffix if path.suffix.lower() in (".zip", ".dcm") else "")
    return path.name.removesuffix(path.name[len(path.name) - len(suffix) :])
