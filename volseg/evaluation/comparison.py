"""Several models on the same cases: paired differences, and a ranking that says what cannot be told apart."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from volseg.errors import InputError
from volseg.evaluation.statistics import SIGNIFICANT, bootstrap_intervals, holm, wilcoxon_p
from volseg.text import counted, first_few

# Each with whether more of it is better.
COMPARED = {"dice": True, "surface_dice": True, "hausdorff95_mm": False}


def compare_reports(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the reports of several models, see `volseg.evaluation.report.evaluate_pairs`.

    The score of a case is the mean over its labels; a label that neither image has does not count.

    Args:
        reports: by the name of the model; all of the same cases and labels.

    Returns:
        "models", "cases" (names), "surface" (of the first report), and "measures", with an entry for each measure:
        "ranking": the models, best mean first: "mean", its bootstrap interval "low" and "high", "median", "worst", and
        "rank", 1 + the number of models that are better beyond chance.
        "pairs": of each two models, the mean "difference" of the first to the second, its interval, "better" and
        "worse" (cases of the first), "p" of the Wilcoxon test and "p_holm" over all pairs, and whether they are
        "distinguishable".
        "labels": the mean of each label by model. "cases": the score of each case by model.

    Raises:
        InputError: the reports are of different cases or labels.
    """
    names = list(reports)
    first = reports[names[0]]
    cases = [case["name"] for case in first["cases"]]
    labels = list(first["mean"]["labels"])
    for name in names[1:]:
        _check_same(names[0], cases, name, [case["name"] for case in reports[name]["cases"]], "cases")
        _check_same(names[0], labels, name, list(reports[name]["mean"]["labels"]), "labels")
    known = [measure for measure in COMPARED if labels and measure in first["mean"]["labels"][labels[0]]]
    return {
        "models": names,
        "cases": cases,
        "surface": first.get("surface"),
        "measures": {measure: _compared(reports, measure, labels) for measure in known},
    }


def too_few_cases(cases: int, models: int) -> str | None:
    """Why models cannot be told apart, however much they differ: with so few cases, or so many pairs of models."""
    pairs = models * (models - 1) // 2
    smallest = pairs * wilcoxon_p(range(1, cases + 1)) if cases else 1.0
    if smallest < SIGNIFICANT:
        return None
    return (
        f"{models} models on {counted(cases, 'case')} cannot be told apart, whatever their difference: the smallest p "
        f"is {min(smallest, 1.0):.2g}, and {SIGNIFICANT} is needed. Compare on more cases."
    )


def _check_same(one: str, expected: Sequence[str], other: str, found: Sequence[str], what: str) -> None:
    if differ := sorted(set(expected) ^ set(found)):
        raise InputError(
            f"{one} and {other} have different {what}: {first_few(differ)} only in one of them. "
            f"Compare predictions of the same {what}."
        )


def _compared(reports: Mapping[str, Mapping[str, Any]], measure: str, labels: Sequence[str]) -> dict[str, Any]:
    """The comparison by one measure."""
    scores = {name: _case_scores(report, measure) for name, report in reports.items()}
    columns = np.array([[np.nan if value is None else value for value in one] for one in scores.values()]).T
    rows: list[dict[str, Any]] = []
    for (name, values), interval in zip(scores.items(), bootstrap_intervals(columns), strict=True):
        known = [value for value in values if value is not None]
        low, high = interval or (None, None)
        worst = (min if COMPARED[measure] else max)(known, default=None)
        middle = {"median": median(known), "mean": fmean(known)} if known else {"median": None, "mean": None}
        rows.append({"model": name, **middle, "low": low, "high": high, "worst": worst})
    pairs = _pairs(scores, measure)
    for row in rows:
        row["rank"] = 1 + sum(_is_better(pair, row["model"]) for pair in pairs)
    sign = -1 if COMPARED[measure] else 1
    rows.sort(key=lambda row: (row["mean"] is None, sign * (row["mean"] or 0.0)))
    return {
        "ranking": rows,
        "pairs": pairs,
        "labels": {
            label: {name: report["mean"]["labels"][label][measure] for name, report in reports.items()}
            for label in labels
        },
        "cases": {
            case["name"]: {name: scores[name][place] for name in reports}
            for place, case in enumerate(next(iter(reports.values()))["cases"])
        },
    }


def _case_scores(report: Mapping[str, Any], measure: str) -> list[float | None]:
    """The mean of a measure over the labels of each case."""
    values = [[row[measure] for row in case["labels"].values() if row[measure] is not None] for case in report["cases"]]
    return [fmean(one) if one else None for one in values]


def _pairs(scores: Mapping[str, Sequence[float | None]], measure: str) -> list[dict[str, Any]]:
    """The paired comparison of each two models."""
    rows: list[dict[str, Any]] = []
    for one, other in combinations(scores, 2):
        found = [a - b for a, b in zip(scores[one], scores[other], strict=True) if a is not None and b is not None]
        interval = bootstrap_intervals(np.array(found)[:, None])[0] if found else None
        low, high = interval or (None, None)
        up, down = sum(value > 0 for value in found), sum(value < 0 for value in found)
        better, worse = (up, down) if COMPARED[measure] else (down, up)
        rows.append(
            {
                "first": one, "second": other, "difference": fmean(found) if found else None, "low": low, "high": high,
                "better": better, "worse": worse, "cases": len(found), "p": wilcoxon_p(found) if found else 1.0,
            }
        )  # fmt: skip
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
        row["distinguishable"] = corrected < SIGNIFICANT
        gains = row["difference"] is not None and (row["difference"] > 0) == COMPARED[measure]
        row["winner"] = (row["first"] if gains else row["second"]) if row["distinguishable"] else None
    return rows


def _is_better(pair: Mapping[str, Any], model: str) -> bool:
    """Whether the other model of a pair is better than this one, beyond chance."""
    return model in (pair["first"], pair["second"]) and pair["winner"] not in (None, model)
