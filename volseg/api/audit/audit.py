"""The search for wrong labels in the dataset of some runs."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from volseg.api.audit.case import Examined, examine
from volseg.api.audit.findings import described, save_picture
from volseg.api.audit.runs import AuditedRun, open_runs
from volseg.api.segmenter import Segmenter
from volseg.auditing.ranking import Score, score_cases
from volseg.data.io.provenance import read_record
from volseg.data.joining import Source
from volseg.errors import InputError, ResourceError
from volseg.files import given_path, temporary_path, writing
from volseg.modelfile.card import RUN_MODEL
from volseg.networks.own import NetworkFactory
from volseg.progress import Progress, silent
from volseg.report.audit_page import FILES, PICTURES, check_audit_folder, write_audit
from volseg.text import counted, first_few

logger = logging.getLogger(__name__)

# From fewer cases the median and the spread over cases say nothing of what is usual.
FEWEST = 5


def audit(
    runs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    dataset: Source | None = None,
    device: str = "auto",
    precision: str = "auto",
    network: NetworkFactory | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Find the cases whose labels are probably wrong: those that models which have not seen them contradict most.

    Each run's own model segments the cases it was validated on. Where it contradicts the reference with confidence is
    measured per label, and a case is scored by how far it exceeds what is usual for that label over all cases, see
    `volseg.auditing.ranking`. Probabilities are never stored, and memory does not grow with the number of cases beyond
    their measures.

    Args:
        runs: a finished run folder, or several of one dataset and one plan, such as its folds.
        output: a folder for audit.json, audit.csv (a row per case), audit.html and pictures/; those of an earlier audit
            are replaced.
        dataset: as for `volseg.train`, if it was moved or is a list of cases; None: where the runs say it lies.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, bf16 or fp16.
        network: makes the network of models that were trained with one of the caller's own, as for `volseg.train`.
        progress: called with the fraction of the cases that is done.

    Returns:
        "dataset": its name; "runs": of each "run", its "model" and "sha256", "fold" and number of "cases".
        "cases": the most suspicious first, each with "rank", "name", "run", "score", the "label" (None: all together)
        and the "measure" that stand out, "labels" with the measures of each in mL, "offset_mm" along R, A and S,
        "findings", "picture" (its path below `output`) and "changed": whether its files have changed since the run
        began. A finding has what "reference" and "prediction" say, "voxels", "volume_ml", "voxel" (i, j, k),
        "position_mm" (R, A, S) and "confidence", the mean over its voxels. Of a scan that does not state its size,
        volumes and positions in mm are None. The first finding is the largest that has to do with the score.
        "failed": the cases that could not be compared, each with "name" and "error".
        "warnings": what the reader has to know, which is also logged.

    Raises:
        UsageError: no such runs, see `volseg.api.audit.runs.open_runs`; or `output` cannot be written.
        InputError: their dataset does not fit, or no case could be compared.
        ConfigError: a model has a network of its own, and `network` is missing.
    """
    folder = None if output is None else given_path(output)
    if folder is not None:
        check_audit_folder(folder)
    data, opened, warnings = open_runs(runs, dataset)
    for warning in warnings:
        logger.warning("%s", warning)
    with _room_for_arrays(folder) as room:
        models, examined, failed = _examine_all(opened, room, device, precision, network, progress)
        if few := _too_few(len(examined)):
            logger.warning("%s", few)
            warnings = [*warnings, few]
        ranked = _ranked(examined)
        pictures = [_picture(one, score, folder, len(ranked), progress, rank) for rank, (one, score) in ranked]
    document = {
        "dataset": data.name,
        "runs": models,
        "cases": [
            {"rank": rank, **described(one, score), "picture": picture, "changed": one.case.name in one.run.changed}
            for (rank, (one, score)), picture in zip(ranked, pictures, strict=True)
        ],
        "failed": [{"name": name, "error": str(error)} for name, error in failed.items()],
        "warnings": warnings,
    }
    if folder is not None:
        earlier = _pictures_of(folder)
        write_audit(document, folder)
        for picture in sorted(earlier - set(pictures)):
            (folder / picture).unlink(missing_ok=True)
    return document


def _pictures_of(folder: Path) -> set[str]:
    """The pictures that an earlier audit in a folder names, so that none of them passes for one of the new."""
    cases = read_record(folder / FILES[0]).get("cases")
    named = [one.get("picture") for one in cases if isinstance(one, dict)] if isinstance(cases, list) else []
    return {one for one in named if isinstance(one, str) and one == f"{PICTURES}/{Path(one).name}"}


@contextmanager
def _room_for_arrays(folder: Path | None) -> Iterator[Path | None]:
    """A folder for what pictures need, which disappears in the end; None without pictures."""
    if folder is None:
        yield None
        return
    place = temporary_path(folder / FILES[0])
    with writing(folder):
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=place.name, dir=folder, ignore_cleanup_errors=True) as room:
            yield Path(room)
    finally:
        # An audit that was interrupted before its first picture leaves no empty folder.
        with suppress(OSError):
            (folder / PICTURES).rmdir()


def _examine_all(
    runs: Sequence[AuditedRun],
    room: Path | None,
    device: str,
    precision: str,
    network: NetworkFactory | None,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[Examined], dict[str, InputError | ResourceError]]:
    """What is said of the runs, their cases, and the errors of those that cannot be compared."""
    models, examined, number = [], [], count()
    failed: dict[str, InputError | ResourceError] = {}
    total = sum(len(run.cases) for run in runs)
    for run in runs:
        segmenter = Segmenter.load(run.folder / RUN_MODEL, device, precision, network=network)
        models.append(
            {
                "run": run.folder.resolve().name,
                "model": run.card.name,
                "sha256": segmenter.sha256,
                "fold": run.settings.fold,
                "cases": len(run.cases),
            }
        )
        for case in run.cases:
            done = next(number)
            progress("audit", done / total, case.name)
            try:
                arrays = None if room is None else room / f"{done}.npz"
                examined.append(examine(segmenter, run, case, arrays))
            except (InputError, ResourceError) as error:
                failed[case.name] = error
                logger.error("%s", error if case.name in str(error) else f"Case {case.name}: {error}")
    progress("audit", 1.0, f"{total} cases")
    if not examined:
        raise next(iter(failed.values()))
    if failed:
        logger.error("%d of %d cases could not be compared: %s", len(failed), total, first_few(sorted(failed)))
    return models, examined, failed


def _too_few(cases: int) -> str:
    """A warning where scores say nothing, because there is nothing that is usual; else empty."""
    if cases >= FEWEST:
        return ""
    return (
        f"A score says how unusual a case is among the others, and only {counted(cases, 'case')} could be compared: at "
        f"least {FEWEST} are needed, better 20. Look at the findings of every case, or audit more folds together"
    )


def _ranked(examined: Sequence[Examined]) -> list[tuple[int, tuple[Examined, Score]]]:
    """The cases with their scores and ranks, the most suspicious first."""
    scores = score_cases([one.audited for one in examined])
    pairs = sorted(zip(examined, scores, strict=True), key=lambda pair: (-pair[1].value, pair[0].case.name))
    return list(enumerate(pairs, 1))


def _picture(
    examined: Examined, score: Score, folder: Path | None, cases: int, progress: Progress, rank: int
) -> str | None:
    """Draw the first finding of a case; its path below the folder, or None without a finding."""
    if folder is None or not examined.audited.measures.findings:
        return None
    progress("pictures", rank / cases, examined.case.name)
    name = f"{PICTURES}/{examined.case.name}.png"
    save_picture(examined, score, rank, folder / name)
    return name
