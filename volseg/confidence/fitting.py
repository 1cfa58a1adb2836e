"""Fit a calibration to scans that the model was not trained on, and measure it on folds left out of the fit."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from volseg.confidence.estimate import expected, features, quantile_rank, soft_dice
from volseg.confidence.records import TEMPERATURES, ScanRecord
from volseg.confidence.reliability import diagram
from volseg.confidence.sums import Sums
from volseg.confidence.threshold import low_threshold
from volseg.modelfile.calibration import FEATURES, Calibration, LabelCalibration

FOLDS = 5
# Of fewer cases a calibration would be one of chance.
FEWEST_CASES = 5
COVERAGE = 0.9
# Below this error of a Dice the loss is quadratic, above it absolute. The prior counts as one scan, and 0.5 % of them.
SMOOTH, PRIOR, PRIOR_FRACTION = 0.03, 0.05, 0.005
STEPS = 60
# Labels by which temperatures are compared.
MOST_COMPARED = 20
_Floats = NDArray[np.float64]


class Estimates(NamedTuple):
    """Estimates of one label on scans that took no part in their fit, one row per scan.

    Args:
        scans: indices of the scans.
        dice: true Dice.
        expected: estimates.
        covered: of clean scans whether the interval holds the true volume, else NaN.
    """

    scans: NDArray[np.int64]
    dice: _Floats
    expected: _Floats
    covered: _Floats


def fit(scans: Sequence[ScanRecord], out_of_fold: bool = False) -> Calibration | None:
    """The calibration of a model; None from fewer than `FEWEST_CASES` clean scans that have a label.

    Args:
        scans: clean ones and degraded copies.
        out_of_fold: whether they are those of the members of an ensemble.
    """
    clean = [scan for scan in scans if not scan.kind and scan.bins]
    if len(clean) < FEWEST_CASES:
        return None
    index = best_temperature(scans)
    rows, labels = _rows(scans, index, _typical(scans)), {}
    for name in clean[0].labels:
        fitted = fit_label(scans, name, index, rows)
        if fitted is not None:
            labels[name] = _measured(fitted, left_out(scans, name, index), scans)
    bins = np.sum([np.array(scan.bins) for scan in clean], axis=0)
    return Calibration(
        temperature=TEMPERATURES[index],
        labels=labels,
        before=diagram(bins[_at_one()]),
        after=diagram(bins[index]),
        cases=len(clean),
        degraded=len(scans) - len(clean),
        out_of_fold=out_of_fold,
    )


def best_temperature(scans: Sequence[ScanRecord]) -> int:
    """The index of the temperature at which the expected Dice fits best, of those that do not make reliability worse.

    The most likely temperature of voxels is often too high for it: it makes all masks look alike.
    """
    clean = [scan for scan in scans if not scan.kind and scan.bins]
    errors = [diagram(bins).error for bins in np.sum([np.array(scan.bins) for scan in clean], axis=0)]
    allowed = [index for index in range(len(TEMPERATURES)) if errors[index] <= errors[_at_one()]]
    names = list(scans[0].labels)[:MOST_COMPARED]
    typical = _typical(scans)
    misfits = []
    for index in allowed:
        rows = _rows(scans, index, typical)
        misfits.append(sum(_misfit(scans, rows[:, place], name) for place, name in enumerate(names)))
    return allowed[int(np.argmin(misfits))]


def _misfit(scans: Sequence[ScanRecord], rows: _Floats, name: str) -> float:
    """The mean absolute error of a map on the scans that it was fitted to."""
    dice = np.array([_known_dice(scan, name) for scan in scans], float)
    used = ~np.isnan(dice)
    if not used.any():
        return 0.0
    intercept, weights = fit_map(rows[used], dice[used])
    return float(np.abs(_sigmoid(intercept + rows[used] @ np.array(weights)) - dice[used]).mean())


def _known_dice(scan: ScanRecord, name: str) -> float:
    """The Dice of a label that was found; NaN where it is unknown, or no voxel was given the label."""
    row = scan.labels[name]
    return math.nan if row.dice is None or not row.sums[0][0] else row.dice


def _at_one() -> int:
    """The index of the temperature nearest to 1."""
    return int(np.argmin([abs(math.log(one)) for one in TEMPERATURES]))


def left_out(scans: Sequence[ScanRecord], name: str, index: int, only: int | None = None) -> Estimates:
    """Estimates of a label on all scans, each from a fit to the other folds.

    The scans of a case are in one fold: the member of an ensemble, else every fifth case. With `only`, the scans of one
    fold.
    """
    folds = folds_of(scans)
    found: list[tuple[int, float, float, float]] = []
    for fold in sorted(set(folds)) if only is None else [only]:
        others = [scan for scan, one in zip(scans, folds, strict=True) if one != fold]
        if not any(scan.bins for scan in others):
            continue
        typical = _typical(others)
        known = fit_label(others, name, index, _rows(others, index, typical))
        if known is None:
            continue
        for place, (scan, one) in enumerate(zip(scans, folds, strict=True)):
            row = scan.labels[name]
            if one == fold and row.dice is not None and row.sums[index][0] > 0:
                estimate = expected(_rows([scan], index, typical)[0, list(scan.labels).index(name)], known)
                found.append((place, row.dice, estimate, _covered(scan, name, index, known)))
    columns = np.array(found).reshape(-1, 4).T
    return Estimates(columns[0].astype(np.int64), columns[1], columns[2], columns[3])


def folds_of(scans: Sequence[ScanRecord]) -> list[int]:
    """The fold of each scan."""
    if len({scan.group for scan in scans}) > 1:
        return [scan.group for scan in scans]
    cases = {name: number % FOLDS for number, name in enumerate(sorted({scan.case for scan in scans}))}
    return [cases[scan.case] for scan in scans]


def fit_label(scans: Sequence[ScanRecord], name: str, index: int, every: _Floats) -> LabelCalibration | None:
    """The calibration of a label at a temperature, without its errors; None where no scan has the label.

    `every` are the features of all labels, (scans, labels, FEATURES).
    """
    dice = np.array([_known_dice(scan, name) for scan in scans], float)
    chosen = np.flatnonzero(~np.isnan(dice))
    if not len(chosen):
        return None
    used = [scans[at] for at in chosen.tolist()]
    place, typical = list(used[0].labels).index(name), _typical(scans)
    rows = every[chosen, place]
    intercept, weights = fit_map(rows, dice[chosen])
    clean = [scan for scan in used if not scan.kind]
    low, high = _bounds([score for scan in clean if (score := _score(scan, name, index)) is not None])
    known = float(typical[place])
    return LabelCalibration(
        intercept=intercept,
        weights=tuple(weights),
        lowest=tuple(rows.min(0).tolist()),
        highest=tuple(rows.max(0).tolist()),
        typical_ml=known if math.isfinite(known) else None,
        volume_low=low,
        volume_high=high,
        cases=len(clean),
    )


def fit_map(rows: _Floats, dice: _Floats) -> tuple[float, list[float]]:
    """Intercept and weights with which sigmoid(intercept + rows @ weights) has the least absolute error.

    A prior pulls the weights to those of the soft Dice confidence itself. Levenberg-Marquardt on the smoothed error.

    Args:
        rows: (scans, FEATURES).
        dice: (scans,).
    """
    middle, width = rows.mean(0), rows.std(0)
    # A feature that does not vary says nothing, and keeps the weight of the prior.
    varies = width > 1e-6
    width = np.where(varies, width, 1)
    scaled = np.column_stack([np.ones(len(rows)), np.where(varies, (rows - middle) / width, 0)])
    prior = np.zeros(FEATURES + 1)
    prior[0], prior[1] = rows.mean(0)[0], width[0] if varies[0] else 0
    ridge = np.full(FEATURES + 1, PRIOR + PRIOR_FRACTION * len(dice))
    ridge[0] = PRIOR / 10
    found = _minimum(scaled, dice, prior, ridge)
    weights = np.where(varies, found[1:] / width, 0)
    weights[0] = max(0.0, weights[0])
    return float(np.clip(found[0] - weights @ middle, -1000, 1000)), np.clip(weights, -1000, 1000).tolist()


def _minimum(scaled: _Floats, dice: _Floats, prior: _Floats, ridge: _Floats) -> _Floats:
    def loss(at: _Floats) -> float:
        gaps = dice - _sigmoid(scaled @ at)
        return float(np.sqrt(gaps**2 + SMOOTH**2).sum() + 0.5 * (ridge * (at - prior) ** 2).sum())

    at, damping, current = prior.copy(), 1e-3, loss(prior)
    for _ in range(STEPS):
        p = _sigmoid(scaled @ at)
        gaps = dice - p
        weight, slope = 1 / np.sqrt(gaps**2 + SMOOTH**2), scaled * (p * (1 - p))[:, None]
        gradient = slope.T @ (weight * gaps) - ridge * (at - prior)
        curvature = (slope * weight[:, None]).T @ slope + np.diag(ridge)
        step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
        after = loss(at + step)
        if after < current:
            at, damping, done = at + step, damping / 3, current - after < 1e-9
            current = after
            if done:
                break
        else:
            damping *= 4
    return at


def _sigmoid(values: _Floats) -> _Floats:
    found: _Floats = 1 / (1 + np.exp(-np.clip(values, -50, 50)))
    return found


def _sums(scan: ScanRecord, index: int) -> Sums:
    return Sums(*np.array([row.sums[index] for row in scan.labels.values()]).T)


def _rows(scans: Sequence[ScanRecord], index: int, typical_ml: _Floats) -> _Floats:
    """The features of all labels of all scans at a temperature, (scans, labels, FEATURES)."""
    found = []
    for scan in scans:
        sums = _sums(scan, index)
        found.append(features(soft_dice(sums), sums.mask * scan.voxel_ml, typical_ml))
    return np.array(found)


def _typical(scans: Sequence[ScanRecord]) -> _Floats:
    """The median volume of each label in the references of clean scans that have it, NaN where none has."""
    found = []
    for name in scans[0].labels:
        sizes = [scan.labels[name].reference_ml for scan in scans if not scan.kind]
        known = [size for size in sizes if size]
        found.append(float(np.median(known)) if known else math.nan)
    return np.array(found)


def _score(scan: ScanRecord, name: str, index: int) -> float | None:
    """How far the true volume is from that of the mask, in volumes of sum(p (1 - p))."""
    row = scan.labels[name]
    spread = row.sums[index][Sums._fields.index("variance")] * scan.voxel_ml
    if row.reference_ml is None or not spread:
        return None
    return float(np.clip((row.reference_ml - row.volume_ml) / spread, -1e6, 1e6))


def _bounds(scores: Sequence[float]) -> tuple[float | None, float | None]:
    """The interval of scores that holds a new one with probability `COVERAGE`: the median, and a quantile around it."""
    rank = quantile_rank(len(scores), COVERAGE)
    if rank is None:
        return None, None
    middle = float(np.median(scores))
    reach = float(np.sort(np.abs(np.array(scores) - middle))[rank - 1])
    return middle - reach, middle + reach


def _covered(scan: ScanRecord, name: str, index: int, known: LabelCalibration) -> float:
    score = None if scan.kind else _score(scan, name, index)
    if score is None or known.volume_low is None or known.volume_high is None:
        return math.nan
    return float(known.volume_low <= score <= known.volume_high)


def _measured(fitted: LabelCalibration, found: Estimates, scans: Sequence[ScanRecord]) -> LabelCalibration:
    """The calibration of a label with its errors on scans that took no part in their fit."""
    gaps = np.abs(found.expected - found.dice)
    clean = np.array([not scans[place].kind for place in found.scans], bool)
    update = {
        "error": _mean(gaps),
        "clean_error": _mean(gaps[clean]),
        "low_confidence": low_threshold(found.expected[clean].tolist()),
        "volume_coverage": _mean(found.covered[~np.isnan(found.covered)]),
    }
    return fitted.model_copy(update=update)


def _mean(values: _Floats) -> float | None:
    return float(values.mean()) if len(values) else None
