"""Comparing label images with references, and models with each other."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.data.cases.labels import LabelSet
from volseg.errors import UsageError
from volseg.evaluation.comparison import compare_reports, too_few_cases
from volseg.evaluation.custom_metrics import Metric
from volseg.evaluation.label_distances import SurfaceOptions
from volseg.evaluation.pairs import annotated_pairs, labels_of, match_pairs, read_labels_file
from volseg.evaluation.report import check_report_name, evaluate_pairs, write_report
from volseg.report.comparison_page import check_comparison_folder, write_comparison

logger = logging.getLogger(__name__)


def evaluate(
    predictions: str | Path,
    references: str | Path,
    labels: str | Path | Mapping[Any, Any] | None = None,
    output: str | Path | None = None,
    metrics: Mapping[str, Metric] | None = None,
    surface: str = "surface-distance",
    tolerance_mm: float = 1.0,
    lesions: str | None = None,
) -> dict[str, Any]:
    """Compare label images with their references.

    Args:
        predictions: a label image, or a folder of them.
        references: its reference, or a folder of them; matched by name without suffix.
        labels: {name: value in the images}, or a file with such a mapping (a dataset.json, JSON or YAML). Both are
            read alike: the background is left out, names may stand by their numbers, a region (a list of values) is
            compared as the union of its values, and voxels with the ignore label are excluded. A label that is not
            "annotated" in a case is left out there. Where the record of a prediction gives its labels other values,
            they are matched by name.
            Labels of DICOM SEG and RTSTRUCT get the values of the labels of their names. None: the values found, and
            of DICOM the names.
        output: the report as JSON; a CSV is written next to it.
        metrics: custom metrics by name, in addition to the built-in ones. Each is called per case and label as
            `metric(prediction, reference, spacing_mm)` if at least one of the two masks is not empty, and returns a
            finite number, or None to be left out of the mean. Masks are boolean (I, J, K) in the voxel order of the
            files, False in voxels that the reference ignores; spacing_mm is along I, J, K.
        surface: the tool whose definition of distances is followed, see `volseg.evaluation.distances`.
        tolerance_mm: of the normalised surface Dice.
        lesions: overlap, brats2023 or cc: lesions are matched by this rule, see `volseg.evaluation.lesions`.

    Returns:
        The report: per case and label Dice, IoU, precision, recall, volumes in millilitres, distances between the
        surfaces in mm, the normalised surface Dice and the given metrics, then mean and standard deviation ("spread")
        over cases, and the mean over the cases in which both images have the label ("found"); with `lesions` also how
        many lesions are found, by their volume. "policy" states how empty masks count; "warnings" are signs that the
        labels do not fit the images, which are also logged.

    Raises:
        InputError: a prediction without a reference, grids that differ, or an image that is not a label image.
        UsageError: a metric has the name of a built-in measure, or returned something other than a finite number or
            None; there is no such surface or rule for lesions; or `output` does not end in .json.
    """
    options = SurfaceOptions(surface, tolerance_mm, lesions)
    if output:
        check_report_name(Path(output))
    pairs = match_pairs(Path(predictions), Path(references))
    known = LabelSet({})
    if labels:
        source = str(labels) if isinstance(labels, str | Path) else "The labels"
        stated = read_labels_file(Path(labels)) if isinstance(labels, str | Path) else labels
        known = labels_of(stated, source)
        pairs = annotated_pairs(pairs, stated, list(known.values), source)
    document = evaluate_pairs(pairs, known.stored or None, ignore=known.ignore, metrics=metrics, surface=options)
    for warning in document["warnings"]:
        logger.warning("%s", warning)
    if output:
        write_report(document, Path(output))
    return document


def compare(
    predictions: Sequence[str | Path] | Mapping[str, str | Path],
    references: str | Path,
    labels: str | Path | Mapping[Any, Any] | None = None,
    output: str | Path | None = None,
    surface: str = "surface-distance",
    tolerance_mm: float = 1.0,
) -> dict[str, Any]:
    """Compare the predictions of several models on the same cases: a ranking that says what cannot be told apart.

    Args:
        predictions: folders of label images, one per model; their names are the models', unless they are given.
        references: a folder of references, matched by name without suffix.
        labels: as for `evaluate`.
        output: a folder for comparison.json, comparison.csv (a row per case and model) and comparison.html.
        surface: as for `evaluate`.
        tolerance_mm: as for `evaluate`.

    Returns:
        See `volseg.evaluation.comparison.compare_reports`; and "warnings".

    Raises:
        UsageError: fewer than two models, or two of one name.
        InputError: predictions of different cases; or as for `evaluate`.
    """
    models = _named(predictions)
    if output:
        check_comparison_folder(Path(output))
    reports = {
        name: evaluate(folder, references, labels, surface=surface, tolerance_mm=tolerance_mm)
        for name, folder in models.items()
    }
    document = compare_reports(reports)
    document["warnings"] = list(dict.fromkeys(one for report in reports.values() for one in report["warnings"]))
    if few := too_few_cases(len(document["cases"]), len(models)):
        logger.warning("%s", few)
        document["warnings"].append(few)
    if output:
        write_comparison(document, Path(output))
    return document


def _named(predictions: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """The folders by the names of their models."""
    if isinstance(predictions, Mapping):
        named = [(str(name), Path(folder)) for name, folder in predictions.items()]
    elif isinstance(predictions, str | Path):
        named = [(Path(predictions).name, Path(predictions))]
    else:
        # Where two folders have one name, their parents tell them apart.
        short = [Path(folder).name for folder in predictions]
        named = [
            (name if short.count(name) == 1 else str(Path(folder)), Path(folder))
            for name, folder in zip(short, predictions, strict=True)
        ]
    if len(named) < 2 or len(dict(named)) < len(named):
        raise UsageError(f"Give the predictions of at least two models, each once; found {len(dict(named))}.")
    return dict(named)
