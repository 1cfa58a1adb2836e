"""Segmenting: complete series become jobs by the rules, and jobs become files to send."""

import logging
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from volseg.api.predict import predict
from volseg.api.segmenter import Segmenter
from volseg.data.io.dicom.header import is_scan_class
from volseg.data.io.dicom.values import printable, text
from volseg.errors import InputError, VolsegError
from volseg.node.config import NodeConfig
from volseg.node.errors import ModelError
from volseg.node.queue import NewDelivery, NewJob
from volseg.node.rules import matching
from volseg.node.store import Store, header_of, identity_of
from volseg.progress import Progress, silent

logger = logging.getLogger(__name__)

LABELS = "labels.nii.gz"
LABELMAP = "labelmap"
# The fact that the archive takes no segmentations of type LABELMAP, so that they are made BINARY at once.
NO_LABELMAP = "archive takes no labelmap"


def write_results(
    segmenter: Segmenter, series: Path, target: Path, formats: Sequence[str], progress: Progress = silent
) -> list[Path]:
    """Segment a series into files of `target`, which is emptied first; the DICOM files among them.

    Raises:
        VolsegError: there is no result.
        Stopped: `progress` has raised KeyboardInterrupt.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    # Listed, because only the end of the iteration releases the folder.
    for outcome in list(predict(series, segmenter, target / LABELS, to=["nifti", *formats], progress=progress)):
        if outcome.error:
            raise outcome.error
    return sorted(target.glob("*.dcm"))


class Worker:
    """Decides about series and segments them, one after another, with models that stay loaded.

    Args:
        config: of the node.
        store: of the node.
        models: the SHA-256 of each model in the rules.
        stop: once it is set, a job stops after the current window.
    """

    def __init__(self, config: NodeConfig, store: Store, models: Mapping[str, str], stop: threading.Event) -> None:
        self._config, self._store, self._models, self._stop = config, store, models, stop
        self._loaded: dict[str, Segmenter] = {}
        store.queue.use_models(models)
        store.queue.reopen_series()

    def settle(self) -> bool:
        """Decide which models the complete series are for; whether there were any."""
        settled = self._store.queue.settled_series(self._config.quiet_seconds)
        failed: Exception | None = None
        for series_uid in settled:
            try:
                state, jobs = self._decision(series_uid)
            except InputError as error:
                # One series that cannot be read must not hold up the others.
                logger.error("Series %s: its header cannot be read: %s", series_uid, reason_of(error))
                state, jobs = "no rule", []
            except Exception as error:
                failed = error
                logger.error("Series %s: not decided: %s", series_uid, reason_of(error))
                continue
            self._store.queue.decide(series_uid, state, jobs)
            models = ", ".join(Path(job.model).stem for job in jobs)
            logger.info("Series %s: %s%s", series_uid, state, f", for {models}" if models else "")
        if failed:
            raise failed
        return bool(settled)

    def _decision(self, series_uid: str) -> tuple[str, list[NewJob]]:
        """The state of a complete series, and its jobs."""
        if self._store.queue.is_own(series_uid):
            return "own", []
        first = min(self._store.series_folder(series_uid).glob("*.dcm"), default=None)
        if first is None:
            raise InputError("its files are no longer in the store.")
        data = header_of(first)
        if not is_scan_class(text(data, "SOPClassUID")):
            return "no rule", []
        found = matching(self._config.rules, data, self._models)
        jobs = [NewJob(rule.model, sha256, ",".join(rule.to)) for sha256, rule in found.items()]
        if not jobs:
            logger.info("Series %s: no rule is for Modality %s", series_uid, printable(text(data, "Modality")) or "-")
        return "complete" if jobs else "no rule", jobs

    def step(self) -> bool:
        """Do the next job; whether there was one."""
        queue = self._store.queue
        job = queue.claim_job(self._config.quiet_seconds)
        if job is None:
            return False
        number, series_uid, model = job["id"], job["series_uid"], job["model"]
        formats = job["formats"].split(",")
        if queue.fact(NO_LABELMAP) and formats != without_labelmap(formats):
            logger.info("Series %s: BINARY, because the archive takes no LABELMAP", series_uid)
            formats = without_labelmap(formats)
        logger.info("Series %s: being segmented by %s, attempt %d", series_uid, Path(model).stem, job["attempts"])
        try:
            files = write_results(
                self._segmenter(model, job["model_sha256"]),
                self._store.series_folder(series_uid),
                self._store.job_folder(number),
                formats,
                self._progress,
            )
            self._store.sync_job(number)
            finished = queue.finish_job(number, [_delivery(file) for file in files])
        except KeyboardInterrupt:
            queue.release("jobs", number)
        except InputError as error:
            queue.end("jobs", number, "failed", reason_of(error))
            logger.error("Series %s: cannot be segmented: %s", series_uid, reason_of(error))
        except Exception as error:
            state = queue.retry("jobs", number, reason_of(error))
            logger.error("Series %s: %s: %s", series_uid, state, reason_of(error))
            logger.debug("Traceback of the error:", exc_info=error)
        else:
            said = f"{len(files)} files to send" if finished else "again, for more objects came in the meantime"
            logger.info("Series %s: done by %s, %s", series_uid, Path(model).stem, said)
        return True

    def _segmenter(self, model: str, sha256: str) -> Segmenter:
        """The model of a job, loaded.

        Raises:
            ModelError: it is missing, cannot be loaded, or is not the one that the job is for.
        """
        if model not in self._loaded:
            compute = self._config.compute
            try:
                loaded = Segmenter.load(
                    model, device=compute.device, precision=compute.precision, max_memory=compute.max_memory
                )
            except InputError as error:
                raise ModelError(str(error)) from error
            if loaded.sha256 == sha256:
                self._loaded[model] = loaded
        if model not in self._loaded or self._loaded[model].sha256 != sha256:
            raise ModelError(
                f"{model} is another file than the one this job is for. Restart the node to use it, or put the earlier "
                "one back."
            )
        return self._loaded[model]

    def _progress(self, stage: str, done: float, text: str) -> None:  # noqa: ARG002 - a `Progress`
        if self._stop.is_set():
            raise KeyboardInterrupt


def without_labelmap(formats: Sequence[str]) -> list[str]:
    """The same formats with segmentations of type BINARY."""
    return [":".join(part for part in name.split(":") if part != LABELMAP) for name in formats]


def reason_of(error: Exception) -> str:
    """Why work failed, in one line; of errors that are not volseg's the kind alone: their texts may quote a file."""
    foreign = error if not isinstance(error, VolsegError) else error.__cause__ if type(error) is VolsegError else None
    if foreign is not None:
        return f"unexpected {type(foreign).__name__}"
    return " ".join(str(error).split())


def _delivery(path: Path) -> NewDelivery:
    found = identity_of(path)
    return NewDelivery(str(path), found.sop_class, found.sop_uid, found.series_uid)
