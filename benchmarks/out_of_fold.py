"""Dice of an ensemble of folds on its training data: of each case by the network that did not see it.

    python benchmarks/out_of_fold.py DATASET [--model hippocampus] [--precision auto] [--append]

Takes the networks out of the model file one by one and has each segment the cases of its own fold, so what the file's
card says of them can be seen again in minutes. Needs volseg and the dataset the model was trained on.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from precision import held_out, mean_dice
from sides import as_table, publish

from volseg import Segmenter
from volseg.precision import DTYPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="hippocampus", help="a bundled name or a model file")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    options = parser.parse_args()
    whole = Segmenter.load(options.model, precision=options.precision)
    if whole.card.members < 2:
        parser.error(f"{options.model} is a single network; --model takes an ensemble of folds")
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
    title = f"Out of fold: {whole.card.name} on {options.dataset.name}, {whole.device}"
    command = f"python benchmarks/out_of_fold.py $VOLSEG_DATA/{options.dataset.name} --model {Path(options.model).name}"
    publish(title, f"{command} --precision {options.precision}", as_table(rows), options.append)


def row(fold: str, cases: int, dice: dict[str, float], recorded: float) -> dict[str, object]:
    """One fold's row of the table."""
    return {
        "fold": fold,
        "cases not seen": cases,
        **{f"Dice {label}": f"{mean:.4f}" for label, mean in dice.items()},
        "mean foreground Dice": f"{statistics.mean(dice.values()):.4f}",
        "in the model's card": f"{recorded:.4f}",
    }


if __name__ == "__main__":
    main()
