"""Apply a loaded model: from a scan in network space to label values in image space; or any module to a volume."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from volseg.config import Plan, Triple
from volseg.data.grid.geometry import GridMap
from volseg.data.grid.resample import separate_axis
from volseg.data.io.probabilities import probability_array, probability_file
from volseg.device import has_room, limit_threads_after_fork, to_host
from volseg.errors import UsageError
from volseg.inference.budget import SLAB_LOGITS_PER_VOXEL, ChunkSize
from volseg.inference.engine import Target, segment
from volseg.inference.stream import Engine, Head, Observer, Predictor, stream_logits, stream_order
from volseg.inference.upsample import Sink, last_present, winner
from volseg.inference.windows import Windows, check_overlap, window_count
from volseg.networks import UNet
from volseg.networks.cpu.malloc import keep_freed_memory
from volseg.networks.cpu.point_conv import PointConv
from volseg.precision import autocast, choose_precision, exact_float32, tuned_convolutions
from volseg.progress import Progress, silent

# Rows of labels written at a time.
ROWS = 16
# Calls of the network from which cuDNN's choice of its kernels by time is worth the second that it takes: an estimate.
TUNED_CALLS = 100


class Wanted(NamedTuple):
    """What is wanted of a scan besides its labels.

    Args:
        probabilities: the file that they are written to, True for an array, or None.
        uncertainty: whether a map of it is.
    """

    probabilities: Path | bool | None = None
    uncertainty: bool = False


@dataclass(frozen=True)
class Labeller:
    """A network, and how it is applied to volumes.

    Args:
        network: in evaluation mode, on the device that computes.
        plan: plan of the network.
        windows: size, overlap, batch and test-time flips.
        dtype: of feature maps.
        turns: admits threads to the device; None: each as it comes.
        gpu_free: with `turns`, bytes of GPU memory that were free before any of these scans was at work.
    """

    network: nn.Module
    plan: Plan
    windows: Windows
    dtype: torch.dtype
    turns: AbstractContextManager[Any] | None = None
    gpu_free: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def label(
        self,
        volume: Tensor,
        grid: GridMap,
        progress: Progress = silent,
        sink: Sink | None = None,
        chunk: ChunkSize | None = None,
        observer: Observer | None = None,
    ) -> np.ndarray:
        """Label values in image space for a scan in network space.

        Args:
            volume: (C, D, H, W) float32.
            grid: the mapping between both spaces.
            progress: called with the fraction of windows done.
            sink: also called with all logits in image space, see `volseg.inference.engine.Target`.
            chunk: how much is computed at a time.
            observer: also called with all logits in network space, slab by slab.

        Returns:
            (I, J, K) uint8, or uint16 when a label value is above 255; background outside the box of `grid`.

        Raises:
            VolsegError: the network's output contains NaN or Inf.
        """
        values = [0, *(label.value for label in self.plan.labels)]
        table = np.array(values, dtype=np.uint8 if max(values) < 256 else np.uint16)
        d, h, w = volume.shape[1:]
        order = stream_order((d, h, w))
        # In the order of image files, which are written plane by plane.
        stored = np.zeros(grid.stored_shape, table.dtype, order="F")
        planes_of = grid.into(stored).transpose(order)
        chunk = chunk or ChunkSize()
        predictor = predictor_of(self.network, self.device, self.dtype, late_head=not self.windows.exchanged)
        slab_logits = SLAB_LOGITS_PER_VOXEL * chunk.voxels
        engine = Engine(predictor, self.windows, self.device, slab_logits, _by_window(progress))
        decide = last_present if self.plan.regions else winner
        rule = self.plan.logits_resampling.nearest
        target = Target(grid.box_shape, decide, nearest_axis(self.plan, grid), sink, rule, observer)
        settings = computing(engine, volume, self.dtype, chunk.keep_freed)
        with self.turns or nullcontext(), torch.inference_mode(), settings:
            volume = volume.to(self.device) if has_room(self.device, volume.nbytes) else volume
            for first, planes in to_host(segment(volume, engine, target)):
                _put_values(planes, table, planes_of[first : first + len(planes)])
        return stored


def _put_values(planes: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Write the values of classes (planes, rows, columns) to `out`, which may be in any memory order.

    A few rows at a time: where an order changes, lines of the cache are used for several planes before they are left.
    """
    are_values = np.array_equal(table, np.arange(len(table)))
    for first in range(0, planes.shape[1], ROWS):
        rows = slice(first, first + ROWS)
        part = planes[:, rows]
        out[:, rows] = part if are_values else np.take(table, part, mode="clip")


def sliding_window(
    volume: Tensor,
    network: nn.Module,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    *,
    batch_size: int = 1,
    mirror_axes: Sequence[int] = (),
    precision: str = "fp32",
    progress: Progress = silent,
) -> Tensor:
    """Logits of a whole volume from any torch module, by Gaussian-weighted overlapping windows.

    The windows, their weights and their order are those of `volseg predict`. Beyond the volume and the logits, memory
    does not grow with the length of the volume.

    Args:
        volume: (C, D, H, W), or (B, C, D, H, W), float32, float16 or bfloat16, on any device. Where it is smaller than
            a window it is padded with zeros.
        network: a module in evaluation mode from (b, C, d, h, w) to (b, K, d, h, w). Windows are computed on the device
            of its parameters; without parameters, on that of the volume.
        patch_size: (d, h, w) of a window.
        overlap: overlap of neighbouring windows, 0 to <1.
        batch_size: windows in one call of the network.
        mirror_axes: volume axes (0, 1, 2) over whose flips the output is averaged (test-time augmentation).
        precision: fp32, bf16, fp16, or auto, the default of `volseg predict`.
        progress: called with the fraction of windows done.

    Returns:
        (K, D, H, W), or (B, K, D, H, W), float32, on the device of the volume, in the volume's own axis order.

    Raises:
        UsageError: the network is in training mode, or an argument has an invalid value.
        VolsegError: the network's output contains NaN or Inf.
    """
    limit_threads_after_fork()
    if volume.ndim == 5:
        every = [
            sliding_window(
                one, network, patch_size, overlap, batch_size=batch_size, mirror_axes=mirror_axes, precision=precision,
                progress=progress,
            )
            for one in volume
        ]  # fmt: skip
        return torch.stack(every)
    size = _checked_arguments(volume, network, patch_size, overlap, mirror_axes)
    windows = Windows(size, overlap, batch_size, tuple(mirror_axes))
    device = next((parameter.device for parameter in network.parameters()), volume.device)
    dtype = choose_precision(precision, device)
    engine = Engine(predictor_of(network, device, dtype), windows, device, progress=_by_window(progress))
    d, h, w = volume.shape[1:]
    order = stream_order((d, h, w))
    logits: Tensor | None = None
    # Not inference mode, whose tensors cannot take part in a caller's autograd.
    with torch.no_grad(), computing(engine, volume, dtype):
        for first, slab in stream_logits(volume, engine, order):
            if logits is None:
                logits = torch.empty((len(slab), d, h, w), device=volume.device)
            planes = logits.permute(0, *(axis + 1 for axis in order))
            planes[:, first : first + slab.shape[1]] = slab
    assert logits is not None
    return logits


def _by_window(progress: Progress) -> Callable[[int, int], None]:
    """The progress of an engine, which counts windows."""
    return lambda done, total: progress("segment", done / total, f"window {done} of {total}")


def _checked_arguments(
    volume: Tensor, network: nn.Module, patch_size: Sequence[int], overlap: float, mirror_axes: Sequence[int]
) -> Triple:
    """Check the arguments of `sliding_window`, and return the patch size."""
    if volume.ndim != 4:
        raise UsageError(f"The volume has {volume.ndim} axes, expected (C, D, H, W) or (B, C, D, H, W).")
    if network.training:
        raise UsageError("The network is in training mode; call network.eval() first.")
    if len(patch_size) != 3 or min(patch_size) < 1:
        raise UsageError(f"The patch size is {tuple(patch_size)}, expected three sizes (d, h, w) of 1 or more.")
    check_overlap(overlap)
    if not set(mirror_axes) <= {0, 1, 2} or len(set(mirror_axes)) < len(mirror_axes):
        raise UsageError(f"The mirror axes are {tuple(mirror_axes)}, expected some of 0, 1 and 2, each only once.")
    return int(patch_size[0]), int(patch_size[1]), int(patch_size[2])


@contextmanager
def computing(engine: Engine, volume: Tensor, dtype: torch.dtype, keep_freed: bool = True) -> Iterator[None]:
    """The settings under which the windows of a volume (C, D, H, W) are computed."""
    windows, device = engine.windows, engine.device
    counts = (window_count(*axis, windows.overlap) for axis in zip(volume.shape[1:], windows.patch_size, strict=True))
    calls = (math.prod(counts) << len(windows.mirror_axes)) // max(1, windows.batch_size)
    with (
        exact_float32(device, dtype),
        # Sums and the last layer are float32, even if the program around volseg is under autocast.
        autocast(device, torch.float32),
        tuned_convolutions(device, calls >= TUNED_CALLS),
        keep_freed_memory() if keep_freed else nullcontext(),
    ):
        yield


def both_sinks(one: Sink | None, other: Sink | None) -> Sink | None:
    """A sink that passes logits on to two, or the one of them that there is."""
    if one is None or other is None:
        return one or other
    first, second = one, other

    def sink(plane: int, rows: slice, logits: Tensor) -> None:
        first(plane, rows, logits)
        second(plane, rows, logits)

    return sink


@contextmanager
def probability_sink(
    target: Path | bool | None, volume: Tensor, grid: GridMap, plan: Plan
) -> Iterator[tuple[Sink | None, np.ndarray | None]]:
    """A sink for `Labeller.label` that takes the class probabilities of `volume`.

    Args:
        target: the .npy file to write, True for an array in memory, or None for none.
        volume: (C, D, H, W) in network space.
        grid: the mapping to image space.
        plan: plan of the network.

    Yields:
        The sink and the array (C, I, J, K) float16 that it fills, or None for either without one.
    """
    if not target:
        yield None, None
        return
    d, h, w = volume.shape[1:]
    order, classes = stream_order((d, h, w)), plan.network.classes
    if isinstance(target, Path):
        with probability_file(target, grid, order, classes, plan.regions) as write:
            yield write, None
        return
    array, write = probability_array(grid, order, classes, plan.regions)
    yield write, array


def predictor_of(network: nn.Module, device: torch.device, dtype: torch.dtype, late_head: bool = True) -> Predictor:
    """A network as the engine calls it; the last layer of a U-Net runs after blending if its inputs are fewer.

    Without `late_head` it never does: flips that exchange labels need the logits.
    """

    def logits(batch: Tensor) -> Tensor:
        with autocast(device, dtype):
            found = network(batch)
        if not isinstance(found, Tensor) or found.ndim != 5 or _sizes(found) != _sizes(batch):
            kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(
                f"The network returned {kind} for windows of shape {tuple(batch.shape)}, expected one tensor "
                "(b, K, d, h, w) of the same b, d, h, w. Wrap the network in a module that returns that."
            )
        return found

    if not late_head or not _has_plain_head(network) or network.config.features[0] >= network.config.classes:
        return Predictor(logits)
    decode, head = network.decode, Head(*network.head)

    def features(batch: Tensor) -> Tensor:
        with autocast(device, dtype):
            for maps in decode(batch):
                finest = maps  # coarser ones are freed
        return finest

    return Predictor(features, head)


def _has_plain_head(network: nn.Module) -> TypeGuard[UNet]:
    """Whether a network is a U-Net as it was built, whose logits are its last layer and nothing more."""
    hooks = any((network._forward_hooks, network._forward_pre_hooks))
    return type(network) is UNet and not hooks and type(network.heads[-1]) is PointConv


def _sizes(batch: Tensor) -> tuple[int, ...]:
    """Of (b, C, d, h, w): b, d, h, w."""
    return (batch.shape[0], *batch.shape[2:])


def nearest_axis(plan: Plan, grid: GridMap) -> int | None:
    """The axis of network space whose logits are resampled to image space by nearest neighbour, if any."""
    resampling = plan.logits_resampling
    axis = separate_axis(resampling, plan.spacing_of(grid.spacing_mm), grid.spacing_mm)
    return axis if resampling.separate_order == 0 else None
