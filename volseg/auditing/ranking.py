"""Which cases stand out among all: robust deviations per label and measure, and the largest of them.

Every model contradicts every reference a little, the more the larger a label and the harder it is to see. So a case is
compared with what is usual for the same label, and not by its Dice: its score says by how many robust standard
deviations its most unusual measure exceeds the median over cases.

    disagreement, largest, gap   see `volseg.auditing.measures.LabelMeasures`, relative to the size of the label, of
                                 which the logarithm is compared, because such fractions are skewed
    offset                       of the centre of mass of all labels from that of the prediction, along R, A and S
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from volseg.auditing.measures import CaseMeasures, LabelMeasures

# Of two that are equally unusual, the first names the reason.
VOLUMES = ("gap", "disagreement", "largest")
OFFSET = "offset"
# Added to fractions of a label's size: smaller ones are all alike.
SMALLEST = 0.02
# Added to the deviations, so that cases that are alike do not turn a rounding error into a large score: of the
# logarithms, and of offsets in edges of a voxel.
LEAST_SPREAD, LEAST_OFFSET = 0.1, 0.1
# From this deviation on, a label is said to stand out, although the offset of all may stand out more.
CLEAR = 3.0
# A normal distribution's standard deviation is this many times its median absolute deviation.
_NORMAL = 1.4826
# The largest of three deviations is compared, which is larger than one of them by this factor, and more often.
_OF_THREE = 1.5


@dataclass(frozen=True)
class Audited:
    """What ranking needs of one case.

    Args:
        name: of the case.
        measures: in voxels.
        voxel_ml: volume of a voxel.
        offset_mm: `measures.offset` along R, A and S in mm; None where there is none.
    """

    name: str
    measures: CaseMeasures
    voxel_ml: float
    offset_mm: tuple[float, float, float] | None

    @property
    def voxel_mm(self) -> float:
        """The edge of a cube of the volume of a voxel."""
        return float((1000 * self.voxel_ml) ** (1 / 3))


@dataclass(frozen=True)
class Score:
    """How unusual a case is.

    Args:
        value: the largest of its deviations.
        label: the label that stands out most; None where only the offset of all labels does.
        measure: the measure of the label that stands out most, or "offset".
        by_label: the largest deviation of each label.
    """

    value: float
    label: str | None
    measure: str
    by_label: Mapping[str, float]


def score_cases(cases: Sequence[Audited]) -> list[Score]:
    """The score of each case, in the same order.

    A label counts in the cases in which somebody looked for it. The more cases, the better: with fewer than about
    twenty, what is usual is known badly, and a score says little more than the rank.
    """
    deviations: list[dict[tuple[str | None, str], float]] = [{} for _ in cases]
    for label in dict.fromkeys(name for case in cases for name in case.measures.labels):
        own = [(number, case) for number, case in enumerate(cases) if label in case.measures.labels]
        found = [case.measures.labels[label] for _, case in own]
        sizes = _sizes_ml(found, [case.voxel_ml for _, case in own])
        for measure in VOLUMES:
            volumes = [getattr(one, measure) * case.voxel_ml for one, (_, case) in zip(found, own, strict=True)]
            fractions = np.log(np.divide(volumes, sizes) + SMALLEST)
            for (number, _), value in zip(own, _deviations(fractions, LEAST_SPREAD), strict=True):
                deviations[number][label, measure] = float(value)
    for number, value in _offsets(cases).items():
        deviations[number][None, OFFSET] = value
    return [_score(one) for one in deviations]


def _sizes_ml(found: Sequence[LabelMeasures], voxels_ml: Sequence[float]) -> np.ndarray:
    """By what the volumes of a label are divided, per case: its size there, or its usual size if that is larger.

    So a few voxels of a label that a case does not have are no large fraction.
    """
    references = np.array([one.reference * voxel for one, voxel in zip(found, voxels_ml, strict=True)])
    predictions = np.array([one.prediction * voxel for one, voxel in zip(found, voxels_ml, strict=True)])
    there = references[references > 0]
    usual = float(np.median(there)) if there.size else 0.0
    sizes: np.ndarray = np.maximum(np.maximum(references, predictions), max(usual, min(voxels_ml)))
    return sizes


def _deviations(values: np.ndarray, least: float) -> np.ndarray:
    """By how many robust standard deviations values exceed their median, along the first axis."""
    centred = values - np.median(values, 0)
    deviations: np.ndarray = centred / (_NORMAL * np.median(np.abs(centred), 0) + least)
    return deviations


def _offsets(cases: Sequence[Audited]) -> dict[int, float]:
    """The deviation of the offset of each case that has one."""
    known = {number: case.offset_mm for number, case in enumerate(cases) if case.offset_mm is not None}
    if not known:
        return {}
    least = LEAST_OFFSET * float(np.median([cases[number].voxel_mm for number in known]))
    deviations = np.abs(_deviations(np.array(list(known.values())), least)).max(1) / _OF_THREE
    return dict(zip(known, deviations.tolist(), strict=True))


def _score(deviations: Mapping[tuple[str | None, str], float]) -> Score:
    value = max(deviations.values())
    of_labels = {one: deviation for one, deviation in deviations.items() if one[0]}
    # A label that is missing moves the centre of mass, too; its name says more.
    named = of_labels if max(of_labels.values()) >= min(CLEAR, value) else deviations
    label, measure = max(named, key=lambda one: named[one])
    names = dict.fromkeys(name for name, _ in deviations if name)
    by_label = {name: max(deviations[name, one] for one in VOLUMES) for name in names}
    return Score(value, label, measure, by_label)
