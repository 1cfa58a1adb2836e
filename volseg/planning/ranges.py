"""What all training scans are like, so that the flags of a result can tell a scan that none of them was like."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from volseg.config import Channel, ScanRanges
from volseg.data.grid.histogram import comparable
from volseg.planning.channels import rounded
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
        offsets=_offsets(fingerprint),
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
        # Members that saw other labels together have other offsets of the same label.
        offsets={
            name: _union([one.offsets[name] for one in known])
            for name in known[0].offsets
            if all(one.offsets.keys() == known[0].offsets.keys() for one in known)
        },
    )


def _union(several: Sequence[Sequence[tuple[float, float]]]) -> Any:
    """The union of ranges, each with those at the same place."""
    return tuple((min(low for low, _ in same), max(high for _, high in same)) for same in zip(*several, strict=True))


def _along_axes(values: Iterable[Sequence[float]]) -> Any:
    """The range along R, A and S."""
    return tuple((rounded(min(one)), rounded(max(one))) for one in zip(*values, strict=True))


def _offsets(fingerprint: Fingerprint) -> dict[str, Any]:
    """The range of each label's offset over the cases that have all labels: those of a part have another centre."""
    names = fingerprint.labels
    whole = [case for case in fingerprint.cases if len(case.offsets) == len(names)]
    return {name: _along_axes(case.offsets[name] for case in whole) for name in names if whole}


def _quantiles(cases: Sequence[CaseFingerprint], number: int, channel: Channel) -> tuple[tuple[float, float], ...]:
    """The range of each quantile of a channel."""
    masked = channel.normalisation == "zscore_nonzero"
    found = [comparable(case.intensities[number][masked], channel) for case in cases]
    return tuple((rounded(min(one)), rounded(max(one))) for one in zip(*found, strict=True))
