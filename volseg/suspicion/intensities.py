"""Whether the intensities of a scan are those of another unit, or of an inverted image.

What CT means does not depend on the scanner, so a CT whose values no CT has is found by the rules below, with any
model. That the histogram of a scan fits none of the training scans is found only with `Plan.scan_ranges`.
"""

from collections.abc import Sequence

import numpy as np

from volseg.config import ABSOLUTE, Channel, Plan
from volseg.data.grid.histogram import comparable, intensity_quantiles, sampled
from volseg.suspicion.finding import Finding

# Raw values of CT are stored with this added, so that none is negative.
CT_OFFSET = 1024
# No tissue is below this, and neither is the noise of air; of a scan that is shifted down, at least this part is, not
# counting its lowest value.
LOWEST_CT, SHIFTED = -1100, 0.05
# A histogram fits if no quantile is outside the range of the training scans by more than this part of the range, and it
# is suspect where one is outside by more than the second.
FITS, FAR = 0.1, 1.0
# The least width of such a range, in standard deviations.
NARROWEST = 0.2
Ranges = Sequence[tuple[float, float]]


def question_intensities(channels: Sequence[np.ndarray], plan: Plan) -> list[Finding]:
    """`intensity_suspect` for each channel that looks converted, shifted or inverted, or like no training scan.

    Args:
        channels: one (I, J, K) array per channel, as stored.
        plan: of the model.
    """
    ranges = plan.scan_ranges.quantiles if plan.scan_ranges else [None] * len(plan.channels)
    found = []
    for array, channel, known in zip(channels, plan.channels, ranges, strict=True):
        words = (channel.normalisation == "ct" and _ct(array, channel)) or (known and _histogram(array, channel, known))
        if words:
            name = f" of channel {channel.name}" if len(plan.channels) > 1 else ""
            found.append(Finding("intensity_suspect", f"Intensities{name}: {words}"))
    return found


def _ct(array: np.ndarray, channel: Channel) -> str:
    """What seems to have happened to a CT, which has air or fat in it, below 0 HU; empty if nothing did."""
    values = sampled(array)
    low, high = float(values.min()), float(values.max())
    mean = float(values.mean(dtype=np.float64))
    if (expected := channel.mean_range) is None:
        return ""
    shown = f"values {low:g} to {high:g}"
    if low >= 0 and channel.clip is not None and channel.clip[0] < 0:
        if high <= 1:
            return f"{shown}: was this CT rescaled to 0 to 1? The model expects Hounsfield units."
        if high <= 255:
            return f"{shown}: was this CT converted to 8 bits? The model expects Hounsfield units."
        if _distance(mean - CT_OFFSET, expected) < _distance(mean, expected):
            return (
                f"{shown}, shifted by {CT_OFFSET}: are these raw stored values? The model expects Hounsfield units, "
                f"{CT_OFFSET} lower."
            )
    # Scanners fill what is outside of their field of view with one value, such as -2000 or -3024, which is no shift:
    # a shifted scan has fat, lungs or noise below air, too.
    below = float(((values > low) & (values < LOWEST_CT)).mean())
    if below >= SHIFTED and _distance(mean + CT_OFFSET, expected) == 0 < _distance(mean, expected):
        return f"{shown}, shifted by -{CT_OFFSET}: was the intercept applied twice? The model expects Hounsfield units."
    return ""


def _histogram(array: np.ndarray, channel: Channel, ranges: Ranges) -> str:
    """In which way a histogram is like none of the training scans; empty if it is like one."""
    found = comparable(intensity_quantiles(array, channel.normalisation == "zscore_nonzero"), channel)
    outside = misfit(found, ranges)
    if outside <= FITS:
        return ""
    # Inverted intensities keep their mean and deviation only without a unit.
    if channel.normalisation not in ABSOLUTE and misfit([-one for one in reversed(found)], ranges) <= FITS:
        return "bright and dark are exchanged against the training scans: is the contrast inverted?"
    if outside > FAR:
        return (
            "their histogram is unlike that of any training scan: is it another sequence or organ, or is a part of it "
            "missing?"
        )
    return ""


def misfit(quantiles: Sequence[float], ranges: Ranges) -> float:
    """How far the worst quantile is outside its range, as a fraction of the width of the range; 0 if none is."""
    return max(
        _distance(one, (low, high)) / max(high - low, NARROWEST)
        for one, (low, high) in zip(quantiles, ranges, strict=True)
    )


def _distance(value: float, limits: tuple[float, float]) -> float:
    """How far a value is outside of limits."""
    return max(limits[0] - value, value - limits[1], 0.0)
