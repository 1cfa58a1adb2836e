"""The names of image files: which suffixes are read, and what a scan is called without them."""

from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
MGH_SUFFIXES = (".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = NIFTI_SUFFIXES + MGH_SUFFIXES + ITK_SUFFIXES


def image_suffix(path: Path) -> str | None:
    """The image suffix of a file name in lower case (".nii.gz" for "Scan.NII.GZ"), None where it has none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), None)


def beside(image: Path, suffix: str) -> Path:
    """The file of another kind that goes with an image: its name without suffix, and `suffix`."""
    return image.with_name(stem_of(image) + suffix)


def stem_of(path: Path) -> str:
    """The name of a scan without its suffix: "scan.nii.gz" and "scan.zip" give "scan"; a folder keeps its name."""
    path = Path(path)
    suffix = image_suffix(path) or (path.suffix if path.suffix.lower() in (".zip", ".dcm") else "")
    return path.name.removesuffix(path.name[len(path.name) - len(suffix) :])
