"""How often the flags of a result are raised: on injected faults and on clean scans, out of fold.

    python benchmarks/flags.py DATASET [--model hippocampus] [--organs SCAN...] [--cases 3] [--record]

Each member of the model file segments the cases of its fold. What the flags go by, the calibration and the ranges of the
training scans, comes from the other folds: a case is scored by numbers that it took no part in. All cases are segmented
clean; of the first `--cases` of each fold, every fault is made once, of the kinds in `faults_of`. A fault counts as a
failure if it lowers the mean Dice of the case by 0.1 or more. `--organs` are scans of other organs, of which crops are
segmented as if they were scans of this one; each is a failure.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common.flag_faults import Fault, crop_of_organ, faults_of
from common.record import publish, record_options, slug
from common.results import Row, headline, table
from precision import held_out

from volseg import Segmenter
from volseg.config import Plan
from volseg.data.cases.dataset import Dataset, TrainingCase, open_dataset
from volseg.data.io.reading import read_channels, read_label, read_scan
from volseg.evaluation.overlap import label_overlaps
from volseg.planning.fingerprint import Fingerprint, take_fingerprint
from volseg.planning.ranges import plan_scan_ranges

# The flags that say that a result may be wrong; the others say how it is.
ALARMS = (
    "low_confidence", "orientation_suspect", "spacing_suspect", "intensity_suspect", "field_of_view_suspect",
    "side_mismatch",
)  # fmt: skip
# What a failure costs.
LOWERED = 0.1
CLEAN = "clean"


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


@dataclass(frozen=True)
class Folds:
    """The members of an ensemble, each with the cases it was not trained on, and what flags go by on them.

    Args:
        segmenters: per fold, with the calibration and the ranges of the other folds.
        cases: per fold.
    """

    segmenters: list[Segmenter]
    cases: list[list[TrainingCase]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="hippocampus", help="a bundled name or a model file")
    parser.add_argument("--organs", type=Path, nargs="*", default=[], help="scans of other organs")
    parser.add_argument("--cases", type=int, default=3, help="per fold that get every fault")
    parser.add_argument("--clean", type=int, default=1000, help="per fold that are segmented without a fault")
    record_options(parser)
    options = parser.parse_args()
    whole = Segmenter.load(options.model, device="cpu")
    if whole.card.members < 2:
        parser.error(f"{options.model} is a single network, expected an ensemble of folds. Give one by --model.")
    folds = prepare(whole, open_dataset(options.dataset), options.dataset)
    scored = []
    for fold, (segmenter, cases) in enumerate(zip(folds.segmenters, folds.cases, strict=True)):
        scored += list(score_fold(segmenter, cases[: options.clean], options, np.random.default_rng(fold)))
        print(f"fold {fold}: {len(scored)} scans", file=sys.stderr)
    clean = [one for one in scored if one.fault == CLEAN]
    failed = [one for one in scored if one.fault != CLEAN and one.failed]
    kinds = list(dict.fromkeys(one.fault for one in scored))
    rows = [row(kind, [one for one in scored if one.fault == kind]) for kind in kinds]
    rows.append(row("all faults", [one for one in scored if one.fault != CLEAN]))
    publish(
        options,
        f"flags-{slug(Path(options.model).stem)}",
        f"Flags of {whole.card.name} on {options.dataset.name}: faults and clean scans, out of fold",
        [table(rows)],
        [
            headline(f"failures that are flagged, of {len(failed)}", "all faults", "of these flagged"),
            headline(f"clean scans that are flagged, of {len(clean)}", CLEAN, "flagged"),
        ],
    )


def score_fold(
    segmenter: Segmenter, cases: Sequence[TrainingCase], options: argparse.Namespace, rng: np.random.Generator
) -> Iterator[Scored]:
    """All cases of a fold without a fault, the first of them with every fault, and crops of other organs."""
    values = {label.name: label.value for label in segmenter.card.plan.labels}
    extents, usual = [], []
    for number, case in enumerate(cases):
        scan = read_channels(case.images, 1)
        array, affine = np.asarray(scan.channels[0], np.float32), scan.geometry.affine
        reference = read_label(case.label).channels[0]
        clean = scored(segmenter, Fault(CLEAN, array, affine, reference), values)
        yield clean
        extents.append(np.multiply(scan.geometry.shape, scan.geometry.spacing_mm))
        usual.append(clean.dice)
        if number < options.cases:
            for fault in faults_of(array, affine, reference, rng):
                yield scored(segmenter, fault, values)._replace(clean_dice=clean.dice)
    for path in options.organs:
        other = read_scan(path)
        part = crop_of_organ(np.asarray(other.channels[0]), other.geometry.affine, np.median(extents, axis=0), rng)
        yield scored(segmenter, part, values)._replace(clean_dice=float(np.mean(usual)))


def scored(segmenter: Segmenter, fault: Fault, values: dict[str, int]) -> Scored:
    """Segment one scan."""
    result = segmenter((fault.scan, fault.affine))
    dice = 0.0
    if fault.reference is not None:
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
