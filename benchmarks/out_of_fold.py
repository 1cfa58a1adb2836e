"""Out-of-fold Dice of an ensemble: each case is segmented by the member that was not trained on it.

    python benchmarks/out_of_fold.py DATASET [--model hippocampus] [--precision auto] [--record]

Each member of the model file segments the validation cases of its fold, which reproduces the scores in the model card
within minutes. Needs volseg and the dataset the model was trained on.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from common.record import publish, record_options, slug
from common.results import Row, headline, table
from precision import held_out, mean_dice

from volseg import Segmenter
from volseg.precision import DTYPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="hippocampus", help="a bundled name or a model file")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    record_options(parser)
    options = parser.parse_args()
    whole = Segmenter.load(options.model, precision=options.precision)
    if whole.card.members < 2:
        parser.error(f"{options.model} is a single network, expected an ensemble of folds. Give one by --model.")
    rows, found = [], []
    for network, record, scores in zip(
        whole.labeller.network.members, whole.card.training["members"], whole.card.scores["members"], strict=True
    ):
        cases = held_out(options.dataset, record["fold"])
        dice = mean_dice(replace(whole, network=network), cases)
        found.append((len(cases), dice))
        rows.append(row(str(record["fold"]), len(cases), dice, scores["foreground_dice"]))
    total = sum(count for count, _ in found)
    together = {label: sum(count * dice[label] for count, dice in found) / total for label in found[0][1]}
    rows.append(row("all", total, together, whole.card.scores["out_of_fold"]["foreground_dice"]))
    publish(
        options,
        f"out-of-fold-{slug(Path(options.model).stem)}",
        f"Out-of-fold Dice of {whole.card.name} on {options.dataset.name}, member by member",
        [table(rows)],
        [headline(f"{whole.card.name} out of fold, {total} cases", "all", "mean foreground Dice")],
    )


def row(fold: str, cases: int, dice: dict[str, float], recorded: float) -> Row:
    """The row of one fold."""
    return {
        "fold": fold,
        "validation cases": cases,
        **{f"Dice {label}": round(mean, 4) for label, mean in dice.items()},
        "mean foreground Dice": round(statistics.mean(dice.values()), 4),
        "mean foreground Dice in the model card": round(recorded, 4),
    }


if __name__ == "__main__":
    main()
