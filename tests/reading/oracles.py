"""Other readers of the same files, each independent of volseg: SimpleITK, highdicom and the dcm2niix program."""

import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import dcm2niix
import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pydicom.data
import SimpleITK as sitk

from tests.reading.right import Right
from tests.reading.volume import LPS_RAS, Volume, difference
from volseg.data.io.reading import read_scan
from volseg.errors import InputError

# Rescaled values as the modality means them, neither inverted for display nor mapped to another quantity.
STORED = {"apply_real_world_transform": False, "apply_presentation_lut": False}


class NoVolumeError(Exception):
    """A reader gave no volume, or several."""


def by_sitk(files: Sequence[Path]) -> Volume:
    """One image file, or the slices of a series in the order of their places."""
    try:
        if len(files) == 1:
            image = sitk.ReadImage(str(files[0]))
        else:
            reader = sitk.ImageSeriesReader()
            names = reader.GetGDCMSeriesFileNames(str(files[0].parent))
            # Only the wanted ones, in the order of their places.
            chosen = [name for name in names if Path(name) in set(files)]
            reader.SetFileNames(chosen)
            image = reader.Execute()
    except RuntimeError as error:
        raise NoVolumeError(str(error).splitlines()[-1]) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise NoVolumeError("not one value per voxel in three dimensions")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).T, LPS_RAS @ affine)


def by_highdicom(files: Sequence[Path]) -> Volume:
    """DICOM slices, or one multi-frame file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            datasets = [pydicom.dcmread(file) for file in files]
            for ds in datasets:
                # highdicom asks for it, and old files are without: one folder is one frame of reference.
                if not ds.get("FrameOfReferenceUID"):
                    ds.FrameOfReferenceUID = "1.2.3"
            if len(files) == 1:
                found = highdicom.Image.from_dataset(datasets[0], copy=False).get_volume(**STORED)
            else:
                found = highdicom.get_volume_from_series(datasets, **STORED)
    # highdicom raises whatever pydicom does on files that it cannot take.
    except Exception as error:
        raise NoVolumeError(f"{type(error).__name__}: {error}") from error
    if found.array.ndim != 3:
        raise NoVolumeError("not one value per voxel in three dimensions")
    return Volume(found.array, LPS_RAS @ found.affine)


def by_dcm2niix(files: Sequence[Path]) -> Volume:
    """DICOM files, given to the program in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        target.mkdir()
        for k, file in enumerate(files):
            (source / f"{k:05}.dcm").symlink_to(file.resolve())
        command = [dcm2niix.bin, "-z", "n", "-b", "n", "-m", "n", "-f", "%s_%d", "-o", str(target), str(source)]
        subprocess.run(command, capture_output=True, timeout=120, check=False)
        images = [nib.load(file) for file in sorted(target.glob("*.nii"))]
        if len(images) != 1:
            raise NoVolumeError(f"{len(images)} images")
        if images[0].ndim != 3:
            raise NoVolumeError(f"{images[0].ndim} dimensions: {images[0].shape}")
        scaled = np.asarray(images[0].dataobj)
        return Volume(np.array(scaled), images[0].affine)


OTHERS = {"SimpleITK": by_sitk, "highdicom": by_highdicom, "dcm2niix": by_dcm2niix}


def series_below(folder: Path) -> dict[str, list[Path]]:
    """The DICOM images in folders below a folder, by series: a name (its folder, or its first file) and the files."""
    found: dict[tuple[Path, str], list[Path]] = {}
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        if ds := image_in(file):
            found.setdefault((file.parent, str(ds.get("SeriesInstanceUID", ""))), []).append(file)
    alone = {parent for parent, count in Counter(parent for parent, _ in found).items() if count == 1}
    return {
        str((parent if parent in alone and parent != folder else files[0]).relative_to(folder)): files
        for (parent, _), files in found.items()
    }


def image_in(file: Path) -> pydicom.Dataset | None:
    """The first elements of a DICOM image; None if a file is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "Rows"])
    # Not DICOM, or nothing that pydicom can read.
    except Exception:
        return None
    return ds if "Rows" in ds else None


def of_pydicom() -> dict[str, list[Path]]:
    """The images that pydicom's package ships: single files, and the series of its DICOMDIR."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    single = {file.name: [file] for file in sorted(folder.iterdir()) if file.is_file() and image_in(file)}
    return single | series_below(folder / "dicomdirtests")


def compared(files: Sequence[Path]) -> dict[str, str]:
    """What volseg and the others make of a series: "same" as volseg, how it differs, or why there is no volume."""
    ours: Volume | None = None
    row = {}
    with tempfile.TemporaryDirectory() as folder:
        for k, file in enumerate(files):
            Path(folder, f"{k:05}.dcm").symlink_to(file.resolve())
        try:
            ours = by_volseg(Path(folder))
            row["volseg"] = "volume"
        except InputError as error:
            row["volseg"] = f"refused: {str(error).replace(folder, 'PATH')}"
    for name, read in OTHERS.items():
        try:
            theirs = read(files)
        except NoVolumeError as error:
            row[name] = f"no volume: {error}"
            continue
        row[name] = "volume" if ours is None else difference(theirs.voxels, theirs.affine, ours) or "same"
    return row


def judged(path: Path, files: Sequence[Path], right: Right) -> dict[str, str]:
    """What each reader makes of files whose right volume is known: "right", "refuses", or "wrong volume"."""
    row = {}
    for name in ("volseg", *OTHERS):
        try:
            found = by_volseg(path) if name == "volseg" else OTHERS[name](files)
        except (NoVolumeError, InputError):
            row[name] = "refuses"
            continue
        same = any(difference(found.voxels, found.affine, volume) == "" for volume in right.volumes)
        row[name] = "right" if same else "wrong volume"
    return row


def by_volseg(path: Path) -> Volume:
    """What volseg reads."""
    scan = read_scan(path)
    return Volume(scan.channels[0], scan.geometry.affine)
