"""What is counted where a model confidently contradicts the reference of one case: per label, and as findings.

Volumes are in voxels here, weighted by confidence: two voxels of confidence one half are one voxel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from volseg.auditing.confidence import FULL, Contradiction
from volseg.data.grid.connected import numbered_components

# Less is no confident contradiction: at the border of every label, models and references differ without confidence.
CONFIDENT = 128
# Findings of a case that are listed.
MOST_FINDINGS = 5
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Finding:
    """Connected voxels in which the reference says one thing and the model confidently another.

    Args:
        stated: code of the reference.
        found: code of the prediction.
        voxels: their number.
        weight: the sum of their confidence.
        place: (i, j, k) of the voxel that is nearest to their centre of mass.
        box: (start, stop) along I, J and K.
    """

    stated: int
    found: int
    voxels: int
    weight: float
    place: Place
    box: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LabelMeasures:
    """One label of one case, in voxels.

    Args:
        reference: size in the reference.
        prediction: size in the prediction.
        disagreement: weight of all confident contradictions of the label.
        largest: weight of the largest connected one.
        gap: weight of those in slices where the reference lacks the label, but has it on both sides; of the three
            voxel axes the one with the most.
    """

    reference: float
    prediction: float
    disagreement: float
    largest: float
    gap: float


@dataclass(frozen=True)
class CaseMeasures:
    """What is counted in one case.

    Args:
        labels: by name, of those that are compared.
        offset: from the centre of mass of all labels in the prediction to that in the reference, in voxels along I, J
            and K; None where one of them has no label.
        findings: the largest first, at most `MOST_FINDINGS`.
        by_label: the largest finding of each label that has one.
    """

    labels: Mapping[str, LabelMeasures]
    offset: tuple[float, float, float] | None
    findings: tuple[Finding, ...]
    by_label: Mapping[str, Finding] = field(default_factory=dict)


def measure_case(contradiction: Contradiction) -> CaseMeasures:
    """Count the confident contradictions of one case."""
    question = contradiction.question
    profiles = [_profiles(codes, len(question.values)) for codes in (contradiction.stated, contradiction.found)]
    voxels = np.nonzero(contradiction.confidence >= CONFIDENT)
    weights = contradiction.confidence[voxels] / FULL
    pairs = contradiction.stated[voxels], contradiction.found[voxels]
    findings = _findings(contradiction, voxels)
    labels, by_label = {}, {}
    for number, label in enumerate(question.labels):
        member = question.members[:, number]
        stated, found = member[pairs[0]], member[pairs[1]]
        here = stated != found
        reference, prediction = ([axis[:, member].sum(1) for axis in one] for one in profiles)
        missing = found & ~stated
        gaps = [
            np.bincount(where[missing], weights[missing], len(profile))[_gaps(profile)].sum()
            for where, profile in zip(voxels, reference, strict=True)
        ]
        own = [one for one in findings if member[one.stated] != member[one.found]]
        labels[label.name] = LabelMeasures(
            reference=float(reference[0].sum()),
            prediction=float(prediction[0].sum()),
            disagreement=float(weights[here].sum()),
            largest=own[0].weight if own else 0.0,
            gap=float(max(gaps)),
        )
        if own:
            by_label[label.name] = own[0]
    return CaseMeasures(labels, _offset(*profiles), tuple(findings[:MOST_FINDINGS]), by_label)


def _profiles(codes: np.ndarray, count: int) -> list[np.ndarray]:
    """For I, J and K: (slices, codes), how many voxels of each code are in each slice."""
    return [
        np.stack([np.bincount(cut.ravel(), minlength=count) for cut in np.moveaxis(codes, axis, 0)])
        for axis in range(3)
    ]


def _gaps(profile: np.ndarray) -> np.ndarray:
    """The slices without a label that have it on both sides, (slices,) bool."""
    there = profile > 0
    return ~there & np.logical_or.accumulate(there) & np.logical_or.accumulate(there[::-1])[::-1]


def _offset(stated: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> tuple[float, float, float] | None:
    centres = []
    for one, other in zip(stated, found, strict=True):
        sizes = [profile[:, 1:].sum(1) for profile in (one, other)]
        if not all(size.any() for size in sizes):
            return None
        reference, prediction = (float(np.average(np.arange(len(size)), weights=size)) for size in sizes)
        centres.append(reference - prediction)
    return centres[0], centres[1], centres[2]


def _findings(contradiction: Contradiction, voxels: tuple[np.ndarray, ...]) -> list[Finding]:
    """All findings, the heaviest first."""
    if not len(voxels[0]):
        return []
    low = np.array([axis.min() for axis in voxels])
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in voxels)
    pairs = _pairs(contradiction, box)
    numbers, _ = numbered_components(pairs, 26)
    inside = tuple(axis - first for axis, first in zip(voxels, low, strict=True))
    own = numbers[inside]
    order = np.argsort(own, kind="stable")
    weights = contradiction.confidence[voxels][order] / FULL
    coordinates = np.stack(voxels, 1)[order]
    ends = np.cumsum(np.bincount(own)[1:])
    found = []
    for start, stop in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        part = coordinates[start:stop]
        centre = np.average(part, axis=0, weights=weights[start:stop])
        nearest = part[np.argmin(((part - centre) ** 2).sum(1))]
        place = (int(nearest[0]), int(nearest[1]), int(nearest[2]))
        found.append(
            Finding(
                stated=int(contradiction.stated[place]),
                found=int(contradiction.found[place]),
                voxels=len(part),
                weight=float(weights[start:stop].sum()),
                place=place,
                box=tuple((int(axis.min()), int(axis.max()) + 1) for axis in part.T),
            )
        )
    return sorted(found, key=lambda one: (-one.weight, one.place))


def _pairs(contradiction: Contradiction, box: tuple[slice, ...]) -> np.ndarray:
    """A number from 1 for each pair of codes, where a voxel of the box is a confident contradiction, else 0."""
    codes = len(contradiction.question.values)
    dtype: Any = np.uint16 if codes < 256 else np.uint32
    pairs: np.ndarray = contradiction.stated[box].astype(dtype) * dtype(codes) + contradiction.found[box]
    # A pair is never 0: both codes would be 0, which is no contradiction.
    pairs[contradiction.confidence[box] < CONFIDENT] = 0
    return pairs


def is_in(finding: Finding, contradiction: Contradiction, axis: int) -> np.ndarray:
    """The voxels of a finding in the slice through its place, (rows, columns) bool in the order of the other axes."""
    cut = [slice(None)] * 3
    cut[axis] = slice(finding.place[axis], finding.place[axis] + 1)
    numbers, _ = numbered_components(_pairs(contradiction, tuple(cut)), 26)
    here: np.ndarray = numbers == numbers[tuple(0 if one == axis else at for one, at in enumerate(finding.place))]
    return here.squeeze(axis)
