"""Out-of-fold Dice of two recipes on the same folds, paired by case: is the gain larger than chance?

    python benchmarks/paired_folds.py --before RUN... --after RUN... [--data DATASET] [--what "..."] [--record]

Reads run folders that `volseg train` has left, one per fold and recipe, all of one dataset and seed. A case counts with
the mean Dice of its labels. The standard error is that of the mean of the paired differences.

A run with enough validation cases has component rules that were chosen on the cases that it scores. With `--data` all
cases are segmented again, both recipes without rules; the last row adds to the second recipe the rules that are chosen
on the cases of all other folds, as `volseg ensemble` chooses them on all folds. Needs volseg.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common.record import publish, record_options, slug
from common.results import Row, headline, table
from precision import held_out

from volseg import Segmenter
from volseg.config import ComponentRule, Plan
from volseg.data.cases.labels import table_of
from volseg.data.io.reading import read_channels, read_label
from volseg.evaluation.overlap import label_overlaps
from volseg.modelfile import read_card
from volseg.postprocessing.applying import postprocess
from volseg.postprocessing.choosing import choose_rules
from volseg.postprocessing.tally import rule_scores

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Segmented:
    """A validation case as a run segments it without rules, and its reference; (I, J, K)."""

    run: Path
    plan: Plan
    voxel_ml: float
    labels: np.ndarray
    reference: np.ndarray
    unknown: Sequence[str]

    def dice(self, rules: dict[str, ComponentRule]) -> dict[str, float]:
        """The Dice of each label after rules; a label that neither image has is left out."""
        labels, values = self.labels.copy(), {label.name: label.stored_values for label in self.plan.labels}
        postprocess(labels, self.plan.labels, rules, self.voxel_ml)
        found = label_overlaps(labels, self.reference, values, self.voxel_ml, self.plan.ignore)
        return {name: one.dice for name, one in found.items() if one.dice is not None and name not in self.unknown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--after", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--data", type=Path, metavar="DATASET", help="segment its cases again, without rules")
    parser.add_argument("--what", default="", help="what differs, for the title")
    record_options(parser)
    options = parser.parse_args()
    if options.data:
        first, second = segmented(options.before, options.data), segmented(options.after, options.data)
        before, after = ({name: case.dice({}) for name, case in cases.items()} for cases in (first, second))
        ruled = with_rules_of_other_folds(second)
    else:
        before, after, ruled = scores_of(options.before), scores_of(options.after), None
    if before.keys() != after.keys():
        parser.error(
            f"the cases differ: {', '.join(sorted(before.keys() ^ after.keys()))}; give runs of the same folds"
        )
    labels = list(next(iter(before.values())))
    rows = [row(label, before, after, [label]) for label in labels] if labels[1:] else []
    rows.append(row("all labels", before, after, labels))
    if ruled:
        rows.append(row("all labels, after with rules", before, ruled, labels))
    card = read_card(options.after[0] / "model.safetensors")
    folds = sorted({read_card(run / "model.safetensors").training["fold"] for run in options.after})
    title = f"{card.training['dataset']}, folds {', '.join(map(str, folds))}: {options.what or 'two recipes'}"
    columns = {"before": before, "after": after, **({"after with rules": ruled} if ruled else {})}
    cases: list[Row] = [
        {"case": name, **{what: mean_or_none(scores[name], labels) for what, scores in columns.items()}}
        for name in sorted(before)
    ]
    publish(
        options,
        f"paired-{slug(title)}",
        f"Out-of-fold Dice, {title}",
        [table(rows), table(cases, caption="Mean Dice of each case")],
        [headline(title, rows[-1]["label"], "mean gain")],
    )


def segmented(runs: Sequence[Path], data: Path) -> dict[str, Segmented]:
    """The validation cases of some runs, by name, segmented by the models without their rules."""
    found = {}
    for run in runs:
        loaded = Segmenter.load(run / "model.safetensors", "cpu")
        card = loaded.card.model_copy(update={"postprocessing": {}})
        segmenter, plan = replace(loaded, card=card), card.plan
        for case in held_out(data, card.training["fold"]):
            result = segmenter(read_channels(case.images, len(plan.channels)))
            geometry = result.scan.geometry
            reference = case.own.read(read_label, case.label, geometry, None, table_of(plan)).channels[0]
            unknown = case.own.missing([label.name for label in plan.labels])
            found[case.name] = Segmented(run, plan, geometry.voxel_ml, result.labels, reference, unknown)
    return found


def with_rules_of_other_folds(cases: dict[str, Segmented]) -> Scores:
    """The Dice of each case after the rules that the cases of all other folds choose."""
    tried = {
        name: rule_scores(one.labels, one.reference, one.plan, one.voxel_ml, one.unknown) for name, one in cases.items()
    }
    dice = {}
    for name, case in cases.items():
        others = [tried[other] for other, one in cases.items() if one.run != case.run]
        dice[name] = case.dice(choose_rules(others, case.plan.labels).rules)
    return dice


def scores_of(runs: Sequence[Path]) -> Scores:
    """The Dice of each label in each validation case of some runs; a label that neither image has is left out."""
    return {
        case["name"]: {name: one["dice"] for name, one in case["labels"].items() if one["dice"] is not None}
        for run in runs
        for case in json.loads((run / "validation.json").read_text(encoding="utf-8"))["cases"]
    }


def row(what: str, before: Scores, after: Scores, labels: Sequence[str]) -> Row:
    """Means over the cases, the mean gain, and its standard error."""
    names = [name for name in before if any(label in before[name] and label in after[name] for label in labels)]
    gains = [mean(after[name], labels) - mean(before[name], labels) for name in names]
    return {
        "label": what,
        "cases": len(names),
        "Dice before": round(statistics.mean(mean(before[name], labels) for name in names), 4),
        "Dice after": round(statistics.mean(mean(after[name], labels) for name in names), 4),
        "mean gain": round(statistics.mean(gains), 4),
        "standard error": round(statistics.stdev(gains) / len(gains) ** 0.5, 4),
        "cases that gain": sum(gain > 0 for gain in gains),
    }


def mean_or_none(dice: dict[str, float], labels: Sequence[str]) -> float | None:
    """The mean in four decimals; None for a case without any label."""
    return round(mean(dice, labels), 4) if dice else None


def mean(dice: dict[str, float], labels: Sequence[str]) -> float:
    """The mean over those labels that a case has."""
    return statistics.mean(dice[label] for label in labels if label in dice)


if __name__ == "__main__":
    main()
