"""Comparing label images with references, as a user asks for it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volseg.data.cases.labels import LabelSet
from volseg.evaluation.pairs import match_pairs, read_labels_file
from volseg.evaluation.report import check_report_name, evaluate_pairs, write_report

logger = logging.getLogger(__name__)


def evaluate(
    predictions: str | Path,
    references: str | Path,
    labels: str | Path | Mapping[str, int] | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Compare label images with their references.

    Args:
        predictions: a label image, or a folder of them.
        references: its reference, or a folder of them; matched by name without suffix.
        labels: {name: stored value}, or a file that holds it (a dataset.json, JSON or YAML), of which regions are
            compared as all their values together, and what references ignore is left out; None: the values found.
        output: where to write the report as JSON, and a CSV beside it.

    Returns:
        The report: per case and label Dice, IoU, precision, recall and volumes in millilitres; mean and spread.
        What is stated about empty masks is in its "policy", and what speaks against the labels in its "warnings",
        which are logged, too.

    Raises:
        InputError: a prediction without a reference, grids that differ, or an image that is no label image.
    """
    if output:
        check_report_name(Path(output))
    known = read_labels_file(Path(labels)) if isinstance(labels, str | Path) else LabelSet(dict(labels or {}))
    document = evaluate_pairs(
        match_pairs(Path(predictions), Path(references)), known.stored or None, ignore=known.ignore
    )
    for warning in document["warnings"]:
        logger.warning("%s", warning)
    if output:
        write_report(document, Path(output))
    return document
