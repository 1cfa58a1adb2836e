"""Calibrate a model on cases that it was not trained on, clean and degraded."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from torch import Tensor

from volseg.api.segmenter import Segmenter
from volseg.confidence.degraded import KINDS, degraded
from volseg.confidence.estimate import without_removed
from volseg.confidence.fitting import fit
from volseg.confidence.records import FILE_NAME, TEMPERATURES, LabelRecord, Records, ScanRecord
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
from volseg.files import write_text
from volseg.inference.stream import stream_order
from volseg.modelfile.beside import documents_beside
from volseg.modelfile.calibration import Calibration
from volseg.postprocessing.applying import postprocess
from volseg.progress import Progress
from volseg.text import printable
from volseg.training.ranks import Ranks

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


def calibrate(
    segmenter: Segmenter,
    cases: Sequence[TrainingCase],
    run: Path,
    progress: Progress,
    ranks: Ranks,
    unknown: Collection[str] = (),
) -> Calibration | None:
    """Calibrate the model of a run on its validation cases, and write their sums to RUN/calibration.json.

    Of many cases `MOST_CASES` are used, evenly spread by name; each as it is and in one degraded copy. Each rank
    segments its shard of them, and all ranks get the same calibration.

    Args:
        segmenter: the saved model, with its postprocessing rules.
        cases: the validation cases.
        run: the run folder.
        progress: called with the fraction of this rank's cases that is done.
        ranks: the processes of the run.
        unknown: names of labels that the references do not have.
    """
    chosen = [cases[number * len(cases) // MOST_CASES] for number in range(MOST_CASES)]
    used = list(cases) if len(cases) <= MOST_CASES else chosen
    found, shard = {}, ranks.shard(list(enumerate(used)))
    for done, (number, case) in enumerate(shard):
        progress("calibrate", done / len(shard), case.name)
        found[case.name] = records_of(segmenter, case, number, 1, unknown)
    every = ranks.gather(found)
    scans = [record for case in used for record in every[case.name]]
    if ranks.first:
        write_text(run / FILE_NAME, Records(scans=tuple(scans)).model_dump_json())
    return fit(scans)


def pooled(models: Sequence[Path]) -> Calibration | None:
    """The calibration of an ensemble from the sums of its members' runs, each on the cases of its own fold.

    Args:
        models: the model files; calibration.json lies beside each, else there is no calibration.

    Raises:
        InputError: a calibration.json cannot be read.
    """
    documents = documents_beside(models, FILE_NAME, Records)
    if documents is None:
        return None
    scans: list[ScanRecord] = []
    for member, document in enumerate(documents):
        scans += of_member(document.scans, member)
    return fit(scans, out_of_fold=True) if len({tuple(scan.labels) for scan in scans}) == 1 else None


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
    # Names of files may hold bytes that are no text.
    name = printable(case.name)
    scans = [_Scan(name, "", scan.channels, reference, scan.geometry, known)]
    for copy in range(copies):
        kind = KINDS[(number + copy) % len(KINDS)]
        rng = np.random.default_rng([crc32(case.name.encode(errors="surrogateescape")), copy])
        images, truth, affine = degraded(scan.channels, reference, scan.geometry.affine, kind, rng)
        scans.append(_Scan(name, kind, images, truth, Geometry(truth.shape, affine), known))
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
