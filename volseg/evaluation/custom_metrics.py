"""Custom metrics: functions of two masks whose values join the built-in measures in a report."""

from collections.abc import Callable, Mapping
from math import isfinite
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from volseg.errors import UsageError
from volseg.evaluation.label_distances import DISTANCES
from volseg.evaluation.lesions import LESIONS
from volseg.evaluation.overlap import MEASURES

# Of the prediction's mask, the reference's mask, both boolean (I, J, K), and the spacing in mm along I, J, K.
Metric: TypeAlias = Callable[[np.ndarray, np.ndarray, tuple[float, float, float]], float | None]
# Names that already have a meaning in a report: measures, the numbers of cases beside a mean, columns of the CSV.
RESERVED = (*MEASURES, *DISTANCES, *LESIONS, "cases", "missed", "unexpected", "case", "label")


def check_metric_names(metrics: Mapping[str, Metric]) -> None:
    """Reject a custom metric whose name a report already uses.

    Raises:
        UsageError: such a name.
    """
    for name in metrics:
        if name in RESERVED:
            raise UsageError(
                f"A custom metric is named '{name}', which a report already uses; choose a name other than "
                f"{', '.join(RESERVED)}."
            )


def metric_values(
    metrics: Mapping[str, Metric],
    prediction: np.ndarray,
    reference: np.ndarray,
    values: Mapping[str, int | tuple[int, ...]],
    spacing_mm: tuple[float, float, float],
    case: str,
    ignore: int | None = None,
) -> dict[str, dict[str, float | None]]:
    """Compute custom metrics for each label of a case.

    Args:
        metrics: by name; each is called once per label that at least one of the two masks contains.
        prediction: integers (I, J, K).
        reference: integers (I, J, K), on the same grid.
        values: by name, the value of each label in the images, or all values of a region.
        spacing_mm: of the grid, along I, J, K.
        case: its name, for messages.
        ignore: value of ignored voxels in the reference; both masks are False there.

    Returns:
        By label, the value of each metric; None for a label absent from both images.

    Raises:
        UsageError: a metric returned something other than a finite number or None. What a metric raises itself passes
            through.
    """
    rows: dict[str, dict[str, float | None]] = {}
    for label, stored in values.items():
        predicted, true = np.isin(prediction, stored), np.isin(reference, stored)
        if ignore is not None:
            annotated = reference != ignore
            predicted, true = predicted & annotated, true & annotated
        rows[label] = dict.fromkeys(metrics)
        if predicted.any() or true.any():
            for name, metric in metrics.items():
                rows[label][name] = _checked(metric(predicted, true, spacing_mm), name, label, case)
    return rows


def _checked(value: Any, name: str, label: str, case: str) -> float | None:
    """The value of a metric as a Python float, or None."""
    if value is None:
        return None
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and isfinite(value):
        return float(value)
    found = str(value) if is_number else f"a value of type {type(value).__name__}"
    raise UsageError(
        f"Metric '{name}' returned {found} for label '{label}' of case '{case}', expected a finite number or None."
    )
