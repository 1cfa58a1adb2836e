"""Compare volseg's reading of DICOM with SimpleITK, highdicom and dcm2niix: who gives which volume.

    VOLSEG_DATA=DATA python benchmarks/reading/oracles.py [--all] [--record]

The inputs are the series below DATA/dicom and DATA/wild, the test files that pydicom ships, and files that seeded
scripts write (tests/reading): plain ones, and ones that are odd on purpose, of which the standard says what is right.
Prints how many series each reader gives the same volume of as volseg, and each series of which one of them gives
another, or which volseg refuses and another reads; with --all every series. Needs the extra `test`; without VOLSEG_DATA
the real series are left out.
"""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.record import CHECKOUT, publish, record_options
from common.results import Row, headline, table

# The other readers and the writers are part of the tests, which are not installed.
sys.path.insert(0, str(CHECKOUT))

from tests.reading import dicom
from tests.reading.kinds import DESCRIBED, NAMED, SEVERAL, VOLUME, kind
from tests.reading.oracles import OTHERS, compared, judged, of_pydicom, series_below
from tests.reading.right import Right
from tests.reading.volume import ORDERS, Volume, grid, sample

SEEDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every series")
    record_options(parser)
    options = parser.parse_args()
    # What pydicom says of files that are odd on purpose.
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="volseg-oracles-") as folder:
        for origin, series in sources(Path(folder)).items():
            found = {name: compared(files) for name, files in series.items()}
            for name, row in found.items():
                if options.all or worth_a_look(row):
                    print(f"{origin}: {name}", *(f"    {reader}: {text}" for reader, text in row.items()), sep="\n")
            rows += summary(origin, list(found.values()))
        known = odd(Path(folder) / "odd")
    publish(
        options, "reading-oracles", "DICOM as other readers read it",
        [table(rows), table(known, caption="Series that are odd on purpose")],
        [headline("series of which dcm2niix gives another volume", f"dcm2niix, {origin}", "another volume")],
    )  # fmt: skip


def sources(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Series by where they are from."""
    found = {}
    if data := os.environ.get("VOLSEG_DATA"):
        found["real series"] = series_below(Path(data) / "dicom") | series_below(Path(data) / "wild")
    return found | {"pydicom's test files": of_pydicom(), "seeded scripts": written(folder)}


def written(folder: Path) -> dict[str, list[Path]]:
    """Files of known volumes: single slices and frames, in all sorts of orders, upright and oblique."""
    series = {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        affine = grid(degrees=float(rng.choice([0, 12])), order=int(rng.integers(len(ORDERS))))
        volume = Volume(sample(rng.choice(["i2", "u2"]), seed=seed), affine)
        slices = dicom.save_folder(dicom.slices(volume, 2, -10), folder / f"slices-{seed}")
        slopes = [1.0 + 0.25 * k * (seed % 2) for k in range(volume.voxels.shape[2])]
        frames = dicom.save(dicom.frames(volume, slopes, -10), folder / f"frames-{seed}.dcm")
        series |= {slices.name: sorted(slices.iterdir()), frames.name: [frames]}
    return series


def odd(folder: Path) -> list[Row]:
    """Series of which the standard says what is right: who reads them rightly."""
    rows = []
    for name in [*DESCRIBED, *NAMED, *SEVERAL]:
        datasets, right = kind(name)
        path = dicom.save_folder(datasets, folder / name)
        answers = judged(path, sorted(path.iterdir()), right)
        rows.append({"series": name, "right": "volume" if right.volumes else "refusal", **answers})
    slopes = [0.5, 1.0, 1.5, 2.0, 2.5]
    path = dicom.save(dicom.frames(VOLUME, slopes), folder / "frames.dcm")
    answers = judged(path, [path], Right((Volume(VOLUME.voxels * np.array(slopes), VOLUME.affine),)))
    return [*rows, {"series": "enhanced, slope per frame", "right": "volume", **answers}]


def worth_a_look(row: dict[str, str]) -> bool:
    """Another volume than volseg's, or one where volseg has none."""
    return any(not row[reader].startswith(("same", "no volume")) for reader in OTHERS)


def summary(origin: str, found: list[dict[str, str]]) -> list[Row]:
    """How often each reader agrees."""
    rows = []
    for reader in OTHERS:
        said = [row[reader] for row in found]
        same, none, alone = (sum(text.startswith(kind) for text in said) for kind in ("same", "no volume", "volume"))
        both_none = sum(row[reader].startswith("no") and row["volseg"].startswith("refused") for row in found)
        rows.append({
            "reader": f"{reader}, {origin}", "series": len(found), "same volume": same,
            "another volume": len(found) - same - none - alone, "only volseg reads": none - both_none,
            "volseg refuses": alone, "neither reads": both_none,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
