"""Preprocessed training cases on disk, so that each is read, oriented, normalised and resampled once.

A case is four files `<name>.<key>.*` in one folder: `image.b2nd` float32 (C, D, H, W) and `label.b2nd` class indices
(1, D, H, W), both of `volseg.data.cases.chunked_arrays`, `foreground.npy` int32 (N, 3) voxels of each label in turn, and `json`. The
key is a hash of the input files' bytes and of all that preprocessing depends on, so nothing stale is ever used. The
json file is written last: a case that has all four is complete, and work that was cut off goes on where it stopped.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from blosc2 import NDArray

from volseg.config import IGNORED, Plan, Triple
from volseg.data.cases.cache_key import cache_stem, content_key
from volseg.data.cases.chunked_arrays import open_chunked, write_chunked
from volseg.data.cases.dataset import TrainingCase
from volseg.data.grid.geometry import GridMap
from volseg.data.grid.preprocess import classes_of, image_to_network, label_to_network
from volseg.data.io.reading import Scan, read_channels, read_label
from volseg.errors import InputError
from volseg.files import as_tuples, whole_file, write_json

# Raised whenever preprocessing or the files below change, so that older ones are not taken for current ones.
FORMAT = 4
PARTS = ("image.b2nd", "label.b2nd", "foreground.npy", "json")
# As many voxels per class as nnU-Net keeps for drawing patches.
VOXELS_PER_CLASS = 10_000
# Cases that are prepared at the same time: one is resampled while another is read or written.
AT_ONCE = 2
# The parts of a plan that change what is cached.
PREPROCESSING: Any = {
    "channels": {"__all__": {"normalisation", "clip", "mean", "std"}},
    "labels": {"__all__": {"value", "parts"}},
    "ignore": True,
    "orientation": True,
    "axes": True,
    "crop": True,
    "image_resampling": True,
    "spacing_mm": True,
}


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case: paths and small facts only, so that it is cheap to send to another process.

    Args:
        case: where it comes from.
        stem: the path that its files begin with.
        grid: the map from the stored scan to the network's grid.
        foreground_ranges: for label 1, 2, ...: the rows (start, stop) of its voxels in the foreground file.
        known_range: the rows of voxels that are not ignored, background included; None where none or all are.
    """

    case: TrainingCase
    stem: Path
    grid: GridMap
    foreground_ranges: tuple[tuple[int, int], ...]
    known_range: tuple[int, int] | None = None

    @property
    def image(self) -> NDArray:
        """(C, D, H, W) float32; a slice of it is read when it is asked for."""
        return open_chunked(_part(self.stem, "image.b2nd"))

    @property
    def label(self) -> NDArray:
        """(1, D, H, W) class indices as of `volseg.data.grid.preprocess.classes_of`, read in the same way."""
        return open_chunked(_part(self.stem, "label.b2nd"))

    @property
    def shape(self) -> Triple:
        """(D, H, W) on the network's grid."""
        return self.grid.shape

    def foreground(self, index: int) -> np.ndarray:
        """(N, 3) int32 voxels of label `index`, at most 10 000 of them, memory-mapped."""
        return self._voxels[slice(*self.foreground_ranges[index - 1])]

    @property
    def known(self) -> np.ndarray | None:
        """(N, 3) int32 voxels that are not ignored, at most 10 000 of them; None where none or all are."""
        return None if self.known_range is None else self._voxels[slice(*self.known_range)]

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur in the case, counted from 1."""
        ranges = enumerate(self.foreground_ranges, start=1)
        return tuple(index for index, (start, stop) in ranges if stop > start)

    @property
    def _voxels(self) -> np.ndarray:
        table: np.ndarray = np.load(_part(self.stem, "foreground.npy"), mmap_mode="r", allow_pickle=False)
        return table


def cache_cases(
    cases: Sequence[TrainingCase], plan: Plan, folder: Path, progress: Callable[[int, int], None] | None = None
) -> list[CachedCase]:
    """Preprocess all cases that are not in the cache yet, a few at a time.

    Args:
        cases: to preprocess.
        plan: whose grid and normalisation they get.
        folder: of the cache; made if it is not there.
        progress: called with the number of cases done and of all cases, after each, in their order.

    Returns:
        One entry per case, in their order.

    Raises:
        InputError: a case cannot be used; the message names it. No further case is begun.
        ResourceError: the disk is full.
    """
    cached = []
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="volseg-prepare") as pool:
        for one in pool.map(partial(_cached, plan=plan, folder=Path(folder)), cases):
            cached.append(one)
            if progress:
                progress(len(cached), len(cases))
    return cached


def cache_key(case: TrainingCase, plan: Plan) -> str:
    """The `content_key` of a case that is preprocessed as a plan says.

    Raises:
        InputError: a file cannot be read.
    """
    return content_key(case, {"format": FORMAT, "plan": plan.model_dump(mode="json", include=PREPROCESSING)})


def read_for_plan(case: TrainingCase, plan: Plan) -> tuple[Scan, Scan]:
    """Read a case and its label image, stored values, and check them against the channels and labels of a plan.

    Raises:
        InputError: they cannot be used; the message names the case.
    """
    try:
        scan = read_channels(case.images, len(plan.channels))
        known = {*plan.stored_values, *([plan.ignore] if plan.ignore else [])}
        return scan, read_label(case.label, like=scan.geometry, known=known)
    except InputError as error:
        raise InputError(f"Case {case.name}: {error}") from error


def _cached(case: TrainingCase, plan: Plan, folder: Path) -> CachedCase:
    """The entry of a case, made where there is none."""
    stem = cache_stem(folder, case, cache_key(case, plan))
    if not all(_part(stem, part).exists() for part in PARTS):
        _preprocess(case, plan, stem)
    return _load(case, stem)


def _preprocess(case: TrainingCase, plan: Plan, stem: Path) -> None:
    """Write the four files of a case."""
    scan, reference = read_for_plan(case, plan)
    image, grid = image_to_network(list(scan.channels), scan.geometry, plan)
    label = label_to_network(reference.channels[0], grid, plan).numpy()
    foreground, ranges, known = _foreground(label, plan)
    write_chunked(_part(stem, "image.b2nd"), image.numpy())
    write_chunked(_part(stem, "label.b2nd"), label[None])
    with whole_file(_part(stem, "foreground.npy")) as temporary:
        np.save(temporary, foreground, allow_pickle=False)
    sources = {"images": [str(path) for path in case.images], "label": str(case.label)}
    rows = {"foreground_ranges": ranges, "known_range": known}
    write_json(_part(stem, "json"), {"format": FORMAT, **sources, "grid": asdict(grid), **rows})


def _load(case: TrainingCase, stem: Path) -> CachedCase:
    """The entry of a complete case."""
    document = json.loads(_part(stem, "json").read_text(encoding="utf-8"))
    grid = GridMap(**{name: as_tuples(value) for name, value in document["grid"].items()})
    return CachedCase(case, stem, grid, *(as_tuples(document[rows]) for rows in ("foreground_ranges", "known_range")))


def _foreground(label: np.ndarray, plan: Plan) -> tuple[np.ndarray, list[tuple[int, int]], tuple[int, int] | None]:
    """The foreground file as (N, 3) int32, a random subset of what is large, and the rows that `CachedCase` holds."""
    rng = np.random.default_rng(label.size)
    masks = (np.isin(label, classes_of(np.array(one.stored_values), plan)) for one in plan.labels)
    ignored = label == IGNORED
    ranges, voxels, start = [], [], 0
    for mask in chain(masks, [~ignored] if 0 < np.count_nonzero(ignored) < label.size else []):
        found = np.flatnonzero(mask)
        if len(found) > VOXELS_PER_CLASS:
            found = np.sort(rng.choice(found, VOXELS_PER_CLASS, replace=False, shuffle=False))
        ranges.append((start, start + len(found)))
        voxels.append(found)
        start += len(found)
    table = np.column_stack(np.unravel_index(np.concatenate(voxels), label.shape)).astype(np.int32)
    labels = len(plan.labels)
    return table, ranges[:labels], ranges[-1] if len(ranges) > labels else None


def _part(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}.{part}")
