"""The scores of many cases as one report: per case and label, means and standard deviations; JSON and CSV."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median, stdev
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from volseg.data.cases.labels import with_ignore
from volseg.data.io.dicom_labels.label_names import Table
from volseg.data.io.formats import is_dicom
from volseg.data.io.reading import Scan, read_label
from volseg.errors import UsageError
from volseg.evaluation.custom_metrics import Metric, check_metric_names, metric_values
from volseg.evaluation.label_distances import LabelDistances, SurfaceOptions, label_distances
from volseg.evaluation.label_values import Valued, by_record, with_values
from volseg.evaluation.lesions import Lesion, recall_by_volume
from volseg.evaluation.overlap import (
    ABSENT,
    ABSENT_UNSIZED,
    MEASURES,
    POLICY,
    Overlap,
    label_overlaps,
    values_in,
)
from volseg.evaluation.pairs import Pair, Pairs
from volseg.evaluation.statistics import bootstrap_intervals
from volseg.files import require_writable, whole_files, write_json, write_text
from volseg.text import by_sentence, first_few

# The measures of one label in one case, by name.
Measures: TypeAlias = dict[str, float | None]


class _Compared(NamedTuple):
    """One case: its measures by label, the labels that only its reference or only its prediction has, the first value
    of each label, the values in its two images that belong to no label, the warnings of reading them, and whether they
    state their size; and the reference lesions of each label."""

    measures: dict[str, Measures]
    missed: set[str]
    unexpected: set[str]
    first_values: dict[str, int]
    unnamed_predicted: set[int]
    unnamed_true: set[int]
    warnings: tuple[str, ...]
    is_sized: bool
    lesions: Mapping[str, tuple[Lesion, ...]] = MappingProxyType({})


def evaluate_pairs(
    pairs: Pairs,
    labels: Mapping[str, int | tuple[int, ...]] | None = None,
    workers: int = 1,
    ignore: int | None = None,
    metrics: Mapping[str, Metric] | None = None,
    surface: SurfaceOptions | None = None,
    unscored: Collection[int] = (),
) -> dict[str, Any]:
    """Compare label images with their references.

    Args:
        pairs: the files, see `match_pairs`.
        labels: by name, the value of each label in the images, or all values of a region; labels in DICOM have them by
            their names. None: see `volseg.evaluation.label_values`.
        workers: threads; each holds one prediction and one reference in memory.
        ignore: value of ignored voxels in references.
        metrics: custom metrics by name, see `volseg.evaluation.custom_metrics`; several workers call them from several
            threads.
        surface: how surfaces, and lesions, are compared; None: they are not.
        unscored: values in predictions of labels that the references do not have.

    Returns:
        The document of `summarise`, and
        "mean": per label also in how many cases it was "missed", and in how many it was "unexpected": predicted where
        the reference has none.
        "median" and "interval": per label, of each measure the median, and the bootstrap interval [low, high] of the
        mean, see `volseg.evaluation.statistics`.
        "found": per label, the means over the cases in which both images have it, and their number ("cases").
        "surface": `surface`, if it is given. Volumes and distances of a case are None if an image does not state its
        size.
        "lesions": if they are compared, per label how many of the smallest to the largest are found, see
        `volseg.evaluation.lesions.recall_by_volume`.
        "warnings": assumptions made when reading the images, and signs that the given labels do not fit them, one
        sentence each.

    Raises:
        InputError: an image cannot be read; the cases after it are not compared.
        GridError: a prediction does not lie on the grid of its reference.
        UsageError: a metric has a reserved name, or returned something other than a finite number or None.
    """
    metrics = metrics or {}
    check_metric_names(metrics)
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda pair: _compare(pair, labels, ignore, metrics, surface), pairs.matched))
    first = {name: value for one in reversed(found) for name, value in one.first_values.items()}
    names = labels or sorted(first, key=lambda name: (first[name], name))
    compared = {pair.name: one for pair, one in zip(pairs.matched, found, strict=True)}
    others = dict.fromkeys([*(surface.measures if surface else ()), *metrics])
    absent = {sized: {**asdict(ABSENT if sized else ABSENT_UNSIZED), **others} for sized in (True, False)}
    cases = {
        case: {name: one.measures.get(name, absent[one.is_sized]) for name in names} for case, one in compared.items()
    }
    unknown = {pair.name: missing for pair in pairs.matched if (missing := pair.own.missing(names))}
    cases |= {case: without(cases[case], missing) for case, missing in unknown.items()}
    document = summarise(cases, pairs.unmatched_references, unknown)
    _add_statistics(document, cases, compared)
    if surface:
        document["surface"] = asdict(surface)
    if surface and surface.lesions:
        pooled = {name: [lesion for one in found for lesion in one.lesions.get(name, ())] for name in names}
        document["lesions"] = {"labels": {name: recall_by_volume(every) for name, every in pooled.items()}}
    warnings = [
        *by_sentence({case: one.warnings for case, one in compared.items()}),
        *_unnamed("predictions", {case: one.unnamed_predicted - {*unscored} for case, one in compared.items()}),
        *_unnamed("references", {case: one.unnamed_true for case, one in compared.items()}),
        *_absent(
            [name for name, mean in document["mean"]["labels"].items() if mean["cases"] == 0],
            list(unknown.values()),
            len(cases),
        ),
    ]
    return {**document, "warnings": warnings}


def _add_statistics(
    document: dict[str, Any], cases: Mapping[str, Mapping[str, Measures]], compared: Mapping[str, _Compared]
) -> None:
    """Add "median", "interval" and "found" to the document of `summarise`; to its means "missed" and "unexpected"."""
    counted = _counted(cases)
    document["median"] = {
        "labels": {label: _each_measure(median, rows, [*rows[0]], 1) for label, rows in counted.items() if rows}
    }
    document["interval"] = {"labels": {label: _intervals(rows) for label, rows in counted.items() if rows}}
    document["found"] = {"labels": {}}
    for name, mean in document["mean"]["labels"].items():
        names = [measure for measure in mean if measure != "cases"]
        both = [cases[case][name] for case, one in compared.items() if name not in one.missed | one.unexpected]
        document["found"]["labels"][name] = _means([row for row in both if row["dice"] is not None], names)
        mean["missed"] = sum(name in one.missed for one in compared.values())
        mean["unexpected"] = sum(name in one.unexpected for one in compared.values())


def as_measures(overlaps: Mapping[str, Overlap]) -> dict[str, Measures]:
    """The overlaps of a case by label as `summarise` takes them."""
    return {label: asdict(overlap) for label, overlap in overlaps.items()}


def without(measures: Mapping[str, Measures], labels: Collection[str]) -> dict[str, Measures]:
    """The measures of a case in which nobody looked for some labels: all of theirs are None, so they do not count."""
    return {name: dict.fromkeys(one) if name in labels else one for name, one in measures.items()}


def summarise(
    cases: Mapping[str, Mapping[str, Measures]],
    unmatched_references: Sequence[str] = (),
    unknown: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Gather the measures of cases into one document without NaN.

    Args:
        cases: by case name, the measures of each label by name; every case has the same labels and measures.
        unmatched_references: names of references without a prediction.
        unknown: by case name, the labels that nobody looked for in the reference; of the cases that have such labels.

    Returns:
        "cases": a name and, per label, the measures of `Overlap` and the custom metrics; "not_annotated", where there
        are any, the labels that nobody looked for.
        "mean": per label, the mean of each measure over the cases in which the label counts, and the number of these
        cases ("cases"); and "foreground_dice", the mean over labels of their mean Dice, or None if no label counts.
        "spread": per label, standard deviations (n - 1) over the same cases, None with fewer than two values.
        A value of None is left out of the mean and the standard deviation of its measure.
        "unmatched_references", and "policy": when a label counts.
    """
    first = next(iter(cases.values()), {})
    names = list(next(iter(first.values()), ()))
    counted = _counted(cases)
    mean = {label: _means(rows, names) for label, rows in counted.items()}
    dice = [label["dice"] for label in mean.values() if label["dice"] is not None]
    return {
        "cases": [
            {"name": case, "labels": dict(measures)} | ({"not_annotated": missing} if missing else {})
            for case, measures in cases.items()
            for missing in [list((unknown or {}).get(case, ()))]
        ],
        "mean": {"labels": mean, "foreground_dice": fmean(dice) if dice else None},
        "spread": {"labels": {label: _each_measure(stdev, rows, names, 2) for label, rows in counted.items()}},
        "unmatched_references": list(unmatched_references),
        "policy": POLICY,
    }


def write_report(document: Mapping[str, Any], path: Path) -> None:
    """Write the document of `summarise` as JSON to `path`, and next to it a CSV with a row per case and label.

    Both files appear, or none: a reader never finds the table of another report.

    Raises:
        UsageError: `path` does not end in .json.
    """
    check_report_name(path)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    rows = [(case["name"], label, measures) for case in document["cases"] for label, measures in case["labels"].items()]
    writer.writerow(["case", "label", *(rows[0][2] if rows else MEASURES)])
    writer.writerows([case, label, *measures.values()] for case, label, measures in rows)
    with whole_files(path.parent, path.name) as folder:
        write_text(folder / path.with_suffix(".csv").name, table.getvalue())
        write_json(folder / path.name, document)


def check_report_name(path: Path) -> None:
    """Reject a file name that `write_report` cannot write to."""
    if path.suffix != ".json":
        raise UsageError(f"A report is written to NAME.json and NAME.csv, found {path}. Give a name ending in .json.")
    require_writable([path, path.with_suffix(".csv")])


def _compare(
    pair: Pair,
    labels: Mapping[str, int | tuple[int, ...]] | None,
    ignore: int | None,
    metrics: Mapping[str, Metric],
    surface: SurfaceOptions | None,
) -> _Compared:
    """The measures of one case, of the given labels or of those found in its two images."""
    table = None if labels is None else with_ignore({name: _as_values(value) for name, value in labels.items()}, ignore)
    reference, prediction = _read_pair(pair, table)
    valued = Valued(reference, prediction, labels) if labels else with_values(reference, prediction)
    reference, prediction, values, about = valued
    true, predicted = reference.channels[0], prediction.channels[0]
    in_true, in_predicted = values_in(true), values_in(predicted)
    unstated = reference.unstated or prediction.unstated
    voxel_ml = None if unstated else reference.geometry.voxel_ml
    measures = as_measures(label_overlaps(predicted, true, values, voxel_ml, ignore))
    spacing_mm = reference.geometry.spacing_mm
    distances: Mapping[str, LabelDistances] = {}
    if surface:
        distances = dict.fromkeys(values, LabelDistances(dict.fromkeys(surface.measures)))
        if not unstated:
            distances = label_distances(predicted, true, values, spacing_mm, surface, ignore)
        measures = {label: {**others, **distances[label].measures} for label, others in measures.items()}
    if metrics:
        custom = metric_values(metrics, predicted, true, values, spacing_mm, pair.name, ignore)
        measures = {label: {**others, **custom[label]} for label, others in measures.items()}
    # What is predicted of a label that nobody looked for is not unexpected.
    looked_for = {name: set(_as_values(value)) for name, value in values.items() if pair.own.has(name)}
    missed, unexpected = (
        {name for name, every in looked_for.items() if every & here and not every & there}
        for here, there in ((in_true, in_predicted), (in_predicted, in_true))
    )
    known = {one for value in values.values() for one in _as_values(value)} | {ignore}
    first = {name: min(_as_values(value)) for name, value in values.items()}
    warnings = tuple(dict.fromkeys((*reference.warnings, *prediction.warnings, *about)))
    lesions = {name: one.lesions for name, one in distances.items()}
    unnamed = (in_predicted - known, in_true - known)
    return _Compared(measures, missed, unexpected, first, *unnamed, warnings, not unstated, lesions)


def _as_values(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else value


def _read_pair(pair: Pair, labels: Table | None) -> tuple[Scan, Scan]:
    """The reference and the prediction of a case; a reference in DICOM alone is placed on the prediction's grid."""
    if is_dicom(pair.reference) and not is_dicom(pair.prediction):
        prediction = _read_prediction(pair, None, labels)
        return _read_reference(pair, prediction, labels), prediction
    reference = _read_reference(pair, None, labels)
    return reference, _read_prediction(pair, reference, labels)


def _read_prediction(pair: Pair, like: Scan | None, labels: Table | None) -> Scan:
    """The prediction of a case, its labels matched by name where its record names them."""
    prediction = read_label(pair.prediction, like, labels=labels)
    return prediction if labels is None else by_record(prediction, pair.prediction, labels)


def _read_reference(pair: Pair, like: Scan | None, labels: Table | None) -> Scan:
    """The reference of a case; without labels it has the values of its file."""
    if labels is None:
        return read_label(pair.reference, like)
    return pair.own.read(read_label, pair.reference, like, None, labels)


def _unnamed(kind: str, values: Mapping[str, set[int]]) -> list[str]:
    """The warning about values without a label, by case, in predictions or references."""
    cases = [case for case, found in values.items() if found]
    if not cases:
        return []
    found = sorted(set().union(*values.values()))
    return [
        f"Values in {kind} without a label name count as background: {first_few(found)} (cases: {first_few(cases)}). "
        "Are these the right labels?"
    ]


def _absent(absent: Sequence[str], unknown: Sequence[Sequence[str]], cases: int) -> list[str]:
    """The warning about labels that occur in no image, of those that somebody looked for in one of the cases."""
    names = [name for name in absent if not cases or sum(name in one for one in unknown) < cases]
    return [f"Labels that occur in no image: {first_few(names)}. Are these the right labels?"] if names else []


def _counted(cases: Mapping[str, Mapping[str, Measures]]) -> dict[str, list[Measures]]:
    """The measures of each label in the cases in which it counts."""
    first = next(iter(cases.values()), {})
    return {label: [case[label] for case in cases.values() if case[label]["dice"] is not None] for label in first}


def _intervals(rows: Sequence[Measures]) -> dict[str, list[float] | None]:
    """The bootstrap interval of the mean of each measure, as JSON has it."""
    columns = np.array([[np.nan if value is None else value for value in row.values()] for row in rows])
    return {name: found and [*found] for name, found in zip(rows[0], bootstrap_intervals(columns), strict=True)}


def _means(rows: Sequence[Measures], names: Iterable[str]) -> dict[str, Any]:
    """The mean of each named measure over the rows that have it, and the number of rows ("cases")."""
    return {**_each_measure(fmean, rows, names, 1), "cases": len(rows)}


def _each_measure(
    statistic: Callable[[list[float]], float], rows: Sequence[Measures], names: Iterable[str], at_least: int
) -> Measures:
    """A statistic of each named measure over the rows that have it, None where they are too few."""
    values = {name: [value for row in rows if (value := row[name]) is not None] for name in names}
    return {name: statistic(found) if len(found) >= at_least else None for name, found in values.items()}
