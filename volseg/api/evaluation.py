"""Comparing label images with references."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volseg.data.cases.labels import LabelSet
from volseg.evaluation.custom_metrics import Metric
from volseg.evaluation.label_distances import SurfaceOptions
from volseg.evaluation.pairs import labels_of, match_pairs, read_labels_file
from volseg.evaluation.report import check_report_name, evaluate_pairs, write_report

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
            compared as the union of its values, and voxels with the ignore label are excluded.
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
        many lesions are found, by their volume. "policy" states how empty
        masks count; "warnings" are signs that the labels do not fit the images, which are also logged.

    Raises:
        InputError: a prediction without a reference, grids that differ, or an image that is not a label image.
        UsageError: a metric has the name of a built-in measure, or returned something other than a finite number or
            None; there is no such surface or rule for lesions; or `output` does not end in .json.
    """
    options = SurfaceOptions(surface, tolerance_mm, lesions)
    if output:
        check_report_name(Path(output))
    if labels is None or labels == {}:
        known = LabelSet({})
    elif isinstance(labels, str | Path):
        known = read_labels_file(Path(labels))
    else:
        known = labels_of(labels, "The labels")
    pairs = match_pairs(Path(predictions), Path(references))
    document = evaluate_pairs(pairs, known.stored or None, ignore=known.ignore, metrics=metrics, surface=options)
    for warning in document["warnings"]:
        logger.warning("%s", warning)
    if output:
        write_report(document, Path(output))
    return document
