"""Calibrate a model on cases that it was not trained on, clean and degraded."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from torch import Tensor

from volseg.api.segmenter import Segmenter
from volseg.confidence.degraded import KINDS, degraded
from volseg.confidence.estimate import without_removed
from volseg.confidence.records import TEMPERATURES, LabelRecord, ScanRecord
from volseg.confidence.reliability import ReliabilityObserver
from volseg.confidence.sums import Sums, SumsObserver
from volseg.config import Plan
from volseg.data.cases.dataset import TrainingCase
from volseg.data.cases.labels import table_of
from volseg.data.grid.geometry import Geometry, GridMap
from volseg.data.grid.preprocess import image_to_network, label_to_network, training_target
from volseg.data.io.reading import read_channels, read_label
from volseg.device import memory_errors
from volseg.evaluation.overlap import label_overlaps
from volseg.inference.postprocessing import postprocess
from volseg.inference.stream import stream_order

# The most cases that a training run calibrates on, each as it is and in one degraded copy.
MOST_CASES = 40


@dataclass(frozen=True)
class _Scan:
    """A scan to calibrate on: (I, J, K) channels and reference; of each label, whether somebody looked for it."""

    name: str
    kind: str
    channels: Sequence[np.ndarray]
    reference: np.ndarray
    geometry: Geometry
    known: Sequence[bool]


def records_of(
    segmenter: Segmenter, case: TrainingCase, number: int = 0, copies: int = 1, unknown: Collection[str] = ()
) -> list[ScanRecord]:
    """What a case says about the confidence of a model: the scan as it is, and degraded copies of it.

    Args:
        segmenter: the model, with its postprocessing rules.
        case: one that the model was not trained on.
        number: of the case, which decides how its copies are degraded.
        copies: how many, of `volseg.confidence.degraded.KINDS` in turn.
        unknown: names of labels that the references do not have.

    Raises:
        InputError: the case cannot be read.
    """
    plan = segmenter.card.plan
    scan = read_channels(case.images, len(plan.channels))
    reference = case.own.read(read_label, case.label, scan.geometry, None, table_of(plan)).channels[0]
    known = [case.own.has(label.name) and label.name not in unknown for label in plan.labels]
    scans = [_Scan(case.name, "", scan.channels, reference, scan.geometry, known)]
    for copy in range(copies):
        kind = KINDS[(number + copy) % len(KINDS)]
        rng = np.random.default_rng([crc32(case.name.encode(errors="surrogateescape")), copy])
        images, truth, affine = degraded(scan.channels, reference, scan.geometry.affine, kind, rng)
        scans.append(_Scan(case.name, kind, images, truth, Geometry(truth.shape, affine), known))
    with memory_errors("calibrating"):
        return [_record(segmenter, one) for one in scans]


def _record(segmenter: Segmenter, scan: _Scan) -> ScanRecord:
    """Segment a scan as `Segmenter` does, and compare its confidence with the reference."""
    plan, labeller = segmenter.card.plan, segmenter.labeller
    volume, grid = image_to_network(scan.channels, scan.geometry, plan, segmenter.crop == "body", segmenter.device)
    sums = SumsObserver(plan, TEMPERATURES)
    # The reference fits the probabilities only where the header is right.
    reliability = None if scan.kind else ReliabilityObserver(plan, TEMPERATURES, _target(scan, grid, plan), scan.known)

    def observer(first: int, logits: Tensor) -> None:
        sums(first, logits)
        if reliability:
            reliability(first, logits)

    voxel_ml = scan.geometry.voxel_ml
    labels = labeller.label(volume, grid, observer=observer)
    cleaned = postprocess(labels, plan.labels, segmenter.card.postprocessing, voxel_ml)
    values = {label.name: label.stored_values for label in plan.labels}
    found = label_overlaps(labels, scan.reference, values, voxel_ml, plan.ignore)
    counts = {name: (one.prediction_ml or 0) / voxel_ml for name, one in found.items()}
    removed = {
        index: cleaned[name]["voxels_removed"] / max(1.0, cleaned[name]["voxels_removed"] + counts[name])
        for index, name in enumerate(values)
        if name in cleaned
    }
    every = [without_removed(Sums(*rows), removed) for rows in zip(*sums.sums, strict=True)]
    records = {
        name: LabelRecord(
            dice=found[name].dice if is_known else None,
            reference_ml=found[name].reference_ml if is_known else None,
            volume_ml=found[name].prediction_ml or 0.0,
            sums=tuple(tuple(float(values[index]) for values in one) for one in every),
        )
        for index, (name, is_known) in enumerate(zip(values, scan.known, strict=True))
    }
    return ScanRecord(
        case=scan.name,
        kind=scan.kind,
        voxel_ml=voxel_ml * grid.coarseness,
        labels=records,
        bins=tuple(tuple(tuple(row) for row in one) for one in reliability.bins.tolist()) if reliability else (),
        loss=tuple(reliability.loss.tolist()) if reliability else (),
    )


def _target(scan: _Scan, grid: GridMap, plan: Plan) -> Tensor:
    """The reference in network space, in stream order, see `ReliabilityObserver`."""
    classes = label_to_network(scan.reference, grid, plan)
    order = stream_order(grid.shape)
    if not plan.regions:
        return classes.permute(order)
    return training_target(classes[None], plan)[0].permute(0, *(axis + 1 for axis in order))


def of_member(records: Sequence[ScanRecord], member: int) -> list[ScanRecord]:
    """The records as those of a member of an ensemble."""
    return [record.model_copy(update={"group": member}) for record in records]
