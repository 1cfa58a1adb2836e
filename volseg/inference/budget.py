"""Memory planned before it is used: what a scan will need, and the chunk sizes that keep it below a limit.

Only the process's own memory is planned, which is what `--max-memory` limits.
"""

import logging
import math
import re
from dataclasses import dataclass

import torch

from volseg.config import NetworkConfig, Plan, Triple
from volseg.data.grid.geometry import Geometry, map_to_network
from volseg.data.grid.shear import upright_geometry
from volseg.data.io.reading import Scan
from volseg.device import free_gpu_memory, machine_memory_gb
from volseg.errors import InputError, UsageError
from volseg.inference.windows import Windows, window_count
from volseg.modelfile import ModelCard
from volseg.system import resident_bytes

logger = logging.getLogger(__name__)

GIB = 2**30
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
# Voxels of the scan processed at a time, the fastest first, and logits in network space for each of them.
CHUNKS = (1 << 22, 1 << 20, 1 << 18)
SLAB_LOGITS_PER_VOXEL = 4
# Memory per voxel: while it is resampled, with its float32 and reoriented copies; while components are counted, in the
# worst case that every voxel is a component (368 MB were measured for 1 << 22 of them).
PREPARE_VOXELS, PREPARE_BYTES, MEASURE_BYTES = 1 << 22, 24, 96
# Up to this size of a window's feature maps, CPU cores lose more time waiting for each other than sharing one saves.
SMALL_MAPS, MOST_AT_ONCE = 100 << 20, 4
# From so many windows on, and so many voxels in network space for each of the scan, the voxel size is questioned.
MANY_WINDOWS, MANY_VOXELS = 1000, 20
# Fragmentation of memory that is kept for reuse, as a factor; see `volseg.networks.cpu.malloc`.
HOLES = 1.5


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
class MemoryEstimate:
    """The memory that segmenting a scan will need.

    Args:
        card: card of the model.
        scan: the scan as read.
        windows: size, overlap, batch and test-time flips.
        dtype: type of feature maps.
        on_host: whether windows are computed in the memory of the process.
        parameters: number of parameters of the network.
        probabilities: whether the class probabilities are kept in memory.
    """

    card: ModelCard
    scan: Scan
    windows: Windows
    dtype: torch.dtype
    on_host: bool
    parameters: int
    probabilities: bool = False

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
        kept = labels + self.probability_bytes
        mask = voxels if any(channel.normalisation == "zscore_nonzero" for channel in plan.channels) else 0
        return {
            "preprocessing": upright + volume + mask + PREPARE_BYTES * min(PREPARE_VOXELS, voxels),
            "windows and labels": volume + kept + self._windows(sorted(self.grid, reverse=True), chunk),
            "measuring labels": kept + MEASURE_BYTES * min(chunk.voxels, voxels),
            # Some formats are written from a copy, and read back.
            "writing labels": kept + labels,
        }

    def _windows(self, grid: list[int], chunk: ChunkSize) -> int:
        """Bytes of one batch of windows, its feature maps, the ring, and logits while they are resampled."""
        network, patch = self.card.plan.network, self.card.plan.patch_size
        outputs = network.classes if self.card.members > 1 else min(network.features[0], network.classes)
        ring = 4 * outputs * min(grid[0], max(patch)) * grid[1] * grid[2]
        # A slab of logits, its planes, and their resampled logits.
        plane = 4 * network.classes * grid[1] * grid[2]
        resampling = 3 * max(plane, 4 * SLAB_LOGITS_PER_VOXEL * chunk.voxels)
        if not self.on_host:
            return resampling
        maps = max(1, self.windows.batch_size) * feature_maps(network, patch) * self.dtype.itemsize
        # Test-time flips and ensemble members are summed: the sum, one output, and the output of a constant window.
        maps += 3 * 4 * outputs * math.prod(patch)
        # The filters of `volseg.networks.cpu.winograd` are up to 8/3 as large as the weights of the layers.
        filters = 8 * self.parameters * self.dtype.itemsize // 3
        return ring + filters + int((maps + resampling) * (HOLES if chunk.keep_freed else 1))


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
    """The number of windows in a batch: one on a CPU, up to eight on a GPU, as memory allows."""
    if device.type != "cuda":
        return 1
    one = 4 * dtype.itemsize * feature_maps(plan.network, plan.patch_size)
    return max(1, min(8, free_gpu_memory(device) // one))


def scans_at_once(plan: Plan, dtype: torch.dtype, device: torch.device) -> int:
    """The number of scans computed in parallel: on a CPU with small windows several, with fewer threads each."""
    is_small = dtype.itemsize * feature_maps(plan.network, plan.patch_size) <= SMALL_MAPS
    return min(torch.get_num_threads(), MOST_AT_ONCE) if device.type == "cpu" and is_small else 1


def plan_chunks(need: MemoryEstimate, limit: int | None) -> ChunkSize:
    """The fastest chunk size that stays below a limit.

    Raises:
        InputError: no chunk size fits the limit, or the scan in network space, with the probabilities kept in memory,
            exceeds the memory of the machine.
    """
    _require_machine(need)
    if limit is None:
        return ChunkSize()
    used = resident_bytes()
    options = [ChunkSize(voxels, keep) for keep in (True, False) for voxels in CHUNKS]
    for chunk in options:
        parts = need.parts(chunk)
        if used + max(parts.values()) <= limit:
            details = _in_words(used, parts), limit / GIB, chunk.voxels, "kept" if chunk.keep_freed else "released"
            logger.info("Memory: %s of %.2f GiB, %d voxels at a time, freed memory is %s", *details)
            return chunk
    parts = need.parts(options[-1])
    raise InputError(
        f"{need.scan.source} needs {_in_words(used, parts)}, but --max-memory is {limit / GIB:.2f} GiB. "
        "Raise it, or use a model with a smaller patch or fewer classes."
    )


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


def require_room(needed: int, limit: int, source: str) -> None:
    """Reject a scan that alone exceeds the limit, before it is read.

    Args:
        needed: bytes of the scan.
        limit: memory limit of the process in bytes.
        source: the scan, for messages.

    Raises:
        InputError: the scan exceeds the limit.
    """
    used = resident_bytes()
    if used + needed > limit:
        raise InputError(
            f"{source} takes {needed / GIB:.2f} GiB, and the program and the model {used / GIB:.2f} GiB, "
            f"but --max-memory is {limit / GIB:.2f} GiB. Raise it."
        )


def parse_size(text: str) -> int:
    """A size such as 4G, 512M, 1.5GiB or 2000000000 in bytes.

    Raises:
        UsageError: the text is not a size.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if not found or not 0 < float(found[1]) < 2**40:
        raise UsageError(f"{text!r} is not an amount of memory. Write for example 4G or 512M.")
    return int(float(found[1]) * UNITS[found[2]])
