"""Preprocessed training cases on disk, so that each is read, oriented, normalised and resampled once.

A case is four files `<name>.<key>.*` in one folder:

    image.b2nd      (C, D, H, W) float32, see `volseg.data.cases.chunked_arrays`
    label.b2nd      (1, D, H, W) class indices, likewise
    foreground.npy  (N, 3) int32 foreground voxels, label after label; then annotated voxels if others are ignored
    json            source files, mapping between image space and network space, row ranges of foreground.npy

The key is a hash of the input files' bytes and of everything that preprocessing depends on, so a stale entry is never
used. The JSON file is written last: a case with all four files is complete, and an interrupted run continues with the
others.
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
from volseg.data.cases.labels import table_of
from volseg.data.grid.geometry import GridMap
from volseg.data.grid.preprocess import classes_of, image_to_network, label_to_network
from volseg.data.io.formats import is_dicom
from volseg.data.io.reading import Scan, read_channels, read_label
from volseg.errors import InputError
from volseg.files import as_tuples, whole_file, write_json

# Increased whenever reading, preprocessing or the files below change, so that older entries are written again.
FORMAT = 5
# Part of every key. It never changes, because the checkpoints of older runs know their cases by these keys.
_KEY_FORMAT = 4
PARTS = ("image.b2nd", "label.b2nd", "foreground.npy", "json")
# Foreground voxels kept per class for patch sampling, as many as in nnU-Net.
VOXELS_PER_CLASS = 10_000
# Cases prepared at the same time: one is resampled while another is read or written.
PARALLEL_CASES = 2
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
    """A preprocessed case: paths and small values only, so that it is cheap to send to another process.

    Args:
        case: the scan and label image it was made from.
        stem: the common beginning of its files' paths.
        grid: the mapping between image space and network space.
        foreground_ranges: for label 1, 2, ...: the rows (start, stop) of its voxels in the foreground file.
        annotated_range: the rows of annotated voxels, which are those not ignored, background included; None if none
            or all voxels are ignored.
    """

    case: TrainingCase
    stem: Path
    grid: GridMap
    foreground_ranges: tuple[tuple[int, int], ...]
    annotated_range: tuple[int, int] | None = None

    @property
    def image(self) -> NDArray:
        """(C, D, H, W) float32; slicing it reads only the blocks of that slice."""
        return open_chunked(_part(self.stem, "image.b2nd"))

    @property
    def label(self) -> NDArray:
        """(1, D, H, W) class indices, see `volseg.data.grid.preprocess.classes_of`; read in the same way."""
        return open_chunked(_part(self.stem, "label.b2nd"))

    @property
    def shape(self) -> Triple:
        """(D, H, W) in network space."""
        return self.grid.shape

    def foreground(self, index: int) -> np.ndarray:
        """(N, 3) int32 foreground voxels of label `index`, at most 10 000, memory-mapped."""
        return self._voxels[slice(*self.foreground_ranges[index - 1])]

    @property
    def annotated(self) -> np.ndarray | None:
        """(N, 3) int32 annotated voxels, at most 10 000; None if none or all voxels are ignored."""
        return None if self.annotated_range is None else self._voxels[slice(*self.annotated_range)]

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
        plan: sets spacing, orientation, cropping and normalisation.
        folder: of the cache; created if missing.
        progress: called after each case, in order, with the number of finished cases and of all cases.

    Returns:
        One entry per case, in the same order.

    Raises:
        InputError: a case cannot be used; the message names it. No further case is started.
        ResourceError: the disk is full.
    """
    cached = []
    with ThreadPoolExecutor(PARALLEL_CASES, thread_name_prefix="volseg-prepare") as pool:
        for one in pool.map(partial(_cached, plan=plan, folder=Path(folder)), cases):
            cached.append(one)
            if progress:
                progress(len(cached), len(cases))
    return cached


def cache_key(case: TrainingCase, plan: Plan) -> str:
    """The `content_key` of a case preprocessed for a plan.

    Raises:
        InputError: a file cannot be read.
    """
    # The labels of DICOM have their values by name.
    names = {"names": [label.name for label in plan.labels]} if is_dicom(case.label) else {}
    facts = {"format": _KEY_FORMAT, "plan": plan.model_dump(mode="json", include=PREPROCESSING), **names}
    return content_key(case, facts)


def read_for_plan(case: TrainingCase, plan: Plan) -> tuple[Scan, Scan]:
    """Read a case and its label image without preprocessing, and check them against a plan's channels and labels.

    Raises:
        InputError: they cannot be used; the message names the case.
    """
    try:
        scan = read_channels(case.images, len(plan.channels))
        known = {*plan.stored_values, *([plan.ignore] if plan.ignore else [])}
        return scan, read_label(case.label, like=scan.geometry, known=known, labels=table_of(plan))
    except InputError as error:
        raise InputError(f"Case {case.name}: {error}") from error


def _cached(case: TrainingCase, plan: Plan, folder: Path) -> CachedCase:
    """The entry of a case, created if missing."""
    stem = cache_stem(folder, case, cache_key(case, plan))
    if not _is_current(stem):
        _preprocess(case, plan, stem)
    return _load(case, stem)


def _is_current(stem: Path) -> bool:
    """Whether all files of an entry are there and of this format; the JSON file is written last."""
    if not all(_part(stem, part).exists() for part in PARTS):
        return False
    return bool(json.loads(_part(stem, "json").read_text(encoding="utf-8")).get("format") == FORMAT)


def _preprocess(case: TrainingCase, plan: Plan, stem: Path) -> None:
    """Write the four files of a case."""
    scan, reference = read_for_plan(case, plan)
    image, grid = image_to_network(list(scan.channels), scan.geometry, plan)
    label = label_to_network(reference.channels[0], grid, plan).numpy()
    foreground, ranges, annotated = _foreground(label, plan)
    write_chunked(_part(stem, "image.b2nd"), image.numpy())
    write_chunked(_part(stem, "label.b2nd"), label[None])
    with whole_file(_part(stem, "foreground.npy")) as temporary:
        np.save(temporary, foreground, allow_pickle=False)
    sources = {"images": [str(path) for path in case.images], "label": str(case.label)}
    rows = {"foreground_ranges": ranges, "known_range": annotated}
    write_json(_part(stem, "json"), {"format": FORMAT, **sources, "grid": asdict(grid), **rows})


def _load(case: TrainingCase, stem: Path) -> CachedCase:
    """The entry of a complete case."""
    document = json.loads(_part(stem, "json").read_text(encoding="utf-8"))
    grid = GridMap(**{name: as_tuples(value) for name, value in document["grid"].items()})
    return CachedCase(case, stem, grid, *(as_tuples(document[key]) for key in ("foreground_ranges", "known_range")))


def _foreground(label: np.ndarray, plan: Plan) -> tuple[np.ndarray, list[tuple[int, int]], tuple[int, int] | None]:
    """The foreground file, (N, 3) int32 with a random subset of large classes, and the row ranges of `CachedCase`."""
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
