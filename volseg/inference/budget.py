"""Memory planned before it is used: what a scan will need, and the chunk sizes that keep it below a limit.

Only the process's own memory is planned, which is what `--max-memory` limits.
"""

import logging
import math
import re
from dataclasses import dataclass, replace

import torch

from volseg.config import NetworkConfig, Plan, Triple
from volseg.data.grid.geometry import Geometry, map_to_network
from volseg.data.grid.shear import upright_geometry
from volseg.data.io.reading import Scan
from volseg.device import free_gpu_memory, machine_memory_gb
from volseg.errors import InputError, ResourceError, UsageError
from volseg.inference.room import GIB, MORE_MEMORY, SCAN_BYTES
from volseg.inference.windows import Windows, window_count
from volseg.modelfile import ModelCard
from volseg.networks.footprint import Computing, Footprint, footprint
from volseg.system import MemoryLimit, resident_bytes, tightest_limit, usable_cores
from volseg.text import counted, shortened

logger = logging.getLogger(__name__)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
# Voxels of the scan processed at a time, the fastest first, and logits in network space for each of them.
CHUNKS = (1 << 22, 1 << 20, 1 << 18)
SLAB_LOGITS_PER_VOXEL = 4
# Memory per voxel: while it is resampled, with its float32 and reoriented copies; while components are counted, in the
# worst case that every voxel is a component (368 MB were measured for 1 << 22 of them).
PREPARE_VOXELS, PREPARE_BYTES, MEASURE_BYTES = 1 << 22, 24, 96
# Up to this size of a window's feature maps, CPU cores lose more time waiting for each other than sharing one saves.
SMALL_MAPS, MOST_AT_ONCE = 100 << 20, 4
# Scans at work for a GPU: as many as the cores can read, prepare, measure and write, and those that wait for the GPU.
MOST_FOR_GPU, AT_GPU = 32, 2
# Windows computed at once on a GPU.
MOST_WINDOWS = 8
# Pixels of the slices in a batch.
SLICES_PIXELS = 1 << 16
# From so many windows on, and so many voxels in network space for each of the scan, the voxel size is questioned.
MANY_WINDOWS, MANY_VOXELS = 1000, 20
# Resampled logits of a block, and small tensors.
RESAMPLED_BYTES, HEAP = 16 << 20, 48 << 20
# Fragmentation of the memory of windows, as a factor: the estimate was 0.86 to 1.23 of what was measured without it.
HOLES = 1.25
# What torch's libraries take for the convolutions of another network than volseg's, on top of what was measured: copies
# of the input and the output, as a factor.
LIBRARIES = 2


@dataclass(frozen=True)
class ChunkSize:
    """How much is computed at a time.

    Args:
        voxels: of the scan, while its labels are measured; four logits each, while labels are computed.
        keep_freed: whether freed memory is kept for the next window, which is faster but fragments memory.
    """

    voxels: int = CHUNKS[0]
    keep_freed: bool = True


@dataclass(frozen=True)
class MemoryPlan:
    """How a scan is segmented, so that it fits.

    Args:
        chunk: how much is computed at a time.
        windows: with the number of windows computed at once.
        bytes: the most memory that the process will take.
    """

    chunk: ChunkSize
    windows: Windows
    bytes: int


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that segmenting a scan will need.

    Args:
        card: card of the model.
        scan: the scan as read.
        windows: size, overlap, batch and test-time flips.
        dtype: type of feature maps.
        device: where windows are computed.
        probabilities: whether the class probabilities are kept in memory.
        window_bytes: measured feature maps of a window, where the network is not the U-Net of the plan.
        uncertainty: whether the map of uncertainty is kept in memory.
        gpu_free: see `volseg.inference.labelling.Labeller`.
    """

    card: ModelCard
    scan: Scan
    windows: Windows
    dtype: torch.dtype
    device: torch.device
    probabilities: bool = False
    window_bytes: int | None = None
    uncertainty: bool = False
    gpu_free: int | None = None

    @property
    def grid(self) -> Triple:
        """(D, H, W) of the scan in network space; a crop can only make it smaller."""
        return map_to_network(self.geometry, self.card.plan).shape

    @property
    def geometry(self) -> Geometry:
        """The grid that goes to network space: the scan's own, or its upright one."""
        return upright_geometry(self.scan.geometry) if self.scan.untilt else self.scan.geometry

    @property
    def window_count(self) -> int:
        """Number of windows; a crop can only make it smaller."""
        patch, overlap = self.windows.patch_size, self.windows.overlap
        return math.prod(window_count(size, one, overlap) for size, one in zip(self.grid, patch, strict=True))

    @property
    def probability_bytes(self) -> int:
        """The size in bytes of class probabilities kept in memory, float16."""
        return 2 * self.card.plan.network.classes * math.prod(self.scan.geometry.shape) * self.probabilities

    @property
    def volume_bytes(self) -> int:
        """The size in bytes of the scan in network space."""
        return 4 * len(self.card.plan.channels) * math.prod(self.grid)

    def parts(self, chunk: ChunkSize) -> dict[str, int]:
        """Bytes needed on top of the scan at the peak of each stage."""
        plan = self.card.plan
        voxels = math.prod(self.geometry.shape)
        volume = self.volume_bytes
        upright = 4 * len(plan.channels) * voxels * self.scan.untilt
        # The labels of an upright grid are in memory with those of the slices for a moment.
        labels = voxels * (1 if max(label.value for label in plan.labels) < 256 else 2) * (1 + self.scan.untilt)
        # float16, and a byte per voxel while it is written.
        kept = labels + self.probability_bytes + 2 * voxels * self.uncertainty
        mask = voxels if any(channel.normalisation == "zscore_nonzero" for channel in plan.channels) else 0
        return {
            "preprocessing": upright + volume + mask + PREPARE_BYTES * min(PREPARE_VOXELS, voxels),
            "windows and labels": volume + kept + self._windows(sorted(self.grid, reverse=True), chunk),
            "measuring labels": kept + MEASURE_BYTES * min(chunk.voxels, voxels),
            # Some formats are written from a copy, and read back.
            "writing labels": kept + labels + voxels * self.uncertainty,
        }

    def _windows(self, grid: list[int], chunk: ChunkSize) -> int:
        """Bytes of one batch of windows, its feature maps, the ring, and logits while they are resampled."""
        at_end, outputs, ring, resampling = self._blending(grid, chunk)
        if self.device.type != "cpu":
            return resampling
        return ring + self._network(at_end, outputs, resampling, Computing(self.dtype.itemsize, True, chunk.keep_freed))

    @property
    def gpu_bytes(self) -> int:
        """Bytes of GPU memory on top of the network and the scan in network space."""
        at_end, outputs, ring, resampling = self._blending(sorted(self.grid, reverse=True), ChunkSize())
        return ring + self._network(at_end, outputs, resampling, Computing(self.dtype.itemsize, False, False))

    def _blending(self, grid: list[int], chunk: ChunkSize) -> tuple[bool, int, int, int]:
        """Whether the last layer follows the blending, outputs per voxel, bytes of the ring, and of resampling."""
        network, patch = self.card.plan.network, self.card.plan.patch_size
        few = self.window_bytes is None and network.features[0] < network.classes
        at_end = self.card.members == 1 and few and not self.windows.exchanged
        outputs = network.features[0] if at_end else network.classes
        planes = min(grid[0], max(patch))
        ring = 4 * outputs * planes * grid[1] * grid[2]
        # Two slabs of logits, one that was freed and that malloc cannot always use again, the last plane of each, and
        # resampled logits.
        plane = 4 * network.classes * grid[1] * grid[2]
        slab = min(plane * planes, max(plane, 4 * SLAB_LOGITS_PER_VOXEL * chunk.voxels))
        resampling = 3 * slab + 3 * plane + RESAMPLED_BYTES
        return at_end, outputs, ring, resampling

    def _network(self, at_end: bool, outputs: int, resampling: int, computing: Computing) -> int:
        """Bytes of one batch of windows: its feature maps, what is made of its outputs, and the filters."""
        network, patch = self.card.plan.network, self.card.plan.patch_size
        batch = max(1, self.windows.batch_size)
        if self.window_bytes is None:
            found = footprint(network, patch, batch, computing, head=not at_end)
        else:
            maps = LIBRARIES * batch * self.window_bytes
            found = Footprint(maps, maps if computing.keep_freed else 0, 0, 0)
        values = 4 * batch * math.prod(patch)
        # An output in float32, and its weights.
        output = values * (outputs + 2)
        flips = values * (outputs + 2 * network.in_channels) if self.windows.mirror_axes else 0
        members = values * network.classes if self.card.members > 1 else 0
        during = found.maps + flips + members
        after = found.kept + 2 * output + resampling + flips
        # On a GPU, autocast keeps a copy of the weights. The output of a constant window is kept.
        kept = output + self.card.members * (found.filters if computing.fast else found.weights)
        return kept + int(max(during, after) * HOLES) + HEAP


def feature_maps(network: NetworkConfig, patch: Triple) -> int:
    """The largest number of feature map values in memory while a window is computed without gradients.

    At a decoder stage these are the upsampled maps, the skip connection, both concatenated, and the skip connections
    of all finer stages.
    """
    sizes = []
    voxels = math.prod(patch)
    for channels, stride in zip(network.features, network.strides, strict=True):
        voxels //= math.prod(stride)
        sizes.append(channels * voxels)
    extra = int(network.encoder == "residual" or "conv2plus1d" in network.blocks)
    per_stage = [(4 + extra) * sizes[stage] + sum(sizes[:stage]) + sizes[stage + 1] for stage in range(len(sizes) - 1)]
    return max(per_stage) + (network.in_channels + network.classes) * math.prod(patch)


def windows_at_once(plan: Plan, dtype: torch.dtype, device: torch.device) -> int:
    """The number of windows in a batch: one on a CPU, several small slices, or up to eight on a GPU.

    On a GPU it is one for another network than volseg's, whose memory is not known from the plan.
    """
    if device.type != "cuda":
        # Calling the layers takes longer than computing a small slice.
        return max(1, min(16, SLICES_PIXELS // math.prod(plan.patch_size))) if plan.dimensions == 2 else 1
    if plan.network.architecture != "unet":
        return 1
    one = 4 * dtype.itemsize * feature_maps(plan.network, plan.patch_size)
    return max(1, min(MOST_WINDOWS, free_gpu_memory(device) // one))


def scans_at_once(plan: Plan, dtype: torch.dtype, device: torch.device) -> int:
    """The number of scans at work at once, each in its own thread.

    For a GPU as many as the cores keep it busy with. On a CPU several if their windows are small, with fewer threads
    each.
    """
    machine = tightest_limit()
    if device.type == "cuda":
        fitting = MOST_FOR_GPU if machine is None else machine.free // (2 * SCAN_BYTES)
        return max(1, min(usable_cores() + AT_GPU, MOST_FOR_GPU, fitting))
    maps = dtype.itemsize * feature_maps(plan.network, plan.patch_size)
    if device.type != "cpu" or maps > SMALL_MAPS or plan.network.architecture != "unet":
        return 1
    fitting = MOST_AT_ONCE if machine is None else machine.free // (SCAN_BYTES + maps)
    return max(1, min(torch.get_num_threads(), MOST_AT_ONCE, fitting))


def scans_at_device(plan: Plan, dtype: torch.dtype, device: torch.device) -> int:
    """How many of the scans at work have their windows computed at the same time: on a CPU all.

    On a GPU two, where its memory holds twice the most windows that are computed at once, so that it goes on with one
    while the host takes the labels of the other; else one.
    """
    if device.type != "cuda":
        return MOST_AT_ONCE
    if plan.network.architecture != "unet":
        return 1
    one = 4 * dtype.itemsize * feature_maps(plan.network, plan.patch_size)
    return AT_GPU if free_gpu_memory(device) >= AT_GPU * MOST_WINDOWS * one else 1


def plan_chunks(need: MemoryEstimate, limit: int | None, others: int = 0) -> tuple[MemoryPlan, int]:
    """The fastest way to segment a scan that fits the limit, the free memory of the machine, and that of the GPU.

    Args:
        need: what the scan needs.
        limit: memory limit of the process in bytes, of `--max-memory`; None for none.
        others: bytes of free memory that other scans at work were promised.

    Returns:
        The plan, and its bytes on top of what the process has taken already.

    Raises:
        InputError: nothing fits the limit, or the scan in network space, with the probabilities kept in memory, exceeds
            the memory of the machine.
        ResourceError: nothing fits the free memory.
    """
    _require_machine(need)
    used = resident_bytes()
    windows = _fit_gpu(need)
    need = replace(need, windows=windows)
    options = [ChunkSize(voxels, keep) for keep in (True, False) for voxels in CHUNKS]
    machine = tightest_limit()
    free = math.inf if machine is None else machine.free - others
    room = math.inf if limit is None else limit - used
    for chunk in options:
        parts = need.parts(chunk)
        most = max(parts.values())
        if most <= min(free, room):
            plan = MemoryPlan(chunk, windows, used + most)
            if limit is not None or chunk != options[0]:
                _log_plan(plan, parts, used, room <= free, machine)
            return plan, most
    parts = need.parts(options[-1])
    if limit is not None and room <= free:
        raise InputError(
            f"{need.scan.source} needs {_in_words(used, parts)}, but --max-memory is {limit / GIB:.2f} GiB. "
            "Raise it, or use a model with a smaller patch or fewer classes."
        )
    assert machine is not None
    raise ResourceError(f"{need.scan.source} needs {_in_words(used, parts)}, but {_has(machine, used)}. {MORE_MEMORY}")


def _fit_gpu(need: MemoryEstimate) -> Windows:
    """As many windows at once as fit the free memory of the GPU.

    Raises:
        ResourceError: not even one fits.
    """
    windows = need.windows
    if need.device.type != "cuda":
        return windows
    free = free_gpu_memory(need.device)
    if need.gpu_free is not None:
        # When it has its turn, the windows that are now computed are gone; volumes may have taken a quarter.
        free = max(free, 3 * need.gpu_free // 4)
    while (needed := replace(need, windows=windows).gpu_bytes) > free:
        if windows.batch_size <= 1:
            raise ResourceError(
                f"A window of {' x '.join(map(str, windows.patch_size))} voxels needs {needed / GIB:.2f} GiB of GPU "
                f"memory, but {need.device} has {free / GIB:.2f} GiB free. Close other programs that use the GPU, use "
                "--device cpu, or a model with a smaller patch."
            )
        windows = replace(windows, batch_size=windows.batch_size // 2)
    if windows != need.windows:
        logger.info("Memory: %d windows at once, because %s has %.2f GiB free", windows.batch_size, need.device,
                    free / GIB)  # fmt: skip
    return windows


def _log_plan(plan: MemoryPlan, parts: dict[str, int], used: int, by_limit: bool, machine: MemoryLimit | None) -> None:
    """Log what was planned and, where it is not the fastest way, why."""
    of = "--max-memory" if by_limit or machine is None else _has(machine, used)
    chunk = plan.chunk
    details = _in_words(used, parts), of, chunk.voxels, "kept" if chunk.keep_freed else "released"
    logger.info("Memory: %s; planned for %s: %d voxels at a time, freed memory is %s", *details)


def _has(machine: MemoryLimit, used: int) -> str:
    """What a limit leaves to the process, in words."""
    return f"{machine.source} has {(used + machine.free) / GIB:.2f} GiB for it"


def question_windows(need: MemoryEstimate) -> str | None:
    """A warning about a scan that is resampled to so fine a grid that its voxel size may be wrong; None if it is not.

    A window is about as large as a training scan or smaller. Scans of many windows are usual where their own voxels are
    as fine; thousands of windows between few voxels come from a wrong unit, and take hours.
    """
    windows = need.window_count
    if windows < MANY_WINDOWS or math.prod(need.grid) < MANY_VOXELS * math.prod(need.geometry.shape):
        return None
    return f"{_fine_grid(need)}, {windows:,} windows. Check that the voxel size of the scan is in millimetres."


def _fine_grid(need: MemoryEstimate) -> str:
    """The voxel sizes of the scan and the model, and the grid that follows from them."""
    spacings = need.geometry.spacing_mm, need.card.plan.spacing_mm
    sizes, wanted = (" x ".join(f"{mm:.4g}" for mm in spacing) for spacing in spacings)
    grid = " x ".join(map(str, need.grid))
    return f"The scan has voxels of {sizes} mm, and the model works at {wanted} mm: that makes {grid} voxels"


def _require_machine(need: MemoryEstimate) -> None:
    """Reject what exceeds the memory of the machine: probabilities, or a scan with a wrong voxel size (unit)."""
    needed, total, probabilities = need.volume_bytes / GIB, machine_memory_gb(), need.probability_bytes / GIB
    if needed <= total < needed + probabilities:
        raise InputError(
            f"The probabilities of {need.scan.source} take {probabilities:,.1f} GiB in memory, but this machine has "
            f"{total:,.1f}. Write them to a file: probabilities='NAME.npy'."
        )
    if needed > total:
        raise InputError(
            f"{need.scan.source}: {_fine_grid(need)}, {need.window_count:,} windows and {needed:,.0f} GiB, but this "
            f"machine has {total:,.0f} GiB. Check that the voxel size of the scan is in millimetres."
        )


def _in_words(used: int, parts: dict[str, int]) -> str:
    """The memory of a plan in words."""
    most = max(parts, key=parts.__getitem__)
    fixed, more = used / GIB, parts[most] / GIB
    return f"{fixed + more:.2f} GiB ({fixed:.2f} for the program, the model and the scan, {more:.2f} for {most})"


def parse_size(text: str) -> int:
    """A size such as 4G, 512M, 1.5GiB or 2000000000 in bytes.

    Raises:
        UsageError: the text is not a size.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if not found or not 0 < float(found[1]) < 2**40:
        raise UsageError(f"{shortened(text, 200)!r} is not an amount of memory. Write for example 4G or 512M.")
    size = int(float(found[1]) * UNITS[found[2]])
    if size < UNITS["K"]:
        raise UsageError(f"{text!r} is an amount of memory of {counted(size, 'byte')}. Write for example 4G or 512M.")
    return size
