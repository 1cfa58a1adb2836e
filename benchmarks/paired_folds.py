"""Out-of-fold Dice of two recipes on the same folds, paired by case: is the gain larger than chance?

    python benchmarks/paired_folds.py --before RUN... --after RUN... [--what "..."] [--record]

Reads run folders that `volseg train` has left, one per fold and recipe, all of one dataset and seed. A case counts with
the mean Dice of its labels. The standard error is that of the mean of the paired differences. Needs volseg.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from common.record import publish, record_options, slug
from common.results import Row, headline, table

from volseg.modelfile import read_card

Scores = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--after", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--what", default="", help="what differs, for the title")
    record_options(parser)
    options = parser.parse_args()
    before, after = scores_of(options.before), scores_of(options.after)
    if before.keys() != after.keys():
        parser.error(
            f"the cases differ: {', '.join(sorted(before.keys() ^ after.keys()))}; give runs of the same folds"
        )
    labels = list(next(iter(before.values())))
    rows = [row(label, before, after, [label]) for label in labels] if labels[1:] else []
    rows.append(row("all labels", before, after, labels))
    card = read_card(options.after[0] / "model.safetensors")
    folds = sorted({read_card(run / "model.safetensors").training["fold"] for run in options.after})
    title = f"{card.training['dataset']}, folds {', '.join(map(str, folds))}: {options.what or 'two recipes'}"
    cases: list[Row] = [
        {"case": name, "before": round(mean(before[name], labels), 4), "after": round(mean(after[name], labels), 4)}
        for name in sorted(before)
    ]
    publish(
        options,
        f"paired-{slug(title)}",
        f"Out-of-fold Dice, {title}",
        [table(rows), table(cases, caption="Mean Dice of each case")],
        [headline(title, "all labels", "mean gain")],
    )


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


def mean(dice: dict[str, float], labels: Sequence[str]) -> float:
    """The mean over those labels that a case has."""
    return statistics.mean(dice[label] for label in labels if label in dice)


if __name__ == "__main__":
    main()
