"""What all training scans are like, so that the flags of a result can tell a scan that none of them was like."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from volseg.config import Channel, ScanRanges
from volseg.data.grid.histogram import comparable
from volseg.planning.channels import outward
from volseg.planning.fingerprint import CaseFingerprint, Fingerprint


def plan_scan_ranges(fingerprint: Fingerprint, channels: Sequence[Channel]) -> tuple[ScanRanges | None, str]:
    """The ranges over all cases that state the size of their voxels, and the reason; None if no case does.

    Args:
        fingerprint: of the training cases.
        channels: of the plan, whose normalisation decides the unit of intensities.
    """
    cases = [case for case in fingerprint.cases if not case.unstated]
    if not cases:
        return None, "no case states the size of its voxels in mm"
    found = ScanRanges(
        spacing_mm=_along_axes(case.spacing_mm for case in cases),
        extent_mm=_along_axes(np.multiply(case.shape, case.spacing_mm).tolist() for case in cases),
        quantiles=tuple(_quantiles(cases, number, channel) for number, channel in enumerate(channels)),
    )
    return found, "lowest and highest of the training scans, for the flags of results"


def merge_scan_ranges(ranges: Sequence[ScanRanges | None]) -> ScanRanges | None:
    """The union of the ranges of several models with the same channels; None if one of them is unknown."""
    known = [one for one in ranges if one is not None]
    if len(known) < len(ranges):
        return None
    return ScanRanges(
        spacing_mm=_union([one.spacing_mm for one in known]),
        extent_mm=_union([one.extent_mm for one in known]),
        quantiles=tuple(_union(same) for same in zip(*(one.quantiles for one in known), strict=True)),
    )


def _union(several: Sequence[Sequence[tuple[float, float]]]) -> Any:
    """The union of ranges, each with those at the same place."""
    return tuple((min(low for low, _ in same), max(high for _, high in same)) for same in zip(*several, strict=True))


def _along_axes(values: Iterable[Sequence[float]]) -> Any:
    """The range along R, A and S."""
    return tuple(outward((min(one), max(one))) for one in zip(*values, strict=True))


def _quantiles(cases: Sequence[CaseFingerprint], number: int, channel: Channel) -> tuple[tuple[float, float], ...]:
    """The range of each quantile of a channel."""
    masked = channel.normalisation == "zscore_nonzero"
    found = [comparable(case.intensities[number][masked], channel) for case in cases]
    return tuple(outward((min(one), max(one))) for one in zip(*found, strict=True))
