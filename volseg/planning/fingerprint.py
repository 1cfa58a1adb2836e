"""The fingerprint of a dataset: shapes, spacings, intensities, label volumes and contrasts, case by case.

Spatial triples are in the order R, A, S: the scan's axes after reorientation to the closest RAS+ order.
"""

import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np

from volseg.data.cases.cache_key import cache_stem, content_key
from volseg.data.cases.dataset import Dataset, TrainingCase
from volseg.data.cases.problems import case_problems, duplicate_problems, voxel_digest
from volseg.data.grid.geometry import Geometry, ras_order
from volseg.data.grid.histogram import intensity_quantiles
from volseg.data.grid.intensities import as_exact_float
from volseg.data.grid.nonzero import filled_nonzero, nonzero_box
from volseg.data.io.dicom_labels.label_names import Table
from volseg.data.io.reading import Scan, read_channels, read_label
from volseg.errors import DatasetError, InputError, Problem
from volseg.files import as_tuples, open_regular, whole_file
from volseg.text import by_sentence, first_few

logger = logging.getLogger(__name__)

SAMPLES_PER_CASE = 10_000
# Scans read at the same time. Each is in memory twice: as stored in its file, and as an array.
READERS = 2
# Increased whenever a measurement changes, so that cached ones of an older version are not used.
FORMAT = 4
T = TypeVar("T", int, float)
# NumPy parses the header of a file with Python's ast, which in Python 3.11 fails at random in two threads at once
# (SystemError: AST constructor recursion depth mismatch, CPython issue 106905).
_HEADERS = threading.Lock()


@dataclass(frozen=True)
class CaseFingerprint:
    """One case.

    Args:
        name: of the case.
        shape: voxels along R, A, S.
        spacing_mm: along R, A, S.
        volumes_ml: of each annotated label or region, 0 where it is absent; see `unstated`.
        offsets: per label that is present: its centroid minus the centroid of the whole foreground along R, A, S, as a
            fraction of the edge of the foreground's bounding box.
        contrasts: per label that is present, and per channel: standardised mean difference between the label and the
            rest of the scan (without ignored voxels), in standard deviations of the whole scan.
        means: per channel, mean intensity of the whole scan.
        samples: (C, n) intensities of up to 10 000 foreground voxels, sampled at random; float32, or float64 for a
            large offset.
        warnings: assumptions made when its files were read, one sentence each.
        unstated: why spacings and volumes are assumptions, see `volseg.data.io.reading.Scan`; empty if they are not.
        masked: fraction of the voxels that are 0 in all channels and connected to the border of the scan, as around a
            skull-stripped brain.
        nonzero_shape: voxels along R, A, S of the bounding box of all nonzero voxels; None if it is the whole scan.
        cut_ml: foreground outside that box, mL.
        intensities: per channel, see `volseg.data.grid.histogram.intensity_quantiles`, of all voxels, and of those that
            are not 0.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    volumes_ml: dict[str, float]
    offsets: dict[str, tuple[float, float, float]]
    contrasts: dict[str, tuple[float, ...]]
    means: tuple[float, ...]
    samples: np.ndarray
    warnings: tuple[str, ...] = ()
    unstated: str = ""
    masked: float = 0.0
    nonzero_shape: tuple[int, int, int] | None = None
    cut_ml: float = 0.0
    intensities: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()

    @property
    def scan_ml(self) -> float:
        """Volume of the whole scan in mL."""
        return float(np.prod(self.shape) * np.prod(self.spacing_mm)) / 1000


@dataclass(frozen=True)
class ChannelFingerprint:
    """Intensities of one channel over all cases.

    Args:
        name: of the channel.
        percentiles: 0.5 and 99.5 percentile of the foreground voxels.
        mean: of the foreground voxels.
        std: of the foreground voxels.
        mean_range: lowest and highest mean intensity of a whole scan.
    """

    name: str
    percentiles: tuple[float, float]
    mean: float
    std: float
    mean_range: tuple[float, float]


@dataclass(frozen=True)
class Fingerprint:
    """The measurements of all cases, and the intensities of each channel."""

    cases: tuple[CaseFingerprint, ...]
    channels: tuple[ChannelFingerprint, ...]

    def volume_ml_range(self, label: str) -> tuple[float, float] | None:
        """Smallest and largest volume of a label over the cases with annotation of it that state their size, mL; None
        if there is none."""
        volumes = [case.volumes_ml[label] for case in self.cases if label in case.volumes_ml and not case.unstated]
        return (min(volumes), max(volumes)) if volumes else None

    @property
    def labels(self) -> list[str]:
        """The names of all labels that are annotated in a case."""
        return list(dict.fromkeys(name for case in self.cases for name in case.volumes_ml))

    def annotated(self, label: str) -> int:
        """The number of cases in which a label is annotated."""
        return sum(label in case.volumes_ml for case in self.cases)

    @property
    def warnings(self) -> list[str]:
        """The warnings of all cases, each once, with the number of cases and the names of the first few."""
        return by_sentence({case.name: case.warnings for case in self.cases})


class _CaseCheck(NamedTuple):
    """The fingerprint of a case or its problems, and the digest of its image if the image is usable."""

    fingerprint: CaseFingerprint | None
    problems: list[Problem]
    digest: str | None


def take_fingerprint(dataset: Dataset, cache: Path | None = None) -> Fingerprint:
    """Read and measure every case once; only a few scans are in memory at a time.

    Cases without a foreground voxel are used, with a warning in the log, where the warnings of reading are too.

    Args:
        dataset: the cases.
        cache: a folder for the measurements of each case; the next call reads a scan again only if its file has
            changed. None: no cache.

    Raises:
        DatasetError: all problems of all cases at once; or no case has a foreground voxel.
    """
    with ThreadPoolExecutor(READERS) as pool:
        checks = dict(zip(dataset.cases, pool.map(partial(_check_case, dataset, cache), dataset.cases), strict=True))
    problems = [*dataset.problems, *(problem for check in checks.values() for problem in check.problems)]
    problems += duplicate_problems({case.name: check.digest for case, check in checks.items() if check.digest})
    measured = [check.fingerprint for check in checks.values() if check.fingerprint]
    empty = [case.name for case in measured if not case.offsets]
    if measured and len(empty) == len(measured):
        found = f"the label images of all {len(empty)} cases contain only background"
        problems.append(Problem("all", "no label", found, "check the label images"))
    if problems:
        # Paths relative to the dataset's folder are shorter.
        inside = "" if dataset.folder is None else f"{dataset.folder}{os.sep}"
        raise DatasetError(
            dataset.name,
            [row._replace(found=row.found.replace(inside, "") if inside else row.found) for row in problems],
        )
    if empty:
        logger.warning("%d of %d cases have no foreground voxel: %s.", len(empty), len(measured), first_few(empty))
    channels = (_channel(name, index, measured) for index, name in enumerate(dataset.channels))
    fingerprint = Fingerprint(tuple(measured), tuple(channels))
    for warning in fingerprint.warnings:
        logger.warning("%s", warning)
    return fingerprint


def _check_case(dataset: Dataset, cache: Path | None, case: TrainingCase) -> _CaseCheck:
    """Measure a case or find all its problems, unless its measurements are in the cache."""
    labels = dataset.labels
    digest: str | None = None
    try:
        file = cache and _cache_file(dataset, cache, case)
        if file and (cached := _read_cached(file)):
            return cached
        scan = read_channels(case.images, len(dataset.channels))
        digest = voxel_digest(scan)
        label = case.own.read(read_label, case.label, scan.geometry, labels.known, labels.table)
    except InputError as error:
        first = Problem(case.name, error.problem, error.found, error.remedy or "fix it, or remove the case")
        return _CaseCheck(
            None, case_problems(case, len(dataset.channels), labels.known, labels.table) or [first], digest
        )
    check = _CaseCheck(_case_fingerprint(dataset, case, scan, label), [], digest)
    if file:
        _write_cached(check, file)
    return check


def _cache_file(dataset: Dataset, cache: Path, case: TrainingCase) -> Path:
    """The cache file of a case; its name depends on everything that the measurements depend on."""
    labels = {"stored": list(dataset.labels.stored.items()), "ignore": dataset.labels.ignore}
    channels = len(dataset.channels)
    facts = {"format": FORMAT, "name": case.name, "labels": labels, "channels": channels, **case.own.facts}
    stem = cache_stem(cache, case, content_key(case, facts))
    return stem.with_name(f"{stem.name}.npz")


def _write_cached(check: _CaseCheck, file: Path) -> None:
    """Write the measurements of a case without problems."""
    assert check.fingerprint
    facts = {item.name: getattr(check.fingerprint, item.name) for item in fields(CaseFingerprint)}
    samples = facts.pop("samples")
    with whole_file(file) as temporary:
        np.savez(temporary, samples=samples, facts=np.array(json.dumps(facts | {"digest": check.digest})))


def _read_cached(file: Path) -> _CaseCheck | None:
    """The measurements that `_write_cached` wrote; None if the file is missing or corrupt."""
    try:
        # Opened here, because NumPy leaves a corrupt file open.
        with _HEADERS, open_regular(file) as handle, np.load(handle, allow_pickle=False) as stored:
            facts, samples = as_tuples(json.loads(str(stored["facts"]))), stored["samples"]
        digest = facts.pop("digest")
        return _CaseCheck(CaseFingerprint(samples=samples, **facts), [], digest)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError, BadZipFile, zlib.error):
        return None


def _case_fingerprint(dataset: Dataset, case: TrainingCase, scan: Scan, reference: Scan) -> CaseFingerprint:
    """The measurements of a case."""
    label = reference.channels[0]
    order, _ = ras_order(scan.geometry.affine)
    foreground = label != 0 if dataset.labels.ignore is None else (label != 0) & (label != dataset.labels.ignore)
    # Seeded by the name, so that the sample does not depend on the other cases.
    rng = np.random.default_rng(list(os.fsencode(case.name)))
    sampled = np.unravel_index(rng.permutation(np.flatnonzero(foreground))[:SAMPLES_PER_CASE], label.shape)
    stored = {name: values for name, values in dataset.labels.stored.items() if case.own.has(name)}
    counts = _per_value(label, max(dataset.labels.known) + 1)
    return CaseFingerprint(
        name=case.name,
        shape=_ordered(scan.geometry.shape, order),
        spacing_mm=_ordered(scan.geometry.spacing_mm, order),
        volumes_ml={name: int(counts[list(values)].sum()) * scan.geometry.voxel_ml for name, values in stored.items()},
        offsets=_offsets(label, foreground, scan.geometry, stored),
        contrasts=_contrasts(label, counts, scan, stored, dataset.labels.ignore),
        means=tuple(float(channel.mean(dtype=np.float64)) for channel in scan.channels),
        samples=np.stack([as_exact_float(channel[sampled]) for channel in scan.channels]),
        warnings=_warnings(scan, reference),
        unstated=scan.unstated,
        intensities=tuple(
            (intensity_quantiles(channel), intensity_quantiles(channel, masked=True)) for channel in scan.channels
        ),
        masked=1 - float(filled_nonzero(scan.channels).mean()),
        **_box(scan, foreground, order),
    )


def _box(scan: Scan, foreground: np.ndarray, order: tuple[int, int, int]) -> dict[str, Any]:
    """`CaseFingerprint.nonzero_shape` and `cut_ml`."""
    box = nonzero_box(scan.channels)
    shape = tuple(stop - start for start, stop in box)
    if shape == foreground.shape:
        return {}
    inside = np.count_nonzero(foreground[tuple(slice(*span) for span in box)])
    cut = int(np.count_nonzero(foreground) - inside)
    return {"nonzero_shape": _ordered((shape[0], shape[1], shape[2]), order), "cut_ml": cut * scan.geometry.voxel_ml}


def _warnings(scan: Scan, reference: Scan) -> tuple[str, ...]:
    """The warnings of reading a case; those that only its label image has say so."""
    others = [f"Label image: {one}" for one in reference.warnings if one not in scan.warnings]
    return (*scan.warnings, *others)


def _contrasts(
    label: np.ndarray, counts: np.ndarray, scan: Scan, stored: Table, ignore: int | None
) -> dict[str, tuple[float, ...]]:
    """See `CaseFingerprint.contrasts`; none for a label that fills the scan. `counts`: number of voxels per value."""
    known = np.arange(len(counts)) != ignore
    insides = {name: list(values) for name, values in stored.items()}
    names = [name for name, inside in insides.items() if 0 < counts[inside].sum() < counts[known].sum()]
    found: dict[str, tuple[float, ...]] = dict.fromkeys(names, ())
    for channel in scan.channels:
        sums = _per_value(label, len(counts), channel)
        mean = sums.sum() / label.size
        std = sqrt(sum(float(np.square(plane - mean).sum()) for plane in _planes(channel)) / label.size)
        for name in names:
            voxels, total = counts[insides[name]].sum(), sums[insides[name]].sum()
            rest = (sums[known].sum() - total) / (counts[known].sum() - voxels)
            found[name] += (float(total / voxels - rest) / std if std else 0.0,)
    return found


def _per_value(label: np.ndarray, values: int, channel: np.ndarray | None = None) -> np.ndarray:
    """For each value below `values`: its number of voxels, or the sum of their intensities in `channel`.

    Returns (values,) float64. Plane by plane, because `bincount` makes a 64-bit copy of its arguments.
    """
    total = np.zeros(values)
    for index, plane in enumerate(_planes(label)):
        weights = None if channel is None else channel[..., index].ravel()
        total += np.bincount(plane.ravel(), weights, values)
    return total


def _planes(volume: np.ndarray) -> Iterator[np.ndarray]:
    """The planes perpendicular to K."""
    return (volume[..., index] for index in range(volume.shape[2]))


def _offsets(
    label: np.ndarray, foreground: np.ndarray, geometry: Geometry, stored: Table
) -> dict[str, tuple[float, float, float]]:
    """See `CaseFingerprint.offsets`."""
    profiles = {name: _profiles(np.isin(label, values)) for name, values in stored.items()}
    present = {name: one for name, one in profiles.items() if one[0].any()}
    every = _profiles(foreground)
    order, flips = ras_order(geometry.affine)
    offsets = {name: [0.0, 0.0, 0.0] for name in present}
    for world, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        edge = np.ptp(np.flatnonzero(every[axis])) + 1 if present else 1
        for name, one in present.items():
            offset = (_centre(one[axis]) - _centre(every[axis])) / edge
            offsets[name][world] = -offset if flip else offset
    return {name: (one[0], one[1], one[2]) for name, one in offsets.items()}


def _profiles(mask: np.ndarray) -> list[np.ndarray]:
    """Number of voxels of a mask in each plane perpendicular to I, J and K."""
    return [np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]


def _centre(profile: np.ndarray) -> float:
    return float(np.average(np.arange(profile.size), weights=profile))


def _channel(name: str, index: int, cases: Sequence[CaseFingerprint]) -> ChannelFingerprint:
    """The intensities of one channel over the samples of all cases."""
    samples = np.concatenate([case.samples[index] for case in cases]).astype(np.float64)
    low, high = np.percentile(samples, [0.5, 99.5])
    means = [case.means[index] for case in cases]
    return ChannelFingerprint(
        name, (float(low), float(high)), float(samples.mean()), float(samples.std()), (min(means), max(means))
    )


def _ordered(values: tuple[T, T, T], order: tuple[int, int, int]) -> tuple[T, T, T]:
    return values[order[0]], values[order[1]], values[order[2]]
