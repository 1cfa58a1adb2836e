"""Memory planned before it is used: what a scan will need, and how small the pieces have to be to stay below a limit.

Only the process's own memory is planned, which is what `--max-memory` limits.
"""

import logging
import math
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from volseg.config import NetworkConfig, Plan, Triple
from volseg.data.geometry import map_to_network
from volseg.data.reading import Scan
from volseg.device import free_gpu_memory, machine_memory_gb
from volseg.errors import InputError, UsageError
from volseg.inference.windows import Windows
from volseg.modelfile import ModelCard

logger = logging.getLogger(__name__)

GIB = 2**30
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
# Voxels of the scan worked on at a time, the quickest first, and logits on the network's grid for each of them.
CHUNKS = (1 << 22, 1 << 20, 1 << 18)
SLAB_LOGITS_PER_VOXEL = 4
# What a voxel at work takes: while it is resampled, with its float32 and oriented copies; while components are counted,
# at the worst, which is every voxel a component of its own (368 MB were measured for 1 << 22 of them).
PREPARE_VOXELS, PREPARE_BYTES, MEASURE_BYTES = 1 << 22, 24, 96
# Where a window's feature maps take no more, a CPU's cores wait for each other longer than they gain by sharing one.
SMALL_MAPS, MOST_AT_ONCE = 100 << 20, 4
# A kept heap's holes, as a factor on what comes and goes; see `volseg.heap`.
HOLES = 1.5


@dataclass(frozen=True)
class Chunking:
    """How much is held at a time.

    Args:
        voxels: of the scan, while its labels are measured; four logits each, while they are made.
        keep_heap: whether freed memory is kept for the next window, which is quicker and leaves holes.
    """

    voxels: int = CHUNKS[0]
    keep_heap: bool = True


@dataclass(frozen=True)
class Work:
    """A scan that was read and the model that will segment it.

    Args:
        card: of the model.
        scan: as read.
        windows: how they are cut.
        dtype: of feature maps.
        on_host: whether windows are computed in the process's own memory.
        parameters: of the network.
    """

    card: ModelCard
    scan: Scan
    windows: Windows
    dtype: torch.dtype
    on_host: bool
    parameters: int

    @property
    def grid(self) -> Triple:
        """(D, H, W) of the scan on the network's grid; a crop can only make it smaller."""
        return map_to_network(self.scan.geometry, self.card.plan).shape

    @property
    def volume_bytes(self) -> int:
        """What the scan takes on the network's grid."""
        return 4 * len(self.card.plan.channels) * math.prod(self.grid)

    def parts(self, chunk: Chunking) -> dict[str, int]:
        """Bytes that come on top of the scan at the peak of each stage."""
        plan = self.card.plan
        voxels = math.prod(self.scan.geometry.shape)
        volume = self.volume_bytes
        labels = voxels * (1 if max(label.value for label in plan.labels) < 256 else 2)
        mask = voxels if any(channel.normalisation == "zscore_nonzero" for channel in plan.channels) else 0
        return {
            "preparing it": volume + mask + PREPARE_BYTES * min(PREPARE_VOXELS, voxels),
            "its windows and labels": volume + labels + self._windows(sorted(self.grid, reverse=True), chunk),
            "measuring its labels": labels + MEASURE_BYTES * min(chunk.voxels, voxels),
            # Some formats are written from a copy, and read back.
            "writing its labels": 2 * labels,
        }

    def _windows(self, grid: list[int], chunk: Chunking) -> int:
        """One batch of windows, what a network keeps for them, the ring, and logits on their way back."""
        network, patch = self.card.plan.network, self.card.plan.patch_size
        answers = network.classes if self.card.members > 1 else min(network.features[0], network.classes)
        ring = 4 * answers * min(grid[0], max(patch)) * grid[1] * grid[2]
        # A slab of logits, its planes cut out of it, and what is made of them.
        plane = 4 * network.classes * grid[1] * grid[2]
        back = 3 * max(plane, 4 * SLAB_LOGITS_PER_VOXEL * chunk.voxels)
        if not self.on_host:
            return back
        maps = max(1, self.windows.batch_size) * feature_maps(network, patch) * self.dtype.itemsize
        # What is summed over mirror images and over members: the sum, one of them, and the answer to a constant window.
        maps += 3 * 4 * answers * math.prod(patch)
        # The filters of `volseg.networks.winograd` are up to 8/3 as large as the weights they are made of.
        filters = 8 * self.parameters * self.dtype.itemsize // 3
        return ring + filters + int((maps + back) * (HOLES if chunk.keep_heap else 1))


def feature_maps(network: NetworkConfig, patch: Triple) -> int:
    """The most values that feature maps hold at one time while a window is computed without gradients.

    At a decoder stage these are what it brings up, the encoder's maps beside it, both as one, and the encoder's maps
    of all finer stages, which still wait.
    """
    sizes = []
    voxels = math.prod(patch)
    for channels, stride in zip(network.features, network.strides, strict=True):
        voxels //= math.prod(stride)
        sizes.append(channels * voxels)
    extra = int(network.encoder == "residual" or "conv2plus1d" in network.blocks)
    at_work = [(4 + extra) * sizes[stage] + sum(sizes[:stage]) + sizes[stage + 1] for stage in range(len(sizes) - 1)]
    return max(at_work) + (network.in_channels + network.classes) * math.prod(patch)


def windows_at_once(plan: Plan, dtype: torch.dtype, device: torch.device) -> int:
    """How many windows a device computes best together: one on a CPU, up to eight that fit on a GPU."""
    if device.type != "cuda":
        return 1
    one = 4 * dtype.itemsize * feature_maps(plan.network, plan.patch_size)
    return max(1, min(8, free_gpu_memory(device) // one))


def scans_at_once(plan: Plan, dtype: torch.dtype, device: torch.device) -> int:
    """How many scans are computed best side by side: on a CPU with small windows several, with fewer threads each."""
    is_small = dtype.itemsize * feature_maps(plan.network, plan.patch_size) <= SMALL_MAPS
    return min(torch.get_num_threads(), MOST_AT_ONCE) if device.type == "cpu" and is_small else 1


def plan_chunks(work: Work, limit: int | None) -> Chunking:
    """The quickest way to segment a scan that stays below a limit.

    Raises:
        InputError: there is none; says what is needed and for what. Or the scan on the model's grid alone is more than
            the machine has.
    """
    _require_machine(work)
    if limit is None:
        return Chunking()
    used = resident_bytes()
    ways = [Chunking(voxels, keep) for keep in (True, False) for voxels in CHUNKS]
    for way in ways:
        parts = work.parts(way)
        if used + max(parts.values()) <= limit:
            told = _told(used, parts), limit / GIB, way.voxels, "kept" if way.keep_heap else "given back"
            logger.info("Memory: %s of %.2f GiB, %d voxels at a time, freed memory is %s", *told)
            return way
    parts = work.parts(ways[-1])
    raise InputError(
        f"{work.scan.source} needs {_told(used, parts)}, but --max-memory allows {limit / GIB:.2f} GiB. "
        "Allow more, or take a model with a smaller patch or fewer classes."
    )


def _require_machine(work: Work) -> None:
    """Refuse a scan whose voxel size, perhaps of another unit, makes a grid beyond all measure of it."""
    needed, there = work.volume_bytes / GIB, machine_memory_gb()
    if needed > there:
        spacings = work.scan.geometry.spacing_mm, work.card.plan.spacing_mm
        sizes, wanted = (" x ".join(f"{mm:.4g}" for mm in spacing) for spacing in spacings)
        raise InputError(
            f"{work.scan.source} has voxels of {sizes} mm and the model some of {wanted} mm: that makes "
            f"{' x '.join(map(str, work.grid))} of them, {needed:,.0f} GiB, where this machine has {there:,.0f}. "
            "Look whether the scan's voxel size is in millimetres."
        )


def _told(used: int, parts: dict[str, int]) -> str:
    """A plan in words."""
    most = max(parts, key=parts.__getitem__)
    known, more = used / GIB, parts[most] / GIB
    return f"{known + more:.2f} GiB ({known:.2f} for the program, the model and the scan, {more:.2f} for {most})"


def require_room(needed: int, limit: int, source: str) -> None:
    """Refuse to read a scan that by itself is above the limit.

    Args:
        needed: bytes of the scan.
        limit: bytes the process may have.
        source: the scan, for messages.

    Raises:
        InputError: it is.
    """
    used = resident_bytes()
    if used + needed > limit:
        raise InputError(
            f"{source} takes {needed / GIB:.2f} GiB beside {used / GIB:.2f} GiB for the program and the model, "
            f"but --max-memory allows {limit / GIB:.2f} GiB. Allow more."
        )


def parse_size(text: str) -> int:
    """Bytes in a size such as 4G, 512M, 1.5GiB or 2000000000.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if not found or not 0 < float(found[1]) < 2**40:
        raise UsageError(f"{text!r} is not an amount of memory. Write for example 4G or 512M.")
    return int(float(found[1]) * UNITS[found[2]])


def resident_bytes() -> int:
    """Bytes of memory the process has now; where the system does not say, the most it has had."""
    return _status("VmRSS:") or peak_memory_bytes()


def peak_memory_bytes() -> int:
    """The largest resident size this process has had, in bytes."""
    # `ru_maxrss` begins with the size of the process that started this one: it is asked where there is no other.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM:") or (peak if sys.platform == "darwin" else peak * 1024)  # kilobytes on Linux


def _status(key: str) -> int:
    """What Linux says of this process in a line such as "VmHWM: 12 kB", in bytes; 0 where nothing is said."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8", errors="replace").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)
