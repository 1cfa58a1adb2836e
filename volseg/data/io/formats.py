"""Names of image files: the supported suffixes, a scan's name without them, and how to recognise DICOM."""

from pathlib import Path

from volseg.errors import UsageError
from volseg.files import access_to

NIFTI_SUFFIXES = (".nii.gz", ".nii")
MGH_SUFFIXES = (".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
# Suffixes of DICOM files, which often have none of them.
DICOM_SUFFIXES = (".dcm", ".ima")
SUFFIXES = NIFTI_SUFFIXES + MGH_SUFFIXES + ITK_SUFFIXES


def image_suffix(path: Path) -> str | None:
    """The image suffix of a file name in lower case (".nii.gz" for "Scan.NII.GZ"); None if it has none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), None)


def begins_as_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes of a file are DICOM: a preamble of 128 bytes with DICM, or a bare dataset."""
    return start[128:132] == b"DICM" or (start[:2] in (b"\2\0", b"\x08\0") and start[3:4] == b"\0")


def is_dicom(path: Path) -> bool:
    """Whether a path is read as DICOM: a folder, a .zip, a DICOMDIR, or a file by its suffix or its first bytes."""
    if path.is_dir() or path.suffix.lower() in (".zip", *DICOM_SUFFIXES) or path.name.upper() == "DICOMDIR":
        return True
    if image_suffix(path) is not None or not path.is_file():
        return False
    with access_to(path), open(path, "rb") as stream:
        return begins_as_dicom(stream.read(132))


def sibling(image: Path, suffix: str) -> Path:
    """The path of a file that belongs to an image: the image's name with another suffix.

    Raises:
        UsageError: the path has no name, like "" and "/".
    """
    if not image.name:
        raise UsageError(f"'{image}' names no file. Give a name that ends in one of {', '.join(SUFFIXES)}.")
    return image.with_name(stem_of(image) + suffix)


def stem_of(path: Path) -> str:
    """The name of a scan without its suffix: "scan.nii.gz" and "scan.zip" give "scan"; a folder keeps its name."""
    path = Path(path)
    suffix = image_suffix(path) or (path.suffix if path.suffix.lower() in (".zip", ".dcm") else "")
    return path.name.removesuffix(path.name[len(path.name) - len(suffix) :])
