"""How image files are known: which suffixes are read, what a scan is called without them, how DICOM begins."""

from pathlib import Path

from volseg.errors import UsageError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
MGH_SUFFIXES = (".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
# The names that say DICOM; its files often have none of them.
DICOM_SUFFIXES = (".dcm", ".ima")
SUFFIXES = NIFTI_SUFFIXES + MGH_SUFFIXES + ITK_SUFFIXES


def image_suffix(path: Path) -> str | None:
    """The image suffix of a file name in lower case (".nii.gz" for "Scan.NII.GZ"), None where it has none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), None)


def begins_as_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes of a file are DICOM's: its magic after 128 of anything, or a dataset alone."""
    return start[128:132] == b"DICM" or (start[:2] in (b"\2\0", b"\x08\0") and start[3:4] == b"\0")


def sibling(image: Path, suffix: str) -> Path:
    """The file of another kind that goes with an image: its name without suffix, and `suffix`.

    Raises:
        UsageError: the path has no name, as "" and "/" have none.
    """
    if not image.name:
        raise UsageError(f"'{image}' names no file. Give a name that ends in one of {', '.join(SUFFIXES)}.")
    return image.with_name(stem_of(image) + suffix)


def stem_of(path: Path) -> str:
    """The name of a scan without its suffix: "scan.nii.gz" and "scan.zip" give "scan"; a folder keeps its name."""
    path = Path(path)
    suffix = image_suffix(path) or (path.suffix if path.suffix.lower() in (".zip", ".dcm") else "")
    return path.name.removesuffix(path.name[len(path.name) - len(suffix) :])
