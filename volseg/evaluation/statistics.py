"""How sure a mean and a difference are: bootstrap intervals, paired tests, correction for many of them.

bootstrap interval   the 2.5th and 97.5th percentile of the means of 10,000 samples of the cases, drawn with
                     replacement (Efron 1979, doi 10.1214/aos/1176344552); the same samples each time
Wilcoxon test        signed-rank test of paired differences (Wilcoxon 1945), two-sided
Holm's correction    of the p-values of several tests (Holm 1979): each is the chance that any of them is wrong
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

DRAWS, LEVEL = 10_000, 0.95
SEED = 12345
# A difference is called one from this p-value downwards.
SIGNIFICANT = 0.05


def bootstrap_intervals(rows: np.ndarray) -> list[tuple[float, float] | None]:
    """The bootstrap interval of the mean of each column.

    Args:
        rows: (cases, columns) float64; NaN where a case has no value, which leaves it out of that column's means.

    Returns:
        (low, high) per column; None for fewer than two values.
    """
    known = np.isfinite(rows)
    counts = _samples(len(rows))
    totals, numbers = counts @ np.where(known, rows, 0.0), counts @ known
    with np.errstate(invalid="ignore"):
        means = totals / numbers
    found: list[tuple[float, float] | None] = []
    for column, enough in zip(means.T, known.sum(axis=0) >= 2, strict=True):
        if enough:
            low, high = np.nanpercentile(column, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
            found.append((float(low), float(high)))
        else:
            found.append(None)
    return found


def wilcoxon_p(differences: Sequence[float]) -> float:
    """The p-value of the Wilcoxon signed-rank test that paired differences lie around 0; 1 where all are 0."""
    from scipy.stats import wilcoxon  # noqa: PLC0415 - loading scipy takes longer than most other work

    if not any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected by Holm's method, in the same order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for done, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[place]))
        corrected[place] = largest
    return corrected


@lru_cache(maxsize=4)
def _samples(cases: int) -> np.ndarray:
    """How often each case is in each sample: (DRAWS, cases) float64."""
    rng = np.random.default_rng(SEED)
    return (
        rng.multinomial(cases, np.full(cases, 1 / cases), size=DRAWS).astype(np.float64) if cases else np.zeros((1, 0))
    )
