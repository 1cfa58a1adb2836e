"""The cache's compressed blocks against a plain memory-mapped .npy: size on disk, and the time to read a patch.

    VOLSEG_DATA=DATA python benchmarks/data/cache_read.py [--repeats 50] [--record]

The image is the CT case of `predict_vs_nnunet.py` (512 x 512 x 200 with noise, the hard case for compression), z-scored
in float32; the labels are its voxels above one standard deviation. Patches lie at random positions. The files are in
the page cache, so this is the cost of decompression without the gain of reading less from disk. Needs
DATA/wild/ct_torso_3mm.nii.gz.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.record import publish, record_options
from common.results import Row, headline, ratio, rounded, table

from data.scans import write_ct
from volseg.data.cases.chunked_arrays import open_chunked, write_chunked

PATCHES = (40, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="patches of each size")
    record_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ct(folder, (512, 512, 200))
        scan = np.asanyarray(nibabel.load(next(folder.glob("*.nii.gz"))).dataobj).T[None].astype(np.float32)
        image = (scan - scan.mean()) / scan.std()
        arrays = {"image": image, "label": (image > 1).astype(np.uint8)}
        tables = [table_of(kind, array, folder, options.repeats) for kind, array in arrays.items()]
    publish(
        options,
        "cache-read",
        "Reading patches from the cache",
        tables,
        [headline("compressed CT image in the cache", "image, packed.b2nd", "MiB")],
        note="The files are in the page cache, so this is the cost of decompression alone.",
    )


def table_of(kind: str, array: np.ndarray, folder: Path, repeats: int) -> dict[str, Any]:
    """The table of an array: one row for each way of storing it."""
    ways: dict[str, tuple[Callable[[Path, np.ndarray], object], Callable[[Path], Any]]] = {
        "memory-mapped.npy": (np.save, lambda path: np.load(path, mmap_mode="r")),
        "packed.b2nd": (write_chunked, open_chunked),
    }
    rows: list[Row] = []
    for way, (write, opened) in ways.items():
        path = folder / way
        started = time.perf_counter()
        write(path, array)
        seconds = time.perf_counter() - started
        row = {
            "file": f"{kind}, {way}",
            "MiB": rounded(path.stat().st_size / 2**20),
            "seconds to write": rounded(seconds),
        }
        for edge in PATCHES:
            row[f"ms per patch of {edge}"] = rounded(1000 * patch_seconds(partial(opened, path), edge, repeats))
        rows.append(row)
    plain = rows[0]["file"]
    faster = [ratio("times as fast", f"ms per patch of {edge}", baseline=plain) for edge in PATCHES]
    return table(rows, [ratio("times smaller", "MiB", baseline=plain), *faster], kind.capitalize())


def patch_seconds(opened: Callable[[], Any], edge: int, repeats: int) -> float:
    """The median time to open a file and read one patch from it."""
    rng, seconds = np.random.default_rng(0), []
    for _ in range(repeats):
        started = time.perf_counter()
        volume = opened()
        start = [int(rng.integers(length - edge)) for length in volume.shape[1:]]
        np.array(volume[(slice(None), *(slice(low, low + edge) for low in start))])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
