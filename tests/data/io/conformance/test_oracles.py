"""Independent readers agree with volseg about DICOM: SimpleITK, highdicom and dcm2niix, where each of them is right.

Where they disagree is listed here with who is right, and explained in docs/reference/where-readers-disagree.md.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.reading import dicom
from tests.reading.oracles import OTHERS, compared, of_pydicom, series_below
from tests.reading.volume import ORDERS, Volume, difference, grid, sample
from volseg.data.io.reading import read_scan

# Name of the input and reader: who is right. Anything else that differs is a fault.
DISAGREE = {
    ("odd_dicom2nifti/philips_enhanced/anatomical/001", "dcm2niix"): "both: dcm2niix takes Philips' private scaling",
    ("J2K_pixelrep_mismatch.dcm", "dcm2niix"): "volseg: PixelRepresentation states signed values",
}
# What two of the others give a volume of and volseg refuses: no scans.
REFUSED = ("seg_dcmqi/", "seg_highdicom/seg_", "seg_dicom4qi_data5/mask", "rtdose", "liver")


def wrong(series: dict[str, list[Path]]) -> dict[str, str]:
    """What volseg makes of each series that others make something else of."""
    faults = {}
    for name, files in series.items():
        row = compared(files)
        differing = {
            reader: row[reader]
            for reader in OTHERS
            if (name, reader) not in DISAGREE and not row[reader].startswith(("same", "volume", "no volume"))
        }
        agreed = sum(row[reader] == "volume" for reader in ("highdicom", "dcm2niix"))
        if row["volseg"].startswith("refused") and agreed == 2 and not name.startswith(REFUSED):
            faults[name] = row["volseg"]
        if differing:
            faults[name] = f"{row['volseg']}; {differing}"
    return faults


@pytest.mark.needs_data
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["dicom", "wild"])
def test_real_series_as_others_read_them(data_folder: Path, folder: str) -> None:
    series = series_below(data_folder / folder)
    assert series
    assert wrong(series) == {}


@pytest.mark.filterwarnings("default")
def test_files_of_pydicom_as_others_read_them() -> None:
    series = of_pydicom()
    assert len(series) > 50
    assert wrong(series) == {}


@pytest.mark.parametrize("reader", OTHERS)
def test_series_of_seeded_scripts_as_others_read_them(tmp_path: Path, reader: str) -> None:
    """The truth is known, so this also shows that the writers of these tests are right."""
    faults = {}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        dtype = rng.choice(["i2", "u2"])
        affine = grid(degrees=float(rng.choice([0, 12])), order=int(rng.integers(len(ORDERS))))
        volume = Volume(sample(dtype, seed=seed), affine)
        truth = Volume(volume.voxels * 2.0 - 10, affine)
        folder = dicom.save_folder(dicom.slices(volume, 2, -10), tmp_path / f"{seed}")
        frames = dicom.save(dicom.frames(volume, [2.0] * volume.voxels.shape[2], -10), tmp_path / f"{seed}.dcm")
        for path, files in ((folder, sorted(folder.iterdir())), (frames, [frames])):
            theirs, ours = OTHERS[reader](files), read_scan(path)
            faults[path.name, reader] = difference(theirs.voxels, theirs.affine, truth)
            faults[path.name, "volseg"] = difference(ours.channels[0], ours.geometry.affine, truth)
    assert {name: one for name, one in faults.items() if one} == {}
