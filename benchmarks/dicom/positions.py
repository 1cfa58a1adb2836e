"""Measure where other software finds volseg's DICOM results, and write docs/reference/dicom-positions.md.

Every series of the phantom (`tests/dicom/proof/phantom_series.py`) is written, segmented by its known rule, exported in
every DICOM format and read back. Run by `make positions`, in about ten minutes, on the same phantom for other writers.

    python -m benchmarks.dicom.positions --output docs/reference/dicom-positions.md
"""

import argparse
import contextlib
import logging
import tempfile
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.dicom import page, peers
from tests.dicom.proof.kinds import dicom_outputs, suffix_of
from tests.dicom.proof.other_software import program, readers_of
from tests.dicom.proof.phantom_series import Series, result_of, write_series
from tests.dicom.proof.positions import agreements, all_series, centre_distance
from tests.dicom.proof.reports_and_pictures import report_by_dcmqi, report_by_highdicom, true_values, wrong_sides


class Measured(NamedTuple):
    """The worst label of one file of one series, as one reader found it.

    Args:
        millimetres, voxels: distance of the centres of mass, the latter along the worst axis of the series; NaN where
            the format or the reader gives no place.
        dice: Dice coefficient; for reports 1 less the relative error of the volume, for pictures the fraction of pairs
            of labels that lie the right way round.
        reason: why there is nothing; empty if there is.
    """

    millimetres: float = np.inf
    voxels: float = np.inf
    dice: float = 0.0
    reason: str = ""


# By (writer and format, reader).
Measures = dict[tuple[str, str], Measured]


def measure(series: Series, folder: Path, with_peers: bool) -> Measures:
    """Everything about one series."""
    scan = write_series(folder / "scan", series)
    result = result_of(scan)
    found = labels_of("source", folder / "scan", scan, series)
    # Reports differ only in the segmentation they refer to.
    for output in (one for one in dicom_outputs() if not one.startswith("dicom-sr:")):
        file = folder / f"result{suffix_of(output)}"
        result.save(file, to=output)
        found |= labels_of(output, file, scan, series)
        if output == "dicom-sr":
            found |= report_of(file, series)
        elif output == "dicom-sc":
            wrong, compared = wrong_sides(file, series)
            found[output, "pydicom"] = Measured(np.nan, np.nan, 1 - len(wrong) / compared)
    for name, write in peers.WRITERS.items() if with_peers else ():
        output = name.split()[-1]
        file = folder / f"{name.replace(' ', '-')}{suffix_of(output)}"
        try:
            write(scan, series, file)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            found |= {(name, reader.software): Measured(reason=reason) for reader in readers_of(output)}
        else:
            found |= labels_of(output, file, scan, series, name)
    return found


def labels_of(output: str, file: Path, scan: Path, series: Series, writer: str = "") -> Measures:
    """What each reader of an output finds."""
    found = {}
    for reader in readers_of(output):
        key = (writer or output, reader.software)
        if reader.missing:
            found[key] = Measured(reason=reader.missing)
            continue
        try:
            every = agreements(reader.read(file, scan), series)
        except Exception as error:
            found[key] = Measured(reason=f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            found[key] = Measured(
                max(one.millimetres for one in every),
                max(one.voxels for one in every),
                min(one.dice for one in every),
            )
    return found


def report_of(file: Path, series: Series) -> Measures:
    """What readers of reports find: the centre of mass, and how close the volume is."""
    true, found = true_values(series), {}
    readers = {"highdicom": report_by_highdicom}
    if program("tid1500reader"):
        readers["dcmqi"] = report_by_dcmqi
    for software, read in readers.items():
        reported = read(file)
        volumes = [1 - abs(reported[name].volume_ml / one.volume_ml - 1) for name, one in true.items()]
        apart = [
            centre_distance(reported[name].centre - one.centre, series.matrix)
            for name, one in true.items()
            if reported[name].centre is not None
        ] or [(np.nan, np.nan)]
        worst = np.max(apart, axis=0)
        found["dicom-sr", software] = Measured(float(worst[0]), float(worst[1]), float(min(volumes)))
    return found


def measured_alone(given: tuple[Series, bool]) -> tuple[Series, Measures]:
    """One series in a process of its own, without what libraries say about odd files."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    series, with_peers = given
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        return series, measure(series, Path(folder), with_peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/reference/dicom-positions.md"))
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="other writers too")
    chosen = parser.parse_args()
    everything: dict[tuple[str, str], dict[Series, Any]] = defaultdict(dict)
    jobs = [(series, chosen.peers) for series in all_series()]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for number, (series, found) in enumerate(pool.map(measured_alone, jobs), 1):
            for key, one in found.items():
                everything[key][series] = one
            print(f"{number} of {len(jobs)}: {series}", flush=True)
    chosen.output.write_text(page.written(everything), encoding="utf-8")


if __name__ == "__main__":
    main()
