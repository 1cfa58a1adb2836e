"""The expected Dice of a result and intervals of its volumes, from its own calibrated probabilities.

Soft Dice confidence, 2 sum(m p) / (sum(m) + sum(p)), is about the Dice that a mask m is expected to have if every voxel
belongs to the label with probability p (Borges et al. 2024, arXiv:2402.10665). A logistic map, fitted on clean and
degraded scans that the model was not trained on, carries it to the Dice that such scans had; it also takes the volumes
and the confidence of the other labels, see `features`.

The true volume is taken to lie within V + low U and V + high U, where V is the volume of the mask, U is the volume of
sum(p (1 - p)), and low and high are quantiles of (true volume - V) / U over such cases (split conformal prediction).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.confidence.sums import Sums
from volseg.modelfile.calibration import Calibration, LabelCalibration

# Dice and confidence are kept this far from 0 and 1, where their logits are infinite.
MARGIN = 1e-3
UNCALIBRATED = "the model has no calibration; training makes one where at least five validation cases have a label"


@dataclass(frozen=True)
class Confidence:
    """What is expected of one label of a result.

    Args:
        expected_dice: the Dice expected of the label's mask, 0 to 1; None where it cannot be stated.
        expected_dice_error: the mean absolute error of such estimates, as measured out of fold; None if it was not.
        volume_ml_low: lower bound of the 90 % interval of the volume in mL; None where it cannot be stated.
        volume_ml_high: upper bound.
        reason: why something is None; None if nothing is.
    """

    expected_dice: float | None = None
    expected_dice_error: float | None = None
    volume_ml_low: float | None = None
    volume_ml_high: float | None = None
    reason: str | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether the model has a calibration."""
        return self.reason != UNCALIBRATED

    @property
    def document(self) -> dict[str, Any]:
        """What the record has of it."""
        return {
            "expected_dice": self.expected_dice,
            "expected_dice_error": self.expected_dice_error,
            "volume_ml_low": self.volume_ml_low,
            "volume_ml_high": self.volume_ml_high,
            "confidence_reason": self.reason,
        }


def soft_dice(sums: Sums) -> np.ndarray:
    """Soft Dice confidence of each label, 0 where neither mask nor probability is."""
    sizes = sums.mask + sums.probability
    return 2 * sums.overlap / np.where(sizes > 0, sizes, 1)


def features(confidences: np.ndarray, volumes_ml: np.ndarray, typical_ml: np.ndarray) -> np.ndarray:
    """The numbers that the expected Dice of each label is made from, (labels, FEATURES).

    The logit of its soft Dice confidence; the logarithm of its volume relative to the typical one, where it is smaller
    and where it is larger; the same for all labels together; the mean logit of the confidence of the other labels.

    Args:
        confidences: soft Dice confidence, (labels,).
        volumes_ml: of the masks.
        typical_ml: median volumes of the labels in references, NaN where unknown: their logarithms count as 0.
    """
    own = logit(confidences)
    known = np.isfinite(typical_ml)
    size = np.where(known, _log_ratio(volumes_ml, np.where(known, typical_ml, 1)), 0)
    whole = _log_ratio(volumes_ml[known].sum(), typical_ml[known].sum()) if known.any() else np.zeros(())
    others = (own.sum() - own) / (len(own) - 1) if len(own) > 1 else np.zeros(1)
    same = np.ones(len(own))
    rows = own, np.minimum(size, 0), np.maximum(size, 0), same * np.minimum(whole, 0), same * np.maximum(whole, 0)
    return np.stack([*rows, others], axis=1)


def _log_ratio(volume_ml: np.ndarray, typical_ml: np.ndarray) -> np.ndarray:
    """log(volume / typical volume), where a volume of less than 1 % of the typical one counts as 1 %."""
    return np.asarray(np.log(np.maximum(volume_ml / typical_ml, 0.01)))


def expected(found: np.ndarray, known: LabelCalibration) -> float:
    """The expected Dice for the features of a label."""
    inside = np.clip(found, known.lowest, known.highest)
    # Beyond 50 it is 0 or 1 to all digits, and exp may overflow.
    steps = np.clip(known.intercept + inside @ np.array(known.weights), -50, 50)
    return float(1 / (1 + np.exp(-steps)))


def logit(fraction: np.ndarray | float) -> np.ndarray:
    """log(x / (1 - x)) of x, kept away from 0 and 1 by `MARGIN`."""
    inside = np.clip(fraction, MARGIN, 1 - MARGIN)
    return np.asarray(np.log(inside / (1 - inside)))


def without_removed(sums: Sums, removed: Mapping[int, float]) -> Sums:
    """The sums after postprocessing has removed a fraction of the mask of some labels, by their index.

    What was removed is taken to have had the mean probability of the mask. Its probability stays: the network holds it
    for a part of the label that the mask now lacks.
    """
    kept = np.ones(len(sums.mask))
    for label, fraction in removed.items():
        kept[label] = 1 - fraction
    return sums._replace(mask=sums.mask * kept, overlap=sums.overlap * kept)


def estimate(
    sums: Sums, calibration: Calibration, volumes_ml: Mapping[str, float | None], voxel_ml: float
) -> dict[str, Confidence]:
    """The confidence of each label by name.

    Args:
        sums: of the result at the temperature of the calibration, (labels,).
        calibration: of the model.
        volumes_ml: of the masks of all labels by name, in the order of the sums; None where it cannot be stated.
        voxel_ml: volume of a voxel of network space, assumed where it is unknown.
    """
    labels = [calibration.labels.get(name) for name in volumes_ml]
    typical = np.array([math.nan if one is None or one.typical_ml is None else one.typical_ml for one in labels])
    rows = features(soft_dice(sums), sums.mask * voxel_ml, typical)
    found = {}
    for index, (name, known) in enumerate(zip(volumes_ml, labels, strict=True)):
        if sums.mask[index] == 0:
            found[name] = Confidence(reason="no voxel was given this label")
        elif known is None:
            found[name] = Confidence(reason="the model has no calibration for this label: too few references had it")
        else:
            spread = float(sums.variance[index]) * voxel_ml
            found[name] = _with_interval(expected(rows[index], known), volumes_ml[name], spread, known)
    return found


def _with_interval(dice: float, volume: float | None, spread: float, known: LabelCalibration) -> Confidence:
    """The confidence of a label whose expected Dice is known."""
    stated = Confidence(round(dice, 4), None if known.error is None else round(known.error, 4))
    reason = None
    if volume is None:
        reason = "no interval where the volume cannot be stated"
    elif known.volume_low is None or known.volume_high is None:
        reason = f"no interval: calibrated on {known.cases} cases with the label, 9 are needed"
    else:
        bounds = (max(0.0, volume + bound * spread) for bound in (known.volume_low, known.volume_high))
        # As many digits as an estimate has: 1.177 mL.
        low, high = (float(f"{bound:.4g}") for bound in bounds)
        return Confidence(stated.expected_dice, stated.expected_dice_error, low, high)
    return Confidence(stated.expected_dice, stated.expected_dice_error, reason=reason)


def quantile_rank(cases: int, coverage: float) -> int | None:
    """The rank, from 1, of the score that covers a new one with this probability; None if there are too few.

    ceil((n + 1) coverage), as in split conformal prediction.
    """
    rank = math.ceil((cases + 1) * coverage - 1e-9)
    return rank if rank <= cases else None
