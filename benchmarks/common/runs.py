"""Figures from finished run folders."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.results import Row


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The records of a run's steps, the first step first."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def scores_of(run: Path) -> dict[str, Any]:
    """The mean scores of the label images that the model of a run wrote for its validation cases."""
    return json.loads((run / "validation.json").read_text(encoding="utf-8"))["mean"]


def dice_columns(scores: Sequence[dict[str, Any]]) -> Row:
    """Dice per label, the mean over `scores`."""
    return {
        f"Dice {name}": round(statistics.mean(one["labels"][name]["dice"] for one in scores), 4)
        for name in scores[0]["labels"]
    }


def foreground_columns(values: Iterable[float]) -> Row:
    """The mean foreground Dice; of several runs also the lowest and the highest."""
    found = [round(value, 4) for value in values]
    spread = {"lowest": min(found), "highest": max(found)} if found[1:] else {}
    return {"mean foreground Dice": round(statistics.mean(found), 4), **spread}


def validation_curve(runs: Sequence[Path]) -> list[Row]:
    """Dice of the EMA of the weights during training: a row per validation, means over the runs.

    A short run skips a validation when the one before takes too long; then the last ones are not compared.
    """
    scored = [[record for record in steps_of(run) if "foreground_dice" in record] for run in runs]
    return [
        {
            "seconds": round(statistics.mean(record["seconds"] for record in at)),
            "steps": round(statistics.mean(record["step"] for record in at)),
            **foreground_columns(record["foreground_dice"] for record in at),
        }
        for at in zip(*scored, strict=False)
    ]
