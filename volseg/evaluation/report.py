"""The scores of many cases as one document: per case and label, their means and their spread; JSON and CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from volseg.data.io.reading import read_label
from volseg.errors import UsageError
from volseg.evaluation.overlap import ABSENT, POLICY, Overlap, label_overlaps, values_in
from volseg.evaluation.pairs import Pair, Pairs, some_of
from volseg.files import write_json, write_text

MEASURES = tuple(field.name for field in fields(Overlap))


class _Compared(NamedTuple):
    """One case: its overlaps by label, and the values in its two images that no label has."""

    overlaps: dict[str, Overlap]
    unnamed_predicted: set[int]
    unnamed_true: set[int]


def evaluate_pairs(
    pairs: Pairs,
    labels: Mapping[str, int | tuple[int, ...]] | None = None,
    workers: int = 1,
    ignore: int | None = None,
) -> dict[str, Any]:
    """Compare label images with their references.

    Args:
        pairs: the files, see `match_pairs`.
        labels: stored value of each label, or values of each region, by name; None: every value found, as label_1,
            label_2, ...
        workers: threads; each holds one prediction and one reference.
        ignore: value in references of voxels to leave out.

    Returns:
        The document of `summarise`, and "warnings": what speaks against the given labels, one sentence each.

    Raises:
        InputError: an image cannot be read; no other case is waited for.
        GridError: a prediction does not lie on the grid of its reference.
    """
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda pair: _compare(pair, labels, ignore), pairs.matched))
    names = labels or sorted({name for one in found for name in one.overlaps}, key=_value_of)
    compared = {pair.name: one for pair, one in zip(pairs.matched, found, strict=True)}
    cases = {case: {name: one.overlaps.get(name, ABSENT) for name in names} for case, one in compared.items()}
    document = summarise(cases, pairs.unmatched_references)
    warnings = [
        *_unnamed("predictions", {case: one.unnamed_predicted for case, one in compared.items()}),
        *_unnamed("references", {case: one.unnamed_true for case, one in compared.items()}),
        *_absent([name for name, mean in document["mean"]["labels"].items() if mean["cases"] == 0]),
    ]
    return {**document, "warnings": warnings}


def summarise(cases: Mapping[str, Mapping[str, Overlap]], unmatched_references: Sequence[str] = ()) -> dict[str, Any]:
    """Gather the overlaps of cases into one document without NaN.

    Args:
        cases: the overlap of each label by name, by case name; every case has the same labels.
        unmatched_references: names of references without a prediction.

    Returns:
        "cases": a name and, per label, the measures of `Overlap`.
        "mean": per label, the means over the cases in which the label counts, and their number ("cases");
        and "foreground_dice", the mean over labels of their mean Dice, or None where no label counts.
        "spread": per label, standard deviations (n - 1) over the same cases, None with fewer than two.
        "unmatched_references", and "policy": when a label counts.
    """
    names = list(next(iter(cases.values()), {}))
    counted = {name: [case[name] for case in cases.values() if case[name].dice is not None] for name in names}
    mean = {name: {**_each_measure(fmean, overlaps, 1), "cases": len(overlaps)} for name, overlaps in counted.items()}
    dice = [label["dice"] for label in mean.values() if label["dice"] is not None]
    return {
        "cases": [
            {"name": case, "labels": {name: asdict(overlap) for name, overlap in overlaps.items()}}
            for case, overlaps in cases.items()
        ],
        "mean": {"labels": mean, "foreground_dice": fmean(dice) if dice else None},
        "spread": {"labels": {name: _each_measure(stdev, overlaps, 2) for name, overlaps in counted.items()}},
        "unmatched_references": list(unmatched_references),
        "policy": POLICY,
    }


def write_report(document: Mapping[str, Any], path: Path) -> None:
    """Write the document of `summarise` as JSON to `path`, and beside it one CSV row per case and label.

    Raises:
        UsageError: `path` does not end in .json.
    """
    check_report_name(path)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["case", "label", *MEASURES])
    for case in document["cases"]:
        writer.writerows([case["name"], label, *measures.values()] for label, measures in case["labels"].items())
    write_json(path, document)
    write_text(path.with_suffix(".csv"), table.getvalue())


def check_report_name(path: Path) -> None:
    """Refuse a name that `write_report` cannot write to."""
    if path.suffix != ".json":
        raise UsageError(f"A report is written to NAME.json and NAME.csv, found {path}. Give a name ending in .json.")


def _compare(pair: Pair, labels: Mapping[str, int | tuple[int, ...]] | None, ignore: int | None) -> _Compared:
    """The overlaps of one case, of the given labels or of those found in its two images."""
    reference = read_label(pair.reference)
    prediction = read_label(pair.prediction, like=reference.geometry)
    true, predicted = reference.channels[0], prediction.channels[0]
    in_true, in_predicted = values_in(true), values_in(predicted)
    values = labels or {f"label_{value}": value for value in in_true | in_predicted}
    overlaps = label_overlaps(predicted, true, values, reference.geometry.voxel_ml, ignore)
    known = {one for value in values.values() for one in ((value,) if isinstance(value, int) else value)} | {ignore}
    return _Compared(overlaps, in_predicted - known, in_true - known)


def _unnamed(kind: str, values: Mapping[str, set[int]]) -> list[str]:
    """What is said of values that no label has, by case, in images of one kind."""
    cases = [case for case, found in values.items() if found]
    if not cases:
        return []
    found = sorted(set().union(*values.values()))
    return [
        f"Values in {kind} that no label has count as background: {some_of(found)} (cases: {some_of(cases)}). "
        "Are these the right labels?"
    ]


def _absent(names: Sequence[str]) -> list[str]:
    """What is said of labels that no image holds."""
    return [f"Labels that are in no image: {some_of(names)}. Are these the right labels?"] if names else []


def _value_of(found_name: str) -> int:
    """The value in a name made up by `_compare`."""
    return int(found_name.removeprefix("label_"))


def _each_measure(
    statistic: Callable[[list[float]], float], overlaps: Iterable[Overlap], at_least: int
) -> dict[str, float | None]:
    """A statistic of each measure over the given overlaps, None where there are too few."""
    rows = [asdict(overlap) for overlap in overlaps]
    return {name: statistic([row[name] for row in rows]) if len(rows) >= at_least else None for name in MEASURES}
