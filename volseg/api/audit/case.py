"""One case of an audit: segmented by the model that has not seen it, its reference questioned."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from volseg.api.audit.runs import AuditedRun
from volseg.api.segmenter import Segmenter
from volseg.auditing.confidence import Contradiction, confidence_of
from volseg.auditing.measures import measure_case
from volseg.auditing.question import Question
from volseg.auditing.ranking import Audited
from volseg.data.cases.cache import read_for_plan
from volseg.data.cases.dataset import TrainingCase
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network
from volseg.data.io.reading import Scan
from volseg.device import memory_errors
from volseg.files import writing
from volseg.inference.budget import MemoryEstimate, plan_chunks
from volseg.inference.labelling import Labeller
from volseg.inference.promises import promised
from volseg.inference.stream import stream_order
from volseg.postprocessing.applying import postprocess


class Grid(NamedTuple):
    """Where a case lies, and whether its size in mm is known."""

    geometry: Geometry
    is_sized: bool


@dataclass(frozen=True)
class Examined:
    """What is kept of a case.

    Args:
        run: whose model has not seen it.
        case: its files.
        question: the labels that were compared.
        audited: its measures.
        grid: of its scan.
        arrays: the file with its prediction and confidence, for its picture; None where there will be none.
    """

    run: AuditedRun
    case: TrainingCase
    question: Question
    audited: Audited
    grid: Grid
    arrays: Path | None


def examine(segmenter: Segmenter, run: AuditedRun, case: TrainingCase, arrays: Path | None) -> Examined:
    """Segment a case, and measure how confidently the model contradicts its reference.

    Args:
        segmenter: the model of the run.
        run: the run.
        case: one of its cases.
        arrays: the .npz file to keep what its picture needs; None to keep nothing.

    Raises:
        InputError: the scan or the reference cannot be used.
        ResourceError: memory or disk is not enough.
    """
    scan, reference = read_for_plan(case, run.card.plan)
    question = Question.of(run.card.plan, run.unknown(case))
    found = _contradiction(segmenter, scan, reference.channels[0], question)
    measures = measure_case(found)
    geometry = scan.geometry
    offset = None
    if measures.offset is not None:
        moved = geometry.affine[:3, :3] @ np.array(measures.offset)
        offset = (float(moved[0]), float(moved[1]), float(moved[2]))
    if arrays is not None:
        with writing(arrays):
            np.savez_compressed(arrays, found=found.found, confidence=found.confidence)
    audited = Audited(case.name, measures, geometry.voxel_ml, offset)
    return Examined(run, case, question, audited, Grid(geometry, not scan.unstated), arrays)


def again(examined: Examined) -> tuple[Scan, Contradiction]:
    """The scan of a case, and what was found in it, from its files and the kept arrays."""
    assert examined.arrays is not None
    scan, reference = read_for_plan(examined.case, examined.run.card.plan)
    with np.load(examined.arrays) as arrays:
        stated = examined.question.codes(reference.channels[0])
        return scan, Contradiction(examined.question, stated, arrays["found"], arrays["confidence"])


def _contradiction(segmenter: Segmenter, scan: Scan, reference: np.ndarray, question: Question) -> Contradiction:
    """The reference of a scan against the model's labels, after postprocessing as when it segments."""
    labeller, card = segmenter.labeller, segmenter.card
    known = card, scan, labeller.windows, labeller.dtype, segmenter.device
    need = MemoryEstimate(*known, window_bytes=segmenter.window_bytes)
    with promised(partial(plan_chunks, need, None)) as planned, memory_errors(f"auditing on {segmenter.device}"):
        volume, grid = image_to_network(list(scan.channels), scan.geometry, card.plan, False, segmenter.device)
        d, h, w = volume.shape[1:]
        confidence, take = confidence_of(question, question.codes(reference), grid, stream_order((d, h, w)))
        streamed = Labeller(labeller.network, card.plan, planned.windows, labeller.dtype)
        raw = streamed.label(volume, grid, sink=take, chunk=planned.chunk)
        del volume
        labels = raw.copy()
        postprocess(labels, card.plan.labels, card.postprocessing, scan.geometry.voxel_ml, planned.chunk.voxels)
        return Contradiction.between(question, reference, labels, raw, confidence)
