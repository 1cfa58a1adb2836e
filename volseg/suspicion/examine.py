"""All suspicions about a scan and its result that need no further segmentation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from volseg.config import Plan
from volseg.data.io.reading import Scan
from volseg.inference.quality import LabelFlag, LabelQuality, ScanFlag, scan_flags
from volseg.suspicion.finding import Finding
from volseg.suspicion.intensities import question_intensities
from volseg.suspicion.layout import question_layout
from volseg.suspicion.places import places_of
from volseg.suspicion.sides import mismatched_sides
from volseg.suspicion.spacing import question_field_of_view, question_spacing


class Examined(NamedTuple):
    """What a result says of its quality: its labels with all flags, the flags of the scan, and what these rest on."""

    measures: tuple[LabelQuality, ...]
    flags: tuple[ScanFlag, ...]
    sentences: tuple[str, ...] = ()

    def with_findings(self, findings: Sequence[Finding]) -> "Examined":
        """The same with further suspicions about the scan."""
        flags = dict.fromkeys((*self.flags, *(one.flag for one in findings)))
        return self._replace(flags=tuple(flags), sentences=(*self.sentences, *(one.sentence for one in findings)))


def examine(scan: Scan, labels: np.ndarray, plan: Plan, measures: Sequence[LabelQuality]) -> Examined:
    """The flags of a scan and, beyond those of `measures`, of its labels.

    Args:
        scan: as read.
        labels: (I, J, K) its stored values.
        plan: of the model; what it does not know of its training scans is not suspect.
        measures: of the labels of the plan.
    """
    findings = question_intensities(scan.channels, plan)
    if not scan.unstated:
        findings += question_spacing(scan.geometry, plan.scan_ranges, plan.labels, measures)
        findings += question_field_of_view(scan.geometry, plan.scan_ranges)
    places = places_of(labels, plan.labels)
    wrong = mismatched_sides(places, scan.geometry) if places else set()
    findings += question_layout(places, scan.geometry, plan.scan_ranges) if places else []
    flagged = tuple(flagged_as(one, "side_mismatch") if one.name in wrong else one for one in measures)
    return Examined(flagged, scan_flags(scan.channels, plan.channels)).with_findings(findings)


def flagged_as(measure: LabelQuality, flag: LabelFlag) -> LabelQuality:
    """A label with one more flag."""
    return replace(measure, flags=(*measure.flags, flag))
