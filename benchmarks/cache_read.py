"""The cache's compressed blocks against a plain memory-mapped .npy: bytes on disk, and the time to read a patch.

    VOLSEG_DATA=DATA python benchmarks/cache_read.py [--repeats 50] [--append]

The image is the CT case of `predict_vs_nnunet.py` (512 x 512 x 200 with noise, the hard case for compression), z-scored
in float32, and for the labels those voxels above one deviation. Patches lie anywhere; the files are in the page cache,
so this is the price of unpacking without the gain of reading less. Needs DATA/wild/ct_torso_3mm.nii.gz.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunet_cases import write_ct
from sides import as_table, publish

from volseg.data.cases.chunked_arrays import open_chunked, write_chunked

PATCHES = (40, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="patches of each size")
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ct(folder, (512, 512, 200))
        scan = np.asanyarray(nibabel.load(next(folder.glob("*.nii.gz"))).dataobj).T[None].astype(np.float32)
        image = (scan - scan.mean()) / scan.std()
        rows = []
        for kind, array in (("image", image), ("label", (image > 1).astype(np.uint8))):
            rows += rows_of(kind, array, folder, options.repeats)
    publish("Reading patches from the cache", "python benchmarks/cache_read.py", as_table(rows), options.append)


def rows_of(kind: str, array: np.ndarray, folder: Path, repeats: int) -> list[dict[str, object]]:
    """One row for each way of storing an array."""
    ways: dict[str, tuple[Callable[[Path, np.ndarray], object], Callable[[Path], Any]]] = {
        "memory-mapped.npy": (np.save, lambda path: np.load(path, mmap_mode="r")),
        "packed.b2nd": (write_chunked, open_chunked),
    }
    rows = []
    for way, (write, opened) in ways.items():
        path = folder / way
        started = time.perf_counter()
        write(path, array)
        seconds = time.perf_counter() - started
        size = path.stat().st_size
        row = {"array": kind, "file": way, "MiB": f"{size / 2**20:.1f}", "times smaller": f"{array.nbytes / size:.2f}"}
        row["seconds to write"] = f"{seconds:.2f}"
        for edge in PATCHES:
            row[f"ms per patch of {edge}"] = f"{1000 * patch_seconds(partial(opened, path), edge, repeats):.2f}"
        rows.append(row)
    return rows


def patch_seconds(opened: Callable[[], Any], edge: int, repeats: int) -> float:
    """The median time to open a file and read one patch of it."""
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
