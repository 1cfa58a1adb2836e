"""Writing results as DICOM objects: volseg beside the plain use of highdicom, and of rt-utils for contours.

    python benchmarks/dicom/write.py [--slices 300] [--repeats 5] [--without rt-utils] [--record]

Labels are ellipsoids in a CT series of 512 x 512 x SLICES: 20 for binary segments and contours, 117 for a label map.
Each writing is a process of its own, the sides in turn, after one that is not counted. Shown are medians: the seconds
from labels in memory to the file on disk, the peak memory of the process, and how much of it came on top of what there
was before writing, which holds libraries, headers and labels. `pip install rt-utils` for its side.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.record import publish, record_options
from common.results import Row, headline, ratio, rounded, table
from common.sides import run_command
from reading.speed import write_slice

from volseg.config import Label
from volseg.data.grid.geometry import Geometry
from volseg.data.io.dicom.frames import frames_of
from volseg.data.io.dicom.header import read_header
from volseg.data.io.dicom.stack import stacked
from volseg.version import __version__

SIZE = 512
SHA256 = "0" * 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without", action="append", default=[], help="leave out sides whose name holds this")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    record_options(parser)
    options = parser.parse_args()
    if options.side:
        measure(options.side[0], Path(options.side[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        tables = [compared(count, Path(name), options) for count in TABLES]
    heads = [
        headline("a CT of 20 labels as DICOM SEG", "volseg, BINARY", "seconds", "highdicom, BINARY"),
    ]
    publish(options, "dicom-write", "Results as DICOM objects", tables, heads)


def compared(count: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The table of one number of labels: a row per side."""
    case = folder / str(count)
    write_case(case, count, options.slices)
    names = [name for name in TABLES[count] if not any(word in name for word in options.without)]
    found: dict[str, list[Row]] = {name: [] for name in names}
    for repeat in range(options.repeats + 1):
        for name in names:
            side = run_command([sys.executable, __file__, "--side", name, case])
            if repeat:
                found[name].append(json.loads(side.printed.splitlines()[-1]))
    rows: list[Row] = [
        {"side": name, **{column: rounded(statistics.median(run[column] for run in runs)) for column in runs[0]}}
        for name, runs in found.items()
    ]
    ratios = [
        ratio("times as fast", "seconds", baseline=names[0]),
        ratio("times the memory", "GiB on top", baseline=names[0]),
    ]
    return table(rows, ratios, f"{SIZE} x {SIZE} x {options.slices}, {count} labels")


def write_case(folder: Path, count: int, slices: int) -> None:
    """A CT series without contents, and labels (I, J, K) in ellipsoids."""
    (folder / "series").mkdir(parents=True)
    for k in range(slices):
        path = folder / "series" / f"{k:04}.dcm"
        write_slice(path, np.zeros((SIZE, SIZE), dtype=np.uint16), k)
        data = dcmread(path)
        # highdicom and rt-utils ask for these.
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize"):
            setattr(data, name, "")
        for name in ("AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription", "PatientWeight"):
            setattr(data, name, "")
        data.StudyDate = data.SeriesDate = "20200101"
        data.StudyTime = data.SeriesTime = "120000"
        data.save_as(path)
    rng = np.random.default_rng(0)
    shape = np.array([SIZE, SIZE, slices])
    labels = np.zeros(shape, dtype=np.uint8)
    for value in range(1, count + 1):
        centre, radius = rng.uniform(0.15 * shape, 0.85 * shape), rng.uniform(20, 80, 3)
        low, high = np.maximum(centre - radius, 0).astype(int), np.minimum(centre + radius + 1, shape).astype(int)
        box = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
        axes = np.ogrid[box]
        inside = sum(((axis - at) / size) ** 2 for axis, at, size in zip(axes, centre, radius, strict=True)) < 1
        labels[box][inside] = value
    np.save(folder / "labels.npy", labels)


def measure(name: str, case: Path) -> None:
    """One writing in this process: print its seconds and memory."""
    labels = np.load(case / "labels.npy")
    names = [f"label {value}" for value in range(1, int(labels.max()) + 1)]
    output = case / f"{name}.dcm"
    write = SIDES[name](case / "series", labels, names, output)
    before, started = _memory_now(), time.perf_counter()
    write()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak GiB": peak / 2**30,
                "GiB on top": (peak - before) / 2**30,
                "file MB": output.stat().st_size / 1e6,
            }
        )
    )


def _memory_now() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def volseg_seg(labelmap: bool) -> Callable[..., Callable[[], None]]:
    """volseg's own writer."""

    def prepare(series: Path, labels: np.ndarray, names: list[str], output: Path) -> Callable[[], None]:
        from volseg.dicom.about import About  # noqa: PLC0415 - each side loads what it needs
        from volseg.dicom.identity import identity_of  # noqa: PLC0415
        from volseg.dicom.objects import write  # noqa: PLC0415
        from volseg.dicom.segmentation import segmentation  # noqa: PLC0415
        from volseg.dicom.source import Source  # noqa: PLC0415

        frames = [frame for path in sorted(series.iterdir()) for frame in frames_of(read_header(path, path.name), "")]
        slices, affine, _ = stacked(frames, str(series), untilt=False)
        source = Source(tuple(slices), Geometry(labels.shape, affine))
        described = tuple(Label(name=name, value=value) for value, name in enumerate(names, start=1))

        def run() -> None:
            what = About(source, identity_of(source, SHA256, {}, labels), described, "model", SHA256)
            write(segmentation(labels, what, labelmap), output)

        return run

    return prepare


def highdicom_seg(kind: str) -> Callable[..., Callable[[], None]]:
    """highdicom as its guide shows it, with the headers of the source alone."""

    def prepare(series: Path, labels: np.ndarray, names: list[str], output: Path) -> Callable[[], None]:
        import highdicom  # noqa: PLC0415
        from pydicom.sr.codedict import codes  # noqa: PLC0415

        sources = [dcmread(path, stop_before_pixels=True) for path in sorted(series.iterdir())]
        algorithm = highdicom.AlgorithmIdentificationSequence("model", codes.DCM.ArtificialIntelligence, "1")
        segments = [
            highdicom.seg.SegmentDescription(
                segment_number=value,
                segment_label=name,
                segmented_property_category=codes.SCT.AnatomicalStructure,
                segmented_property_type=codes.SCT.Kidney,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
            )
            for value, name in enumerate(names, start=1)
        ]

        def run() -> None:
            made = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=np.ascontiguousarray(labels.transpose(2, 1, 0)),
                segmentation_type=kind,
                segment_descriptions=segments,
                series_instance_uid=highdicom.UID(),
                series_number=2,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="volseg",
                manufacturer_model_name="benchmark",
                software_versions=__version__,
                device_serial_number="1",
            )
            made.save_as(output)

        return run

    return prepare


def rt_utils_contours(series: Path, labels: np.ndarray, names: list[str], output: Path) -> Callable[[], None]:
    """rt-utils, which takes one mask after the other."""
    from rt_utils import RTStructBuilder  # noqa: PLC0415

    builder = RTStructBuilder.create_new(dicom_series_path=str(series))

    def run() -> None:
        for value, name in enumerate(names, start=1):
            builder.add_roi(mask=(labels == value).transpose(1, 0, 2), name=name)
        builder.save(str(output))

    return run


# A side is a function of the folder of the series, labels (I, J, K), their names and the file to write; it returns the
# function that is timed. The first side of a table is what the others are compared with.
SIDES: dict[str, Callable[..., Callable[[], None]]] = {
    "highdicom, BINARY": highdicom_seg("BINARY"),
    "volseg, BINARY": volseg_seg(labelmap=False),
    "highdicom, LABELMAP": highdicom_seg("LABELMAP"),
    "volseg, LABELMAP": volseg_seg(labelmap=True),
    "rt-utils, RTSTRUCT": rt_utils_contours,
}
TABLES = {
    20: ("highdicom, BINARY", "volseg, BINARY", "rt-utils, RTSTRUCT"),
    117: ("highdicom, LABELMAP", "volseg, LABELMAP"),
}


if __name__ == "__main__":
    main()
