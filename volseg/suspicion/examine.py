"""All suspicions about a scan and its result."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from volseg.confidence.estimate import Confidence
from volseg.config import Plan
from volseg.data.io.reading import Scan
from volseg.device import memory_errors
from volseg.errors import VolsegError
from volseg.inference.quality import LabelFlag, LabelQuality, ScanFlag, scan_flags
from volseg.suspicion.doubt import doubtful, in_words, is_poor
from volseg.suspicion.finding import Finding
from volseg.suspicion.intensities import question_intensities
from volseg.suspicion.layout import question_layout
from volseg.suspicion.orientation import Search, question_orientation
from volseg.suspicion.places import places_of
from volseg.suspicion.sides import mismatched_sides
from volseg.suspicion.spacing import question_field_of_view, question_spacing

logger = logging.getLogger(__name__)


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


def doubt(
    examined: Examined, confidence: Mapping[str, Confidence], search: Search
) -> tuple[Examined, dict[str, float]]:
    """What the confidence of a result adds: `low_confidence` of labels and, where the whole is poor, a search for the
    orientation that the scan may have.

    Args:
        examined: of the result.
        confidence: by label name.
        search: of the scan; without calibration nothing is added.

    Returns:
        The same with more flags, and the seconds of the search as {"orientation": ...} if there was one.
    """
    calibration = search.calibration
    if doubts := doubtful(confidence, calibration):
        flagged = (flagged_as(one, "low_confidence") if one.name in doubts else one for one in examined.measures)
        sentences = (*examined.sentences, in_words(doubts))
        examined = examined._replace(measures=tuple(flagged), sentences=sentences)
    if not search.is_possible or not is_poor(examined.measures, confidence, calibration):
        return examined, {}
    started = time.perf_counter()
    logger.info("%s: the result looks poor; trying other orientations of the scan.", search.need.scan.source)
    try:
        with memory_errors("looking for another orientation"):
            examined = examined.with_findings(question_orientation(search))
    except VolsegError as error:
        # The result itself is complete.
        logger.info("%s: the search for another orientation ended: %s", search.need.scan.source, error)
    return examined, {"orientation": round(time.perf_counter() - started, 4)}


def flagged_as(measure: LabelQuality, flag: LabelFlag) -> LabelQuality:
    """A label with one more flag."""
    return replace(measure, flags=(*measure.flags, flag))
