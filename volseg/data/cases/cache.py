"""Preprocessed training cases on disk, so that each is read, oriented, normalised and resampled once.

A case is four files `<name>.<key>.*` in one folder:

    image.blocks       (C, D, H, W) float32, see `volseg.data.cases.chunked_arrays`
    label.blocks       (1, D, H, W) class indices, likewise
    foreground.blocks  (N, 3) int32 foreground voxels, label after label; then annotated voxels if others are ignored
    json               source files, mapping between image space and network space, row ranges of the foreground voxels

The key is a hash of the input files' bytes and of everything that preprocessing depends on, so a stale entry is never
used. The JSON file is written last: a case with all four files is complete, and an interrupted run continues with the
others. All four carry checksums: a case of which a file is gone, cut short or changed by as little as a bit is prepared
again, by the process that reads it.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from volseg.config import IGNORED, Plan, Triple
from volseg.data.cases.cache_key import cache_stem, content_key
from volseg.data.cases.chunked_arrays import open_chunked, write_chunked
from volseg.data.cases.dataset import TrainingCase
from volseg.data.cases.labels import table_of
from volseg.data.grid.geometry import GridMap
from volseg.data.grid.preprocess import classes_of, image_to_network, label_to_network
from volseg.data.io.formats import is_dicom
from volseg.data.io.reading import Scan, read_channels, read_label
from volseg.errors import InputError, ResourceError
from volseg.files import LEFTOVERS, as_json, as_tuples, open_regular, write_json

logger = logging.getLogger(__name__)

# Increased whenever reading, preprocessing or the files below change, so that older entries are written again.
FORMAT = 6
# Part of every key. It never changes, because the checkpoints of older runs know their cases by these keys.
_KEY_FORMAT = 4
IMAGE, LABEL, FOREGROUND = "image.blocks", "label.blocks", "foreground.blocks"
# What earlier formats had instead.
OLD_PARTS = ("image.b2nd", "label.b2nd", "foreground.npy")
# A third of a label's foreground voxels, of which all are read at once.
VOXEL_BLOCK = (4096, 3)
# The size of a JSON file that is surely none of ours.
MOST_JSON = 2**24
# Seconds after which an unfinished file belongs to a process that was killed: each is written in one go.
ABANDONED = 24 * 3600
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
    "dimensions": True,
    "crop": True,
    "image_resampling": True,
    "label_resampling": True,
    "spacing_mm": True,
}


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case: paths and small values only, so that it is cheap to send to another process.

    Where a file turns out to be damaged or gone while it is read, the case is prepared again. That raises what
    `cache_cases` raises.

    Args:
        case: the scan and label image it was made from.
        plan: the plan it was preprocessed for.
        stem: the common beginning of its files' paths.
        grid: the mapping between image space and network space.
        foreground_ranges: for label 1, 2, ...: the rows (start, stop) of its voxels in the foreground file.
        annotated_range: the rows of annotated voxels, which are those not ignored, background included; None if none
            or all voxels are ignored.
    """

    case: TrainingCase
    plan: Plan
    stem: Path
    grid: GridMap
    foreground_ranges: tuple[tuple[int, int], ...]
    annotated_range: tuple[int, int] | None = None

    @property
    def image(self) -> "Volume":
        """(C, D, H, W) float32; slicing it reads only the blocks of that slice."""
        return Volume(self, IMAGE, len(self.plan.channels))

    @property
    def label(self) -> "Volume":
        """(1, D, H, W) class indices, see `volseg.data.grid.preprocess.classes_of`; read in the same way."""
        return Volume(self, LABEL, 1)

    @property
    def shape(self) -> Triple:
        """(D, H, W) in network space."""
        return self.grid.shape

    def foreground(self, index: int) -> np.ndarray:
        """(N, 3) int32 foreground voxels of label `index`, at most 10 000."""
        return self.read(FOREGROUND, slice(*self.foreground_ranges[index - 1]))

    @property
    def annotated(self) -> np.ndarray | None:
        """(N, 3) int32 annotated voxels, at most 10 000; None if none or all voxels are ignored."""
        return None if self.annotated_range is None else self.read(FOREGROUND, slice(*self.annotated_range))

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that are annotated and occur in the case, counted from 1."""
        ranges = enumerate(self.foreground_ranges, start=1)
        return tuple(index for index, (start, stop) in ranges if stop > start and self.looked_for[index - 1])

    @property
    def looked_for(self) -> list[bool]:
        """For label 1, 2, ...: whether somebody looked for it in the case."""
        return self.case.own.flags(label.name for label in self.plan.labels)

    def read(self, part: str, index: Any) -> np.ndarray:
        """A slice of one of the case's files.

        Raises:
            InputError: the case has to be prepared again, but cannot be, or has changed since.
            ResourceError: it has to be prepared again, but cannot be written or still not be read.
        """
        try:
            return open_chunked(_part(self.stem, part))[index]
        except (OSError, ValueError) as error:
            logger.warning("Case %s: %s in the cache is damaged (%s), so it is prepared again", self.case.name, part,
                           getattr(error, "strerror", None) or error)  # fmt: skip
        if cache_stem(self.stem.parent, self.case, cache_key(self.case, self.plan)) != self.stem:
            raise InputError(
                f"Case {self.case.name}: its files in the cache are damaged, and the case has changed since the run "
                "began. Restore the case and resume the run, or start again with --overwrite."
            )
        _preprocess(self.case, self.plan, self.stem)
        try:
            return open_chunked(_part(self.stem, part))[index]
        except (OSError, ValueError) as error:
            raise ResourceError(
                f"Case {self.case.name}: {part} in the cache was written again and still cannot be read "
                f"({getattr(error, 'strerror', None) or error}). Check the disk, then resume with --resume."
            ) from error


@dataclass(frozen=True)
class Volume:
    """The image or the label image of a cached case; slicing it gives a NumPy array.

    Args:
        cached: the case.
        part: the file.
        channels: of the volume.
    """

    cached: CachedCase
    part: str
    channels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, D, H, W)."""
        return (self.channels, *self.cached.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.cached.read(self.part, index)


def cache_cases(
    cases: Sequence[TrainingCase], plan: Plan, folder: Path, progress: Callable[[int, int], None] | None = None
) -> list[CachedCase]:
    """Preprocess all cases that are not in the cache yet, a few at a time.

    Unfinished files that are older than `ABANDONED` are removed from the folder.

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
    _remove_abandoned(Path(folder))
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
    preprocessing = plan.model_dump(mode="json", include=PREPROCESSING)
    facts = {"format": _KEY_FORMAT, "plan": preprocessing, **names, **case.own.facts}
    return content_key(case, facts)


def read_for_plan(case: TrainingCase, plan: Plan) -> tuple[Scan, Scan]:
    """Read a case and its label image without preprocessing, and check them against a plan's channels and labels.

    Raises:
        InputError: they cannot be used; the message names the case.
    """
    try:
        scan = read_channels(case.images, len(plan.channels))
        known = {*plan.stored_values, *([plan.ignore] if plan.ignore else [])}
        return scan, case.own.read(read_label, case.label, scan.geometry, known, table_of(plan))
    except InputError as error:
        raise InputError(f"Case {case.name}: {error}") from error


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left in a cache; what another process writes at the moment is younger."""
    with suppress(OSError):
        for path in folder.glob(LEFTOVERS):
            with suppress(OSError):
                if path.lstat().st_mtime < time.time() - ABANDONED:
                    path.unlink()


def _cached(case: TrainingCase, plan: Plan, folder: Path) -> CachedCase:
    """The entry of a case, created if it is missing or damaged."""
    stem = cache_stem(folder, case, cache_key(case, plan))
    found = _load(case, plan, stem)
    if not found:
        _preprocess(case, plan, stem)
        found = _load(case, plan, stem)
    if not found:
        raise ResourceError(f"Case {case.name}: {stem.name}.* changes in {folder} while it is prepared. Start again.")
    return found


def _preprocess(case: TrainingCase, plan: Plan, stem: Path) -> None:
    """Write the four files of a case.

    Raises:
        InputError: it cannot be used; the message names it.
        ResourceError: they cannot be written; likewise.
    """
    try:
        _write(case, plan, stem)
    except ResourceError as error:
        raise ResourceError(f"Case {case.name} cannot be kept in the cache. {error}") from error


def _write(case: TrainingCase, plan: Plan, stem: Path) -> None:
    scan, reference = read_for_plan(case, plan)
    image, grid = image_to_network(list(scan.channels), scan.geometry, plan)
    label = label_to_network(reference.channels[0], grid, plan).numpy()
    foreground, ranges, annotated = foreground_table(label, plan)
    write_chunked(_part(stem, IMAGE), image.numpy())
    write_chunked(_part(stem, LABEL), label[None])
    write_chunked(_part(stem, FOREGROUND), foreground, VOXEL_BLOCK)
    sources = {"images": [str(path) for path in case.images], "label": str(case.label)}
    rows = {"foreground_ranges": ranges, "known_range": annotated}
    document = {"format": FORMAT, **sources, "grid": asdict(grid), **rows}
    write_json(_part(stem, "json"), document | {"crc32": _checksum(document)})
    for part in OLD_PARTS:
        with suppress(OSError):
            _part(stem, part).unlink(missing_ok=True)


def _load(case: TrainingCase, plan: Plan, stem: Path) -> CachedCase | None:
    """The entry of a case; None if it is incomplete, of another format, or damaged as far as its headers show."""
    try:
        with open_regular(_part(stem, "json")) as handle:
            document = json.loads(handle.read(MOST_JSON))
        if document["format"] != FORMAT or document.pop("crc32") != _checksum(document):
            return None
        grid = GridMap(**{name: as_tuples(value) for name, value in document["grid"].items()})
        rows = (as_tuples(document[key]) for key in ("foreground_ranges", "known_range"))
        entry = CachedCase(case, plan, stem, grid, *rows)
        stated = {IMAGE: (entry.image.shape, ("float32",)), LABEL: (entry.label.shape, ("uint8", "int16"))}
        for part, (shape, dtypes) in stated.items():
            found = open_chunked(_part(stem, part))
            if found.shape != shape or found.dtype.name not in dtypes:
                return None
        voxels = open_chunked(_part(stem, FOREGROUND))
        last = max(stop for _, stop in (*entry.foreground_ranges, entry.annotated_range or (0, 0)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return entry if (voxels.shape, voxels.dtype.name) == ((last, 3), "int32") else None


def _checksum(document: dict[str, Any]) -> int:
    """The CRC-32 of a JSON document."""
    checksum: int = crc32(as_json(document).encode())
    return checksum


def foreground_table(label: np.ndarray, plan: Plan) -> tuple[np.ndarray, list[tuple[int, int]], tuple[int, int] | None]:
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
