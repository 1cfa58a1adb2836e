"""Results read back by software that is not volseg's, as label images on grids in LPS+ millimetres.

Nothing here uses volseg's geometry: each reader places what it reads by itself.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import highdicom
import numpy as np
import pydicom
import SimpleITK
from matplotlib.path import Path as Outline

from tests.dicom.proof.phantom_series import LABELS, by_threshold

VALUES = {label.name: label.value for label in LABELS}


class Found(NamedTuple):
    """Labels (I, J, K), the values of `LABELS`, and the 4 x 4 matrix from voxel to LPS+ millimetres."""

    labels: np.ndarray
    matrix: np.ndarray


def program(name: str) -> str | None:
    """The path of a program, of the system or of this Python environment; None if it is not here."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def run_program(name: str, *arguments: object) -> str:
    """Run a program and give what it prints.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([program(name), *map(str, arguments)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{name} failed with exit code {done.returncode}:\n{done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout


def _from_sitk(image) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K) and the matrix to LPS+ millimetres, which is ITK's space too."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, matrix


def source_by_sitk(folder: Path) -> Found:
    """The source itself, read by SimpleITK (GDCM) and labelled by the rule."""
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = SimpleITK.ReadImage(files if len(files) > 1 else files[0])
    voxels, matrix = _from_sitk(image)
    return Found(by_threshold(voxels), matrix)


def source_by_highdicom(folder: Path) -> Found:
    """The source itself, read by highdicom and labelled by the rule."""
    files = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    if len(files) > 1:
        volume = highdicom.get_volume_from_series(files)
    else:
        volume = highdicom.Image.from_dataset(files[0]).get_volume()
    return _from_volume(volume.with_array(by_threshold(volume.array)))


def seg_by_highdicom(file: Path, folder: Path) -> Found:
    """A SEG by highdicom's `segread` and `get_volume`."""
    seg = highdicom.seg.segread(file)
    volume = seg.get_volume(combine_segments=True, rescale_fractional=True)
    value_of = np.zeros(int(volume.array.max()) + 1, np.uint8)
    for number in seg.segment_numbers:
        if number < len(value_of):
            value_of[number] = VALUES.get(seg.get_segment_description(number).segment_label, 0)
    return _from_volume(volume.with_array(value_of[volume.array.astype(int)]))


def _from_volume(volume) -> Found:
    """highdicom's volumes are (K, J, I)."""
    matrix = volume.affine[:, [2, 1, 0, 3]]
    return Found(volume.array.T, matrix)


def seg_by_dcmqi(file: Path, folder: Path) -> Found:
    """A SEG by dcmqi's `segimage2itkimage`: an image per group of segments."""
    made = file.parent / f"{file.name}-dcmqi"
    made.mkdir(exist_ok=True)
    run_program("segimage2itkimage", "--inputDICOM", file, "--outputDirectory", made, "-t", "nrrd")
    found, matrix = None, np.eye(4)
    for number, group in enumerate(json.loads((made / "meta.json").read_text())["segmentAttributes"], 1):
        voxels, matrix = _from_sitk(SimpleITK.ReadImage(str(made / f"{number}.nrrd")))
        found = np.zeros(voxels.shape, np.uint8) if found is None else found
        for segment in group:
            # Several segments share an image by their numbers.
            chosen = voxels == segment["labelID"] if len(group) > 1 else voxels > 0
            found[chosen] = VALUES[segment["SegmentLabel"]]
    return Found(found, matrix)


def seg_by_sitk(file: Path, folder: Path) -> Found:
    """The frames of a SEG by SimpleITK (GDCM), each laid by its stated position on the grid of SimpleITK's source."""
    data = pydicom.dcmread(file, stop_before_pixels=True)
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).transpose(0, 2, 1)
    source = source_by_sitk(folder)
    found = np.zeros(source.labels.shape, np.uint8)
    names = {item.SegmentNumber: item.get("SegmentLabel", "") for item in data.SegmentSequence}
    is_map = data.SegmentationType == "LABELMAP"
    for frame, groups in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        position = [*groups.PlanePositionSequence[0].ImagePositionPatient, 1]
        where = np.linalg.solve(source.matrix, np.array(position, float))[:3]
        slice_at = round(where[2])
        if np.abs(where - [0, 0, slice_at]).max() > 0.01:
            raise ValueError(f"a frame at {position[:3]} lies on no slice: {where} in voxels of the source")
        numbers = np.unique(frame) if is_map else [groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        for number in numbers:
            chosen = frame == number if is_map else frame > 0
            found[:, :, slice_at][chosen] = VALUES.get(names.get(int(number), ""), 0)
    return Found(found, source.matrix)


def rtstruct_by_plastimatch(file: Path, folder: Path) -> Found:
    """An RTSTRUCT by plastimatch, which fills the contours on the grid of the source: an image per structure.

    It reads no multi-frame series; of those it gets SimpleITK's image.
    """
    made, grid = file.parent / f"{file.name}-plastimatch", ("--referenced-ct", folder)
    shutil.rmtree(made, ignore_errors=True)
    first, *others = sorted(folder.iterdir())
    if not others:
        grid = ("--fixed", file.parent / f"{file.name}-grid.mha")
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(first)), str(grid[1]))
    # By default it joins contours that lie within each other, whatever their type.
    by_xor = ["--xor-contours"] if ".xor." in file.name else []
    asked = ("--output-prefix", made, "--prefix-format", "mha", *by_xor)
    run_program("plastimatch", "convert", "--input", file, *grid, *asked)
    found, matrix = None, np.eye(4)
    for image in sorted(made.iterdir()):
        voxels, matrix = _from_sitk(SimpleITK.ReadImage(str(image)))
        found = np.zeros(voxels.shape, np.uint8) if found is None else found
        found[voxels > 0] = VALUES[image.stem]
    return Found(found, matrix)


def rtstruct_by_matplotlib(file: Path, folder: Path) -> Found:
    """An RTSTRUCT filled by matplotlib on the grid of SimpleITK's source.

    A pixel belongs to a structure if its centre lies inside an odd number of its contours, so holes may be contours of
    their own or be joined to the outer one by a cut.
    """
    data, source = pydicom.dcmread(file), source_by_sitk(folder)
    names = {one.ROINumber: one.ROIName for one in data.StructureSetROISequence}
    found = np.zeros(source.labels.shape, np.uint8)
    columns, rows, _ = found.shape
    centres = np.indices((columns, rows)).reshape(2, -1).T
    for structure in data.ROIContourSequence:
        inside = np.zeros(found.shape, bool)
        for contour in structure.get("ContourSequence", ()):
            points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
            voxels = np.linalg.solve(source.matrix, np.c_[points, np.ones(len(points))].T)[:3].T
            slice_at = round(voxels[:, 2].mean())
            if np.abs(voxels[:, 2] - slice_at).max() > 0.01:
                raise ValueError(f"a contour of {names[structure.ReferencedROINumber]} lies between slices")
            inside[:, :, slice_at] ^= (
                Outline(voxels[:, :2], closed=False).contains_points(centres).reshape(columns, rows)
            )
        found[inside] = VALUES[names[structure.ReferencedROINumber]]
    return Found(found, source.matrix)


class Reader(NamedTuple):
    """How a piece of software reads a file with labels.

    Args:
        software: its name.
        read: (file, folder of the source) -> what it found.
        needs: the program it needs; empty for a Python package of the tests.
    """

    software: str
    read: Callable[[Path, Path], Found]
    needs: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot be used here; empty if it can."""
        return f"{self.needs} is not on this machine" if self.needs and program(self.needs) is None else ""


OF_SOURCE = (
    Reader("SimpleITK", lambda _, folder: source_by_sitk(folder)),
    Reader("highdicom", lambda _, folder: source_by_highdicom(folder)),
)
OF_SEG = (
    Reader("highdicom", seg_by_highdicom),
    Reader("dcmqi", seg_by_dcmqi, "segimage2itkimage"),
    Reader("SimpleITK", seg_by_sitk),
)
OF_RTSTRUCT = (
    Reader("matplotlib", rtstruct_by_matplotlib),
    Reader("plastimatch", rtstruct_by_plastimatch, "plastimatch"),
)


def readers_of(output: str) -> tuple[Reader, ...]:
    """What reads the labels in a file of an output, as in `save(to=...)`."""
    found = {"source": OF_SOURCE, "dicom-seg": OF_SEG, "rtstruct": OF_RTSTRUCT}.get(output.split(":")[0], ())
    # GDCM is older than label maps.
    return tuple(one for one in found if not (one.read is seg_by_sitk and "labelmap" in output))
