"""Scores of finished trainings with one command, over folds or seeds, and the validation Dice during training.

    python benchmarks/train_scores.py RUN... [--record]

Reads run folders that `volseg train` has left. The recorded command is that of the first run; machine and commit are
those of this process, so run it on the machine, and in the checkout, that trained. Needs volseg.
"""

import argparse
import shlex
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.record import publish, record_options, slug
from common.results import Row, headline, table
from common.runs import dice_columns, foreground_columns, validation_curve

from volseg.modelfile import read_card

# What may differ between the runs of one table.
PER_RUN = ("--fold", "--folds", "--seed", "--output")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    record_options(parser)
    options = parser.parse_args()
    cards = [read_card(run / "model.safetensors") for run in options.runs]
    first = cards[0].training
    kinds = {slug(" ".join(command_of(card.training))) for card in cards}
    if len(kinds) > 1:
        parser.error(f"the runs differ not only in fold and seed: {', '.join(sorted(kinds))}; give runs of one command")
    rows = [row(card.training, card.scores) for card in cards]
    if rows[1:]:
        rows.append(row_of_all([card.scores for card in cards]))
    tables = [table(rows)]
    if curve := validation_curve(options.runs):
        tables.append(table(curve, caption="Validation during training, EMA of the weights"))
    title = title_of(first)
    what = f"{title}, {rows[-1]['validation cases']} validation cases"
    heads = [headline(what, rows[-1]["run"], "mean foreground Dice")]
    publish(options, kinds.pop(), title, tables, heads, command=first["command"])


def command_of(training: dict[str, Any]) -> list[str]:
    """The words of a run's command without volseg, fold, seed and folder."""
    words = shlex.split(training["command"])[1:]
    return [word for before, word in pairwise(["", *words]) if not {before, word} & set(PER_RUN)]


def title_of(training: dict[str, Any]) -> str:
    """What was trained, for how long, and with which settings."""
    _, dataset, *words = command_of(training)
    options = list(zip(words[::2], words[1::2], strict=True))
    minutes = dict(options).get("--minutes")
    budget = f"{minutes} minutes" if minutes else f"{training['steps']} steps"
    return ", ".join([f"Training for {budget}: {dataset}", *(value for name, value in options if name == "--set")])


def row(training: dict[str, Any], scores: dict[str, Any]) -> Row:
    """The scores of one run's written label images."""
    return {
        "run": f"fold {training['fold']}, seed {training['seed']}",
        "seconds": round(training["seconds"]),
        "steps": training["steps"],
        "validation cases": scores["cases"],
        **dice_columns([scores]),
        **foreground_columns([scores["foreground_dice"]]),
    }


def row_of_all(scores: Sequence[dict[str, Any]]) -> Row:
    """All runs together: per label the mean over the cases of all of them."""
    dice = {}
    for label in scores[0]["labels"]:
        found = [one["labels"][label] for one in scores]
        dice[label] = sum(one["dice"] * one["cases"] for one in found) / sum(one["cases"] for one in found)
    return {
        "run": "all",
        "validation cases": sum(one["cases"] for one in scores),
        **{f"Dice {label}": round(mean, 4) for label, mean in dice.items()},
        **foreground_columns([statistics.mean(dice.values())]),
    }


if __name__ == "__main__":
    main()
