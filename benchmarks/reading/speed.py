"""Reading scans with this checkout and another one: a classic CT series, and NIfTI with and without compression.

    python benchmarks/reading/speed.py --against CHECKOUT [--slices 500] [--repeats 5] [--record]

Each reading is a process of its own, the two checkouts in turn, after one that is not counted; files are in the page
cache. Shown are the medians of the seconds of `read_scan` alone, and the peak memory of the process. The series is 512
x 512 x SLICES, 16 bits with 12 stored, with a header of about a hundred elements.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.record import CHECKOUT, publish, record_options
from common.results import Row, headline, ratio, rounded, table
from common.sides import run_command

from volseg.data.io.reading import read_scan

ROOT = "1.2.826.0.1.3680043.10.511"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the checkout to compare with")
    parser.add_argument("--slices", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    record_options(parser)
    options = parser.parse_args()
    if options.side:
        started = time.perf_counter()
        read_scan(options.side)
        print(json.dumps({"seconds": time.perf_counter() - started}))
        return
    if options.against is None:
        parser.error("--against names the checkout to compare with")
    with tempfile.TemporaryDirectory() as name:
        scans = write_scans(Path(name), options.slices)
        tables = [compared(kind, path, options.against, options.repeats) for kind, path in scans.items()]
    heads = [headline(f"reading {kind}", "this checkout", "seconds", "the other") for kind in list(scans)[:1]]
    publish(options, "read-speed", "Reading scans against the reader before", tables, heads)


def compared(kind: str, path: Path, against: Path, repeats: int) -> dict[str, Any]:
    """The table of one scan: a row per checkout."""
    trees = {"the other": against.resolve(), "this checkout": CHECKOUT}
    commands = {
        name: ["env", f"PYTHONPATH={tree}", sys.executable, __file__, "--side", path] for name, tree in trees.items()
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for repeat in range(repeats + 1):
        for name, command in commands.items():
            side = run_command(command)
            if repeat:
                found[name].append((json.loads(side.printed.splitlines()[-1])["seconds"], side.peak_gib))
    rows: list[Row] = [
        {
            "side": name,
            "seconds": rounded(statistics.median(seconds for seconds, _ in runs)),
            "peak GiB": rounded(statistics.median(peak for _, peak in runs)),
        }
        for name, runs in found.items()
    ]
    ratios = [ratio("times as fast", "seconds", baseline="the other")]
    return table(rows, [*ratios, ratio("times the memory", "peak GiB", baseline="the other")], kind)


def write_scans(folder: Path, slices: int) -> dict[str, Path]:
    """The scan in each format: kind and path."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 2**12, (512, 512, slices), dtype=np.uint16)
    (folder / "series").mkdir()
    for k in range(slices):
        write_slice(folder / "series" / f"{k:04}.dcm", voxels[:, :, k].T, k)
    image = nibabel.Nifti1Image(voxels.view(np.int16), np.diag([0.7, 0.7, 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    for name in ("scan.nii", "scan.nii.gz"):
        nibabel.save(image, folder / name)
    size = f"512 x 512 x {slices}"
    paths = {f"classic CT series, {size}": "series", f".nii, {size}": "scan.nii", f".nii.gz, {size}": "scan.nii.gz"}
    return {kind: folder / name for kind, name in paths.items()}


def write_slice(path: Path, pixels: np.ndarray, k: int) -> None:
    """One slice as a scanner writes it, with private elements."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{ROOT}.1.{k + 1}"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = f"{ROOT}.2", f"{ROOT}.3", f"{ROOT}.4"
    data.Modality, data.SeriesNumber, data.InstanceNumber, data.AcquisitionNumber = "CT", 2, k + 1, 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Manufacturer, data.KVP, data.ConvolutionKernel = "a scanner", "120", "B30f"
    data.PixelSpacing, data.SliceThickness = ["0.7", "0.7"], "1"
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    data.ImagePositionPatient = ["-179.2", "-179.2", str(k)]
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    block = data.private_block(0x0029, "SOMETHING", create=True)
    for element in range(60):
        block.add_new(element, "OB", bytes(200))
    data.PixelData = np.ascontiguousarray(pixels).tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)


if __name__ == "__main__":
    main()
