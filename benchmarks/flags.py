"""How often the flags of a result are raised: on injected faults and on clean scans, out of fold.

    python benchmarks/flags.py DATASET [--model hippocampus] [--organs SCAN...] [--cases 3] [--record]

Each member of the model file segments the cases of its fold. What the flags go by, thresholds and ranges of the
training scans, comes from the other folds: a case is scored by numbers that it took no part in. All cases are segmented
clean; of the first `--cases` of each fold, every fault is made once, of the kinds in `faults_of`. A fault counts as a
failure if it lowers the mean Dice of the case by 0.1 or more. `--organs` are scans of other organs, of which crops are
segmented as if they were scans of this one; each is a failure.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from common.flag_faults import Fault, crop_of_organ, faults_of
from common.record import publish, record_options, slug
from common.results import Row, headline, table
from precision import held_out

from volseg import Result, Segmenter
from volseg.confidence.threshold import low_threshold
from volseg.config import Plan
from volseg.data.cases.dataset import TrainingCase, open_dataset
from volseg.data.io.reading import read_channels, read_label, read_scan
from volseg.evaluation.overlap import label_overlaps
from volseg.modelfile.calibration import BINS, Calibration, LabelCalibration, Reliability
from volseg.planning.fingerprint import Fingerprint, take_fingerprint
from volseg.planning.ranges import plan_scan_ranges
from volseg.suspicion import examine
from volseg.suspicion.doubt import doubtful
from volseg.suspicion.examine import flagged_as

# The flags that say that a result may be wrong; the others say how it is.
ALARMS = (
    "low_confidence", "orientation_suspect", "spacing_suspect", "intensity_suspect", "field_of_view_suspect",
    "side_mismatch",
)  # fmt: skip
# What a failure costs.
LOWERED = 0.1
CLEAN, ALL = "clean", "all faults"
# Of a model without calibration.
TEMPERATURE = 1.5
UNKNOWN = Reliability(voxels=(0,) * BINS, probability=(0.0,) * BINS, frequency=(0.0,) * BINS, error=0.0)


class Scored(NamedTuple):
    """One scan: the fault in it, its mean Dice, that of the same case without the fault, and the alarms raised."""

    fault: str
    dice: float
    clean_dice: float
    alarms: frozenset[str]

    @property
    def failed(self) -> bool:
        """Whether the fault lowers the Dice."""
        return self.clean_dice - self.dice >= LOWERED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="hippocampus", help="a bundled name or a model file")
    parser.add_argument("--organs", type=Path, nargs="*", default=[], help="scans of other organs")
    parser.add_argument("--cases", type=int, default=3, help="per fold that get every fault")
    parser.add_argument("--searches", type=int, default=1, help="cases per fold whose rotated headers are searched for")
    parser.add_argument("--clean", type=int, default=1000, help="per fold that are segmented without a fault")
    record_options(parser)
    options = parser.parse_args()
    whole = Segmenter.load(options.model, device="cpu")
    if whole.card.members < 2:
        parser.error(f"{options.model} is a single network, expected an ensemble of folds. Give one by --model.")
    found = score(whole, options)
    clean = [one for one in found if one.fault == CLEAN]
    faulty = [one for one in found if one.fault != CLEAN]
    rows = [
        row(kind, [one for one in found if one.fault == kind]) for kind in dict.fromkeys(one.fault for one in found)
    ]
    publish(
        options,
        f"flags-{slug(Path(options.model).stem)}",
        f"Flags of {whole.card.name} on {options.dataset.name}: faults and clean scans, out of fold",
        [table([*rows, row(ALL, faulty)])],
        [
            headline(f"failures that are flagged, of {sum(one.failed for one in faulty)}", ALL, "of these flagged"),
            headline(f"clean scans that are flagged, of {len(clean)}", CLEAN, "flagged"),
        ],
    )


def score(whole: Segmenter, options: argparse.Namespace) -> list[Scored]:
    """All scans of all folds, each with the member and the numbers of other folds."""
    fingerprint = take_fingerprint(open_dataset(options.dataset))
    folds = []
    for number, network in enumerate(whole.labeller.network.members):
        fold = whole.card.training["members"][number]["fold"]
        cases = held_out(options.dataset, fold)[: options.clean]
        labeller = replace(whole.labeller, network=network)
        segmenter = with_card(
            replace(whole, labeller=labeller), ranges_without(fingerprint, cases, whole.card.plan), None
        )
        folds.append((segmenter, cases, [read(case) for case in cases]))
    usual = []
    for segmenter, _, scans in folds:
        usual.append([segmenter((one.scan, one.affine)) for one in scans])
        print(f"clean: {len(usual)} of {len(folds)} folds", file=sys.stderr)
    found = []
    for number, (segmenter, _, scans) in enumerate(folds):
        others = [result for at, several in enumerate(usual) if at != number for result in several]
        limited = with_card(segmenter, segmenter.card.plan, others)
        found += score_fold(limited, scans, usual[number], options, np.random.default_rng(number))
        print(f"faults: {number + 1} of {len(folds)} folds", file=sys.stderr)
    return found


def with_card(segmenter: Segmenter, plan: Plan, clean: Sequence[Result] | None) -> Segmenter:
    """The same with another plan, and with thresholds from clean results, where there are any.

    Thresholds do not depend on the map from confidence to Dice, so that of the card is used.
    """
    known = segmenter.card.calibration or Calibration(temperature=TEMPERATURE, labels={}, before=UNKNOWN, after=UNKNOWN)
    labels = {}
    for label in plan.labels:
        expected = [one.expected_dice[label.name] for one in clean or ()]
        limit = low_threshold([dice for dice in expected if dice is not None])
        labels[label.name] = known.labels.get(label.name, LabelCalibration()).model_copy(
            update={"low_confidence": limit}
        )
    calibration = known.model_copy(update={"labels": labels})
    return replace(segmenter, card=segmenter.card.model_copy(update={"plan": plan, "calibration": calibration}))


def ranges_without(fingerprint: Fingerprint, cases: Sequence[TrainingCase], plan: Plan) -> Plan:
    """A plan whose ranges are those of all other cases."""
    names = {case.name for case in cases}
    others = replace(fingerprint, cases=tuple(one for one in fingerprint.cases if one.name not in names))
    labels = tuple(one.model_copy(update={"volume_ml_range": others.volume_ml_range(one.name)}) for one in plan.labels)
    return plan.model_copy(update={"scan_ranges": plan_scan_ranges(others, plan.channels)[0], "labels": labels})


def read(case: TrainingCase) -> Fault:
    """A case as it is."""
    scan = read_channels(case.images, 1)
    reference = read_label(case.label).channels[0]
    return Fault(CLEAN, np.asarray(scan.channels[0], np.float32), scan.geometry.affine, reference)


def score_fold(
    segmenter: Segmenter,
    scans: Sequence[Fault],
    usual: Sequence[Result],
    options: argparse.Namespace,
    rng: np.random.Generator,
) -> Iterator[Scored]:
    """All cases of a fold without a fault, the first of them with every fault, and crops of other organs."""
    clean = [scored(with_doubts(result, segmenter), fault) for result, fault in zip(usual, scans, strict=True)]
    yield from clean
    for number, (one, before) in enumerate(zip(scans[: options.cases], clean, strict=False)):
        for fault in faults_of(one.scan, one.affine, one.reference, rng):
            # The search takes 24 times as long as a result, and only a result with a flag is searched.
            with searching("rotated" in fault.name and number < options.searches):
                yield scored(segmenter((fault.scan, fault.affine)), fault)._replace(clean_dice=before.dice)
    extents = [np.multiply(one.scan.shape, np.linalg.norm(one.affine[:3, :3], axis=0)) for one in scans]
    for path in options.organs:
        other = read_scan(path)
        part = crop_of_organ(np.asarray(other.channels[0]), other.geometry.affine, np.median(extents, axis=0), rng)
        with searching(False):
            result = segmenter((part.scan, part.affine))
        yield scored(result, part)._replace(clean_dice=float(np.mean([one.dice for one in clean])))


def with_doubts(result: Result, segmenter: Segmenter) -> Result:
    """A result with the flags that its expected Dice has under the thresholds of a model."""
    doubts = doubtful(result.confidence, segmenter.card.calibration)
    measures = (flagged_as(one, "low_confidence") if one.name in doubts else one for one in result.measures)
    return replace(result, measures=tuple(measures))


def searching(wanted: bool) -> AbstractContextManager[Any]:
    """A context in which other orientations are searched for, or not."""
    return nullcontext() if wanted else patch.object(examine, "question_orientation", lambda _: [])


def scored(result: Result, fault: Fault) -> Scored:
    """A result against its reference."""
    dice = 0.0
    if fault.reference is not None:
        values = {label.name: label.value for label in result.shown}
        overlaps = label_overlaps(result.labels, fault.reference, values, 1.0).values()
        dice = float(np.mean([one.dice for one in overlaps if one.dice is not None]))
    alarms = frozenset(flag.split(": ")[-1] for flag in result.flags) & set(ALARMS)
    return Scored(fault.name, dice, dice, alarms)


def row(name: str, found: Sequence[Scored]) -> Row:
    """One kind of fault: how often it is a failure, how often it is flagged, and by which flags."""
    failed = [one for one in found if one.failed]
    by_flag = {flag: fraction(flag in one.alarms for one in failed or found) for flag in ALARMS}
    return {
        "fault": name,
        "scans": len(found),
        "mean Dice": round(float(np.mean([one.dice for one in found])), 3),
        "flagged": fraction(bool(one.alarms) for one in found),
        f"Dice lower by {LOWERED} or more": len(failed) if name != CLEAN else None,
        "of these flagged": fraction(bool(one.alarms) for one in failed),
        **by_flag,
    }


def fraction(several: Iterator[bool]) -> float | None:
    """How many are true; None of none."""
    listed = list(several)
    return round(sum(listed) / len(listed), 3) if listed else None


if __name__ == "__main__":
    main()
