"""What a dataset is like: sizes, spacings, intensities, label volumes and contrasts, measured case by case.

Spatial triples are in the order R, A, S: the scan's axes after reorientation to the closest RAS+ order.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from math import sqrt
from pathlib import Path
from typing import NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np

from volseg.data.cases.cache_key import cache_stem, content_key
from volseg.data.cases.dataset import Dataset, TrainingCase
from volseg.data.cases.labels import LabelSet
from volseg.data.cases.problems import case_problems, duplicate_problems, voxel_digest
from volseg.data.grid.geometry import Geometry, ras_order
from volseg.data.io.reading import Scan, read_channels, read_label
from volseg.errors import DatasetError, InputError, Problem, first_few
from volseg.files import as_tuples, whole_file

logger = logging.getLogger(__name__)

SAMPLES_PER_CASE = 10_000
# Scans that are read at the same time; each is in memory as it is stored and as it is read.
READERS = 2
# Raised whenever what is measured changes, so that older measures are not taken for current ones.
FORMAT = 1
T = TypeVar("T", int, float)


@dataclass(frozen=True)
class CaseFingerprint:
    """One case.

    Args:
        name: of the case.
        shape: voxels along R, A, S.
        spacing_mm: along R, A, S.
        volumes_ml: of each label or region, 0 where it is absent.
        offsets: per label that is present: where its centroid lies along R, A, S from the centroid of all labels, as
            a share of the edge of the box around all labels.
        contrasts: per label that is present, and channel: how far its mean intensity lies above that of the rest of the
            scan, ignored voxels left out, in standard deviations of the scan.
        means: per channel, mean intensity of the whole scan.
        samples: (C, n) float32 intensities of up to 10 000 labelled voxels, drawn at random.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    volumes_ml: dict[str, float]
    offsets: dict[str, tuple[float, float, float]]
    contrasts: dict[str, tuple[float, ...]]
    means: tuple[float, ...]
    samples: np.ndarray

    @property
    def whole_ml(self) -> float:
        """Volume of the whole scan."""
        return float(np.prod(self.shape) * np.prod(self.spacing_mm)) / 1000


@dataclass(frozen=True)
class ChannelFingerprint:
    """Intensities of one channel over all cases.

    Args:
        name: of the channel.
        percentiles: 0.5 and 99.5 percentile of the labelled voxels.
        mean: of the labelled voxels.
        std: of the labelled voxels.
        mean_range: lowest and highest mean of a whole scan.
    """

    name: str
    percentiles: tuple[float, float]
    mean: float
    std: float
    mean_range: tuple[float, float]


@dataclass(frozen=True)
class Fingerprint:
    """All cases, and the intensities of each channel."""

    cases: tuple[CaseFingerprint, ...]
    channels: tuple[ChannelFingerprint, ...]

    def volume_ml_range(self, label: str) -> tuple[float, float]:
        """Smallest and largest volume of a label over the cases."""
        volumes = [case.volumes_ml[label] for case in self.cases]
        return min(volumes), max(volumes)


class _Look(NamedTuple):
    """What a case is like or what is wrong with it, and the digest of its image if that can be used."""

    measures: CaseFingerprint | None
    problems: list[Problem]
    digest: str | None


def take_fingerprint(dataset: Dataset, cache: Path | None = None) -> Fingerprint:
    """Read every case once and measure it; a few at a time, none kept in memory.

    Cases without a labelled voxel are told in the log, and used.

    Args:
        dataset: to look at.
        cache: a folder for the measures of each case, so that next time only its bytes are compared; None keeps none.

    Raises:
        DatasetError: everything that is wrong with any case, at once; or no labelled voxel in any.
    """
    with ThreadPoolExecutor(READERS) as pool:
        looks = dict(zip(dataset.cases, pool.map(partial(_look_at, dataset, cache), dataset.cases), strict=True))
    problems = [*dataset.problems, *(problem for look in looks.values() for problem in look.problems)]
    problems += duplicate_problems({case.name: look.digest for case, look in looks.items() if look.digest})
    measured = [look.measures for look in looks.values() if look.measures]
    empty = [case.name for case in measured if not case.offsets]
    if measured and len(empty) == len(measured):
        found = f"the label images of all {len(empty)} cases hold background alone"
        problems.append(Problem("all", "no label", found, "check them"))
    if problems:
        # Without the folder, which is the same for all.
        inside = f"{dataset.folder}{os.sep}"
        raise DatasetError(dataset.name, [row._replace(found=row.found.replace(inside, "")) for row in problems])
    if empty:
        logger.warning("%d of %d cases have no labelled voxel: %s.", len(empty), len(measured), first_few(empty))
    channels = (_channel(name, index, measured) for index, name in enumerate(dataset.channels))
    return Fingerprint(tuple(measured), tuple(channels))


def _look_at(dataset: Dataset, cache: Path | None, case: TrainingCase) -> _Look:
    """Measure a case or find all that is wrong with it, unless the cache knows that nothing is."""
    known = dataset.labels.known
    digest: str | None = None
    try:
        kept = cache and _kept_file(dataset, cache, case)
        if kept and (recalled := _recalled(kept)):
            return recalled
        scan = read_channels(case.images, len(dataset.channels))
        digest = voxel_digest(scan)
        label = read_label(case.label, like=scan.geometry, known=known).channels[0]
    except InputError as error:
        first = Problem(case.name, error.problem, error.found, error.remedy or "mend it, or leave out the case")
        return _Look(None, case_problems(case, len(dataset.channels), known) or [first], digest)
    look = _Look(_measured(dataset, case, scan, label), [], digest)
    if kept:
        _keep(look, kept)
    return look


def _kept_file(dataset: Dataset, cache: Path, case: TrainingCase) -> Path:
    """Where the measures of a case are kept, by all that they depend on."""
    labels = {"stored": list(dataset.labels.stored.items()), "ignore": dataset.labels.ignore}
    facts = {"format": FORMAT, "name": case.name, "labels": labels, "channels": len(dataset.channels)}
    stem = cache_stem(cache, case, content_key(case, facts))
    return stem.with_name(f"{stem.name}.npz")


def _keep(look: _Look, file: Path) -> None:
    """Write a look at a case in which nothing was wrong."""
    assert look.measures
    facts = {item.name: getattr(look.measures, item.name) for item in fields(CaseFingerprint)}
    samples = facts.pop("samples")
    with whole_file(file) as temporary:
        np.savez(temporary, samples=samples, facts=np.array(json.dumps(facts | {"digest": look.digest})))


def _recalled(file: Path) -> _Look | None:
    """A look of `_keep`; None where there is none, or a damaged one."""
    try:
        # Opened here, because NumPy leaves a damaged file open.
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as kept:
            facts, samples = as_tuples(json.loads(str(kept["facts"]))), kept["samples"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return None
    digest = facts.pop("digest")
    return _Look(CaseFingerprint(samples=samples, **facts), [], digest)


def _measured(dataset: Dataset, case: TrainingCase, scan: Scan, label: np.ndarray) -> CaseFingerprint:
    """The measures of a case."""
    order, _ = ras_order(scan.geometry.affine)
    foreground = label != 0 if dataset.labels.ignore is None else (label != 0) & (label != dataset.labels.ignore)
    # Seeded by the name, so that the sample does not depend on which other cases there are.
    drawn = np.random.default_rng(list(case.name.encode())).permutation(np.flatnonzero(foreground))[:SAMPLES_PER_CASE]
    stored = dataset.labels.stored
    counts = _per_value(label, max(dataset.labels.known) + 1)
    return CaseFingerprint(
        name=case.name,
        shape=_ordered(scan.geometry.shape, order),
        spacing_mm=_ordered(scan.geometry.spacing_mm, order),
        volumes_ml={name: int(counts[list(values)].sum()) * scan.geometry.voxel_ml for name, values in stored.items()},
        offsets=_offsets(label, foreground, scan.geometry, dataset.labels),
        contrasts=_contrasts(label, counts, scan, dataset.labels),
        means=tuple(float(channel.mean(dtype=np.float64)) for channel in scan.channels),
        samples=np.stack([channel[np.unravel_index(drawn, label.shape)] for channel in scan.channels]).astype(
            np.float32
        ),
    )


def _contrasts(label: np.ndarray, counts: np.ndarray, scan: Scan, labels: LabelSet) -> dict[str, tuple[float, ...]]:
    """See `CaseFingerprint.contrasts`; a label that fills the scan has none. `counts` are the voxels of each value."""
    known = np.arange(len(counts)) != labels.ignore
    insides = {name: list(values) for name, values in labels.stored.items()}
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
    """How many voxels have each of the values below `values`, or the sum of their intensities, (values,) float64.

    A plane at a time, because NumPy counts and sums what it has brought into 64 bits.
    """
    total = np.zeros(values)
    for index, plane in enumerate(_planes(label)):
        weights = None if channel is None else channel[..., index].ravel()
        total += np.bincount(plane.ravel(), weights, values)
    return total


def _planes(volume: np.ndarray) -> Iterator[np.ndarray]:
    """The planes across K."""
    return (volume[..., index] for index in range(volume.shape[2]))


def _offsets(
    label: np.ndarray, foreground: np.ndarray, geometry: Geometry, labels: LabelSet
) -> dict[str, tuple[float, float, float]]:
    """See `CaseFingerprint.offsets`."""
    profiles = {name: _profiles(np.isin(label, values)) for name, values in labels.stored.items()}
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
    """How many voxels of a mask lie in each plane across I, J and K."""
    return [np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]


def _centre(profile: np.ndarray) -> float:
    return float(np.average(np.arange(profile.size), weights=profile))


def _channel(name: str, index: int, cases: Sequence[CaseFingerprint]) -> ChannelFingerprint:
    """The intensities of one channel over all cases; every case counts by its sample."""
    samples = np.concatenate([case.samples[index] for case in cases]).astype(np.float64)
    low, high = np.percentile(samples, [0.5, 99.5])
    means = [case.means[index] for case in cases]
    return ChannelFingerprint(
        name, (float(low), float(high)), float(samples.mean()), float(samples.std()), (min(means), max(means))
    )


def _ordered(values: tuple[T, T, T], order: tuple[int, int, int]) -> tuple[T, T, T]:
    return values[order[0]], values[order[1]], values[order[2]]
