"""A model loaded once, and scans that go through it."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import torch
from torch import Tensor, nn

from volseg.api.budget import (
    Work,
    parse_size,
    peak_memory_bytes,
    plan_chunks,
    require_room,
    resident_bytes,
    scans_at_once,
    windows_at_once,
)
from volseg.api.labelling import label_volume, probability_sink
from volseg.api.postprocessing import postprocess
from volseg.api.result import Result
from volseg.data.inputs import Case
from volseg.data.preprocess import image_to_network
from volseg.data.reading import Scan, read_channels, read_scan, scan_from_array, scan_from_nibabel, scan_from_sitk
from volseg.data.sizes import reading_bytes
from volseg.device import choose_device, memory_errors
from volseg.errors import InputError, UsageError, VolsegError
from volseg.files import sha256_of
from volseg.heap import kept_heap
from volseg.inference.quality import measure, scan_flags
from volseg.inference.windows import Windows
from volseg.modelfile import ModelCard, load_model
from volseg.networks import Ensemble, UNet
from volseg.precision import DTYPES, choose_precision
from volseg.progress import Progress, silent

BUNDLED = Path(__file__).parent.parent / "models"
# A scan in any form, and the file its probabilities go to.
Job: TypeAlias = tuple[Any, Path | None]
# A scan, and the seconds it took to read.
Opened: TypeAlias = tuple[Scan, float]


@dataclass(frozen=True)
class Outcome:
    """What became of one scan: a result, or the error that kept it from one."""

    input: Any
    result: Result | None = None
    error: VolsegError | None = None


@dataclass(frozen=True)
class Segmenter:
    """A model on a device, ready for scans; holds no state between them, so threads may share it.

    Make one with `Segmenter.load`.
    """

    card: ModelCard
    sha256: str
    network: nn.Module
    device: torch.device
    dtype: torch.dtype
    windows: Windows
    max_memory: int | None = None
    crop: str = "none"

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
    ) -> "Segmenter":
        """Load a model.

        Args:
            model: a bundled name, or the path of a model file.
            device: auto, cpu, cuda, cuda:N or mps.
            precision: auto, fp32, bf16 or fp16; auto takes what the device computes natively.
            overlap: share of a window that its neighbour covers again, 0 to below 1.
            tta: "none", or "mirror": the mean over mirror images along the axes the plan allows.
            max_memory: the most memory the process may take, in bytes or as text such as "4G"; None for no limit.
                What a scan needs is planned before it is read and before it is computed, and refused if it is more.
            crop: "none": what the plan says; or "body": only a box around the body is computed, an approximation:
                windows stand elsewhere than without it, and outside of it all is background. See `volseg.data.body`.

        Raises:
            InputError: no such model, or not a model file.
            UsageError: an option has a value that does not exist.
        """
        if not 0 <= overlap < 1:
            raise UsageError(f"The overlap is a share from 0 to below 1, found {overlap}. The default is 0.5.")
        if tta not in ("none", "mirror"):
            raise UsageError(f"Unknown tta {tta!r}. Use none or mirror.")
        if crop not in ("none", "body"):
            raise UsageError(f"Unknown crop {crop!r}. Use none or body.")
        path = find_model(model)
        card, weights = load_model(path)
        place = choose_device(device)
        with memory_errors(f"loading the model on {place}"):
            network = load_network(card, weights, path).to(place)
        mirror = card.plan.mirror_axes if tta == "mirror" else ()
        dtype = choose_precision(precision, place)
        windows = Windows(card.plan.patch_size, overlap, windows_at_once(card.plan, dtype, place), mirror)
        return cls(
            card=card,
            sha256=sha256_of(path),
            network=network,
            device=place,
            dtype=dtype,
            windows=windows,
            max_memory=None if max_memory is None else parse_size(str(max_memory)),
            crop=crop,
        )

    def __call__(self, scan: Any, progress: Progress = silent, probabilities: str | Path | None = None) -> Result:
        """Segment one scan.

        Args:
            scan: a path, a nibabel image, a SimpleITK image, (array (I, J, K), affine to RAS+ mm), or a `Scan`.
            progress: told how far the windows are.
            probabilities: a .npy file to write, float16 (C, I, J, K): background first, then the labels; of a model
                of overlapping regions only the regions. They are the network's: postprocessing changes labels only.

        Raises:
            InputError: the scan cannot be used; see `volseg.data.checks` for what is asked of it.
            ResourceError: memory is not enough.
        """
        return self._segment(*self._open(scan), progress, Path(probabilities) if probabilities else None)

    def _open(self, scan: Any) -> Opened:
        """The scan in memory, and the seconds that took."""
        started = time.perf_counter()
        paths = scan.paths if isinstance(scan, Case) else [Path(scan)] if isinstance(scan, str | Path) else []
        if self.max_memory is not None and paths:
            require_room(sum(map(reading_bytes, paths)), self.max_memory, str(paths[0]))
        with memory_errors("reading the scan"):
            opened = open_scan(scan, len(self.card.plan.channels))
        return opened, time.perf_counter() - started

    def _segment(self, opened: Scan, read_seconds: float, progress: Progress, probabilities: Path | None) -> Result:
        started = time.perf_counter()
        plan = self.card.plan
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        work = Work(self.card, opened, self.windows, self.dtype, self.device.type == "cpu", parameters)
        chunk = plan_chunks(work, self.max_memory)
        with memory_errors(f"segmenting on {self.device}"):
            volume, grid = image_to_network(opened.channels, opened.geometry, plan, self.crop == "body", self.device)
            prepared = time.perf_counter()
            with probability_sink(probabilities, volume, grid, plan) as sink:
                labels = label_volume(self.network, volume, grid, plan, self.windows, self.dtype, progress, sink, chunk)
            del volume
            segmented = time.perf_counter()
            voxel_ml = opened.geometry.voxel_ml
            room = None if self.max_memory is None else self.max_memory - resident_bytes()
            cleaned = postprocess(labels, plan.labels, self.card.postprocessing, voxel_ml, chunk.voxels, room)
            measures = tuple(measure(labels, plan.labels, voxel_ml, chunk.voxels))
            flags = scan_flags(opened.channels, plan.channels)
        measured = time.perf_counter()
        record = {
            "model": {"name": self.card.name, "sha256": self.sha256},
            "device": str(self.device),
            "precision": next(name for name, dtype in DTYPES.items() if dtype == self.dtype),
            "overlap": self.windows.overlap,
            "mirror_axes": list(self.windows.mirror_axes),
            "crop": plan.crop if self.crop == "none" else self.crop,
            "postprocessing": cleaned,
            "seconds": {
                "read": round(read_seconds, 4),
                "prepare": round(prepared - started, 4),
                "segment": round(segmented - prepared, 4),
                "measure": round(measured - segmented, 4),
            },
            "peak_memory_bytes": peak_memory_bytes(),
        }
        return Result(labels, measures, flags, opened, plan.labels, record)

    def map(
        self, scans: Iterable[Any], progress: Progress = silent, probabilities: Iterable[Path | None] = repeat(None)
    ) -> Iterator[Outcome]:
        """Segment many scans, in order, and keep the device busy meanwhile.

        Unless memory is limited, the next scan is read while one is computed; on a CPU, scans whose windows are small
        are computed side by side. A scan that cannot be segmented is an outcome with an error, not an exception.

        Args:
            scans: each as for a call.
            progress: told how far the windows of the scans at work are, from their threads.
            probabilities: the file of each scan's probabilities, None for none.
        """
        jobs = zip(scans, probabilities, strict=False)
        at_once = scans_at_once(self.card.plan, self.dtype, self.device) if self.max_memory is None else 1
        first = list(islice(jobs, at_once))
        if len(first) > 1:
            yield from self._side_by_side(chain(first, jobs), at_once, progress)
        else:
            yield from self._one_by_one(chain(first, jobs), progress)

    def _one_by_one(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Outcome]:
        with ThreadPoolExecutor(1, thread_name_prefix="volseg-read") as reader:
            # No name for what was read: it would keep a scan while the next one is computed.
            waiting: deque[tuple[Job, Callable[[], Opened]]] = deque()
            for job in jobs:
                waiting.append((job, reader.submit(self._open, job[0]).result))
                if len(waiting) > (self.max_memory is None):
                    yield self._outcome(*waiting.popleft(), progress)
            while waiting:
                yield self._outcome(*waiting.popleft(), progress)

    def _side_by_side(self, jobs: Iterable[Job], at_once: int, progress: Progress) -> Iterator[Outcome]:
        threads, given_up = torch.get_num_threads(), threading.Event()

        def show(stage: str, share: float, text: str) -> None:
            if given_up.is_set():
                raise KeyboardInterrupt
            progress(stage, share, text)

        with (
            kept_heap(),
            ThreadPoolExecutor(
                at_once, "volseg-segment", initializer=torch.set_num_threads, initargs=(max(threads // at_once, 1),)
            ) as pool,
        ):
            try:
                waiting: deque[Future[Outcome]] = deque()
                for job in jobs:
                    waiting.append(pool.submit(self._outcome, job, partial(self._open, job[0]), show))
                    if len(waiting) > at_once:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                # Nobody waits for the scans at work any more: they end with the window that is computed now.
                given_up.set()
                pool.shutdown(cancel_futures=True)
                # What one thread sets, torch takes over for all threads that begin later.
                torch.set_num_threads(threads)

    def _outcome(self, job: Job, opened: Callable[[], Opened], progress: Progress) -> Outcome:
        scan, probabilities = job
        try:
            return Outcome(scan, result=self._segment(*opened(), progress, probabilities))
        except VolsegError as error:
            # Whoever keeps the error would keep all that was in memory where it arose.
            _forget_frames(error)
            return Outcome(scan, error=error)


def _forget_frames(error: BaseException | None) -> None:
    """Drop what the functions that an error came through, and those of its causes, held."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def bundled_models() -> dict[str, Path]:
    """The models that come with the package, by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors"))}


def find_model(model: str | Path) -> Path:
    """The path of a bundled model by name, or `model` itself as a path.

    Raises:
        InputError: neither.
    """
    bundled = bundled_models()
    if str(model) in bundled:
        return bundled[str(model)]
    if not Path(model).is_file():
        names = ", ".join(bundled) or "none in this version"
        raise InputError(
            f"There is no model {str(model)!r}. Give the path of a model file or a bundled name ({names})."
        )
    return Path(model)


def load_network(card: ModelCard, weights: dict[str, Tensor], source: Path) -> nn.Module:
    """A model's network with `weights`, ready to predict; several of them answer as one.

    Raises:
        InputError: the weights belong to another network.
    """
    members = [UNet(card.plan.network) for _ in range(card.members)]
    network = Ensemble(members) if card.members > 1 else members[0]
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise InputError(
            f"The weights in {source} do not fit its plan: {first[0].strip()} The file is damaged."
        ) from error
    return network.eval().requires_grad_(False)


def open_scan(scan: Any, channels: int) -> Scan:
    """Any of the forms a scan may be handed over in, checked."""
    if isinstance(scan, Scan):
        return scan
    if isinstance(scan, Case):
        return read_channels(scan.paths, channels)
    if isinstance(scan, str | Path):
        return read_scan(Path(scan), channels)
    if isinstance(scan, tuple) and len(scan) == 2:
        return scan_from_array(*scan, channels=channels)
    if isinstance(scan, nibabel.spatialimages.SpatialImage):
        return scan_from_nibabel(scan, channels=channels)
    if hasattr(scan, "GetDirection"):  # SimpleITK, asked for without loading it
        return scan_from_sitk(scan, channels=channels)
    raise UsageError(
        f"A {type(scan).__name__} is not a scan. Give a path, a nibabel or SimpleITK image, or (array, affine)."
    )
