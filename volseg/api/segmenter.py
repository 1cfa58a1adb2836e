"""A model that is loaded once and segments scans."""

import logging
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from volseg.api.result import Result
from volseg.confidence.estimator import Estimator
from volseg.confidence.uncertainty import uncertainty_sink
from volseg.config import MODALITIES, known_name
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network
from volseg.data.grid.shear import back, find_shear, upright, upright_geometry
from volseg.data.io.any_scan import as_scan, paths_of
from volseg.data.io.choice import ONLY, Choice, chosen
from volseg.data.io.inputs import Case
from volseg.data.io.provenance import input_of
from volseg.data.io.reading import Scan
from volseg.device import choose_device, device_name, free_gpu_memory, limit_threads_after_fork, memory_errors
from volseg.errors import UsageError, VolsegError, release_frames
from volseg.inference.budget import (
    MemoryEstimate,
    MemoryPlan,
    parse_size,
    plan_chunks,
    question_windows,
    scans_at_device,
    scans_at_once,
    windows_at_once,
)
from volseg.inference.flight import in_flight
from volseg.inference.labelling import Labeller, Wanted, both_sinks, probability_sink
from volseg.inference.promises import promised
from volseg.inference.quality import measure
from volseg.inference.room import bytes_at_work, has_plenty, require_free, require_room_to_read
from volseg.inference.stream import stream_order
from volseg.inference.windows import Windows, check_overlap
from volseg.modelfile import ModelCard, find_model, sha256_of_model
from volseg.networks import open_network
from volseg.networks.measured import window_bytes
from volseg.networks.own import NetworkFactory
from volseg.postprocessing.applying import postprocess
from volseg.precision import choose_precision, precision_name
from volseg.progress import Progress, silent
from volseg.suspicion.examine import doubt, examine
from volseg.suspicion.orientation import Search
from volseg.system import peak_memory_bytes, resident_bytes

logger = logging.getLogger(__name__)

# Characters of label names in a representation.
SHOWN = 60
# A scan in any form, and what is wanted of it.
Job: TypeAlias = tuple[Any, Wanted]


class Opened(NamedTuple):
    """A scan in memory; what it was read from, for the record; when reading began, and the seconds it took."""

    scan: Scan
    input: list[dict[str, Any]]
    started: datetime
    read_seconds: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of one scan: a result, or an error."""

    input: Any
    result: Result | None = None
    error: VolsegError | None = None


@dataclass(frozen=True, repr=False)
class Segmenter:
    """A model on a device, ready to segment scans. Load one with `Segmenter.load`.

    It holds no state between scans, so threads may share it. A forked process computes on one thread, because PyTorch's
    thread pools do not survive fork(); a process started by "spawn" has no such limit.
    """

    card: ModelCard
    sha256: str
    labeller: Labeller
    max_memory: int | None = None
    crop: str = "none"
    window_bytes: int | None = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str = "auto",
        precision: str = "auto",
        overlap: float = 0.5,
        tta: str = "none",
        max_memory: str | int | None = None,
        crop: str = "none",
        network: NetworkFactory | None = None,
    ) -> "Segmenter":
        """Load a model.

        Args:
            model: a bundled name, or the path of a model file.
            device: auto, cpu, cuda, cuda:N or mps.
            precision: auto, fp32, bf16 or fp16; auto takes what the device computes natively.
            overlap: overlap of neighbouring sliding windows, 0 to <1.
            tta: test-time augmentation: "none", or "mirror": average over flips along the plan's mirror axes.
            max_memory: memory limit of the process, in bytes or as text such as "4G"; None for no limit. The memory
                for a scan is planned before it is read and before it is computed; what exceeds the limit is rejected.
            crop: "none": as in the plan; or "body": inference only inside the body's bounding box, an approximation:
                windows are at other positions, and everything outside is background. See `volseg.data.grid.body`.
            network: makes the network of a model that was trained with one of the caller's own, as for `volseg.train`.

        Raises:
            InputError: no such model, or not a model file.
            ConfigError: the network architecture of the model is unknown here.
            UsageError: an option has an invalid value.
        """
        check_overlap(overlap)
        if tta not in ("none", "mirror"):
            raise UsageError(f"Unknown tta {tta!r}. Use none or mirror.")
        if crop not in ("none", "body"):
            raise UsageError(f"Unknown crop {crop!r}. Use none or body.")
        limit_threads_after_fork()
        path = find_model(model)
        # The weights of the file, and those of the network.
        require_free(2 * path.stat().st_size, f"Loading {path.name}")
        place = choose_device(device)
        with memory_errors(f"loading the model on {place}"):
            card, loaded = open_network(path, network)
            loaded = loaded.to(place)
            dtype = choose_precision(precision, place)
            window = window_bytes(loaded, card.plan, dtype)
        mirror = card.plan.mirror_axes if tta == "mirror" else ()
        sides = (card.plan.sides.axis, card.plan.side_pairs) if card.plan.sides else None
        windows = Windows(card.plan.patch_size, overlap, windows_at_once(card.plan, dtype, place), mirror, sides)
        return cls(
            card=card,
            sha256=sha256_of_model(path),
            labeller=Labeller(loaded, card.plan, windows, dtype),
            max_memory=None if max_memory is None else parse_size(str(max_memory)),
            crop=crop,
            window_bytes=window,
        )

    def __repr__(self) -> str:
        labels = ", ".join(label.name for label in self.card.plan.labels)
        labels = labels if len(labels) <= SHOWN else f"{labels[:SHOWN]}..."
        return f"<volseg.Segmenter {self.card.name} on {self.device}, {self.precision}: {labels}>"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.labeller.device

    @property
    def precision(self) -> str:
        """The precision of feature maps: fp32, bf16 or fp16."""
        return precision_name(self.labeller.dtype)

    @property
    def _modality(self) -> str | None:
        """The DICOM modality that the channels are, by their names; None if they do not tell."""
        names = [known_name(channel.name, MODALITIES) for channel in self.card.plan.channels]
        found = {None if name is None else MODALITIES[name] for name in names}
        return found.pop() if len(found) == 1 else None

    def __call__(
        self,
        scan: Any,
        progress: Progress = silent,
        probabilities: str | Path | bool | None = None,
        *,
        uncertainty: bool = False,
        series: str | int | None = None,
        volume: int | None = None,
        untilt: bool = False,
    ) -> Result:
        """Segment one scan.

        Args:
            scan: a path, a nibabel or SimpleITK image, (array or tensor (I, J, K), 4 x 4 affine to RAS+ mm), or a
                tensor (C, I, J, K) with its `affine`, such as MONAI's MetaTensor.
            progress: called with the fraction of windows done.
            probabilities: True for `result.probabilities`, or a .npy file to write: float16 (C, I, J, K), see `Result`.
            uncertainty: True for `result.uncertainty`: the entropy of the probabilities at each voxel.
            series: SeriesInstanceUID or SeriesNumber, where a path holds several DICOM series.
            volume: number of a volume of a 4-D scan, from 1.
            untilt: resample slices with gantry tilt to an upright grid for the network; the labels stay on the slices.

        Raises:
            InputError: the scan cannot be used; see `volseg.data.io.checks` for the requirements.
            UsageError: an empty path, or a series or volume that is no number.
            ResourceError: memory is not enough.
        """
        where = probabilities if isinstance(probabilities, bool | None) else Path(probabilities)
        return self._segment(self._open(scan, chosen(series, volume, untilt)), progress, Wanted(where, uncertainty))

    @property
    def at_once(self) -> int:
        """How many scans `map` has at work at once at most; one where memory is limited."""
        return scans_at_once(self.card.plan, self.labeller.dtype, self.device) if self.max_memory is None else 1

    def _open(self, scan: Any, choice: Choice = ONLY) -> Opened:
        """Read a scan, and what the record says of its origin."""
        limit_threads_after_fork()
        began, started = datetime.now(UTC), time.perf_counter()
        paths = paths_of(scan)
        choice = replace(scan.choice if isinstance(scan, Case) else choice, modality=self._modality)
        require_room_to_read(paths, choice, self.max_memory)
        with memory_errors("reading the scan"):
            opened = as_scan(scan, len(self.card.plan.channels), choice)
        return Opened(opened, input_of(opened, paths), began, time.perf_counter() - started)

    def _segment(self, source: Opened, progress: Progress, wanted: Wanted) -> Result:
        opened, started = source.scan, time.perf_counter()
        if opened.untilt and (wanted.probabilities or wanted.uncertainty):
            what = "probabilities" if wanted.probabilities else "uncertainty"
            raise UsageError(
                f"{opened.source} is made upright, and {what} cannot be mapped back to its tilted slices. "
                f"Leave out the {what}, or segment the slices as they are."
            )
        labeller = self.labeller
        known = self.card, opened, labeller.windows, labeller.dtype, self.device
        asked = wanted.probabilities is True, self.window_bytes, wanted.uncertainty
        need = MemoryEstimate(*known, *asked, labeller.gpu_free)
        with promised(partial(plan_chunks, need, self.max_memory)) as planned:
            source = source._replace(scan=_questioned(opened, need))
            return self._planned(source, planned, progress, wanted, started)

    def _planned(
        self, source: Opened, planned: MemoryPlan, progress: Progress, wanted: Wanted, started: float
    ) -> Result:
        """Segment a scan as planned; `started` is when its planning began."""
        opened, plan, windows, chunk = source.scan, self.card.plan, planned.windows, planned.chunk
        labeller, estimator = replace(self.labeller, windows=windows), Estimator.of(self.card)
        with memory_errors(f"segmenting on {self.device}"):
            volume, grid = image_to_network(*_for_network(opened), plan, self.crop == "body", self.device)
            prepared = time.perf_counter()
            entropies, mapped = uncertainty_sink(wanted.uncertainty, grid, stream_order(grid.shape), self.card)
            with probability_sink(wanted.probabilities, volume, grid, plan) as (sink, array):
                labels = labeller.label(volume, grid, progress, both_sinks(sink, entropies), chunk, estimator.observer)
            del volume
            if opened.untilt:
                labels = back(labels, opened.geometry.shape, opened.geometry.affine)
            segmented = time.perf_counter()
            voxel_ml = opened.geometry.voxel_ml
            room = None if self.max_memory is None else self.max_memory - resident_bytes()
            # Rules in mL go by the size that the network was given, even if it is an assumption: so the label image is
            # the same as for a file that states this size.
            cleaned = postprocess(labels, plan.labels, self.card.postprocessing, voxel_ml, chunk.voxels, room)
            measures = measure(labels, plan.labels, voxel_ml, chunk.voxels, opened.unstated)
            examined = examine(opened, labels, plan, measures)
        confidence = estimator.confidence(measures, cleaned, voxel_ml * grid.coarseness)
        measured = time.perf_counter()
        need = MemoryEstimate(self.card, opened, windows, labeller.dtype, self.device, window_bytes=self.window_bytes)
        examined, searched = doubt(examined, confidence, Search(labeller, need, chunk, progress))
        record = {
            "started": source.started.isoformat(timespec="seconds"),
            "input": source.input,
            "model": {"name": self.card.name, "sha256": self.sha256},
            "device": str(self.device),
            "device_name": device_name(self.device),
            "precision": self.precision,
            "overlap": windows.overlap,
            "mirror_axes": list(windows.mirror_axes),
            "crop": plan.crop if self.crop == "none" else self.crop,
            "postprocessing": cleaned,
            **{name: value for name, value in opened.chosen.items() if name != "input"},
            **_untilted(opened),
            "seconds": {
                "read": round(source.read_seconds, 4),
                "prepare": round(prepared - started, 4),
                "segment": round(segmented - prepared, 4),
                "measure": round(measured - segmented, 4),
                **searched,
            },
            "peak_memory_bytes": peak_memory_bytes(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "platform": platform.platform(),
        }
        return Result(
            labels, examined.measures, examined.flags, opened, plan.labels, record, array,
            confidence=confidence, uncertainty=mapped, suspicions=examined.sentences,
        )  # fmt: skip

    def map(
        self,
        scans: Iterable[Any],
        progress: Progress = silent,
        probabilities: Iterable[Path | bool | None] = repeat(None),
        uncertainty: bool = False,
    ) -> Generator[Outcome, None, None]:
        """Segment many scans, in order; reading and computing overlap.

        Unless memory is limited or scarce, several scans are at work at once for a GPU, and on a CPU if their windows
        are small; else the next one is read meanwhile. A scan that cannot be segmented is an outcome with an error.

        Args:
            scans: each as for a call.
            progress: called with the fraction of windows done of the scans at work, from their threads.
            probabilities: for each scan as for a call.
            uncertainty: as for a call.
        """
        limit_threads_after_fork()
        if isinstance(scans, str | Path):
            raise UsageError(f"Segmenter.map takes several scans, found one path: {scans}. Call the segmenter with it.")
        jobs = zip(scans, (Wanted(one, uncertainty) for one in probabilities), strict=False)
        at_once = self.at_once
        # No more than it takes to tell: they may be arrays, or come one by one over hours.
        first = list(islice(jobs, min(at_once, 2)))
        if len(first) > 1:
            yield from self._in_parallel(chain(first, jobs), at_once, progress)
        else:
            yield from self._one_by_one(chain(first, jobs), progress)

    def _one_by_one(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Outcome]:
        with ThreadPoolExecutor(1, thread_name_prefix="volseg-read") as reader:
            # No name for the scan: it would keep its memory while the next one is computed.
            waiting: deque[tuple[Job, Callable[[], Opened]]] = deque()
            ahead = self.max_memory is None and has_plenty()
            for job in jobs:
                waiting.append((job, reader.submit(self._open, job[0]).result))
                if len(waiting) > ahead:
                    yield self._outcome(*waiting.popleft(), progress)
            while waiting:
                yield self._outcome(*waiting.popleft(), progress)

    def _in_parallel(self, jobs: Iterable[Job], at_once: int, progress: Progress) -> Iterator[Outcome]:
        turns = threading.Semaphore(scans_at_device(self.card.plan, self.labeller.dtype, self.device))
        free = free_gpu_memory(self.device) if self.device.type == "cuda" else None
        sharing = replace(self, labeller=replace(self.labeller, turns=turns, gpu_free=free))

        def work(job: Job, show: Progress) -> Outcome:
            return sharing._outcome(job, partial(sharing._open, job[0]), show)

        return in_flight(jobs, lambda job: bytes_at_work(job[0]), work, at_once, progress)

    def _outcome(self, job: Job, opened: Callable[[], Opened], progress: Progress) -> Outcome:
        scan, wanted = job
        try:
            return Outcome(scan, result=self._segment(opened(), progress, wanted))
        except VolsegError as error:
            # The error would keep everything alive that was in memory where it arose.
            release_frames(error)
            return Outcome(scan, error=error)


def _questioned(scan: Scan, need: MemoryEstimate) -> Scan:
    """The scan with a warning, logged before the work begins, if it is resampled to an implausibly fine grid."""
    warning = question_windows(need)
    if warning is None:
        return scan
    # As information: the record shows it as a warning when the scan is done, or hours later.
    logger.info("%s: %s", scan.source, warning)
    return replace(scan, warnings=(*scan.warnings, warning))


def _for_network(scan: Scan) -> tuple[Sequence[np.ndarray], Geometry]:
    """The channels that go to network space and their grid: as stored, or upright if the scan asks for it."""
    if not scan.untilt:
        return scan.channels, scan.geometry
    channels = [upright(channel, scan.geometry.affine)[0] for channel in scan.channels]
    return channels, upright_geometry(scan.geometry)


def _untilted(scan: Scan) -> dict[str, float]:
    """What the record says of a scan that was made upright: by how many degrees."""
    shear = find_shear(scan.geometry.affine) if scan.untilt else None
    return {} if shear is None else {"untilted": round(shear.degrees, 3)}
