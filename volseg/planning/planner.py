"""From a fingerprint to a plan, each choice with its reason.

The baseline is nnU-Net v2's rules (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z). World triples are in the order
R, A, S; all others in network order (D, H, W), where D is the through-plane axis.
"""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from volseg.config import Block, Label, NetworkConfig, Plan, PlanChoices, Triple, checked, read_yaml
from volseg.data.cases.dataset import Dataset
from volseg.errors import ConfigError
from volseg.planning.channels import outward, plan_channels, plan_crop
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.ranges import plan_scan_ranges
from volseg.planning.sides import plan_mirroring
from volseg.planning.slices import (
    choose_dimensions,
    slice_batch,
    slice_limits,
    slice_reasons,
    slice_spacing,
    through_plane_axis,
)
from volseg.planning.topology import (
    Spacing,
    as_triple,
    feature_map_size,
    fit_patch,
    little_seen,
    network_config,
    padded,
    sizes_text,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANISOTROPIC = 3.0
# nnU-Net's reference: training fits 8 GB when the feature maps of each of 2 patches have 560 million values, and 680
# million with a residual encoder.
MAP_VALUES_PER_GB = {"plain": 560e6 / 8, "residual": 680e6 / 8}
# Limited by the speed of a CPU, not by its memory: a step with two such patches takes a few cores a second or two.
CPU_MEMORY_GB = 0.5
# nnU-Net's default, so that the same plan can be trained on most GPUs.
GPU_MEMORY_GB = 8.0
EPOCHS = 1000
STEPS = (2_000, 100_000)
SET = "set by the configuration"


def make_plan(
    dataset: Dataset,
    fingerprint: Fingerprint,
    choices: PlanChoices,
    *,
    accelerated: bool,
    memory_gb: float = GPU_MEMORY_GB,
) -> tuple[Plan, dict[str, str]]:
    """Choose the whole plan of a model.

    Args:
        dataset: its name, channels and labels.
        fingerprint: of the training cases.
        choices: what the user has fixed; the rest is derived.
        accelerated: whether training runs on a GPU.
        memory_gb: memory that training may use.

    Returns:
        The plan, and a one-line reason per value, keyed as in the plan ("patch_size", "network.features").

    Raises:
        ConfigError: choices that do not fit each other or the data.
    """
    reasons = _Reasons()
    grid = _plan_grid(fingerprint, choices, reasons)
    memory = planned_memory(choices, memory_gb, accelerated)
    network, patch = _plan_network(dataset, grid, choices, accelerated, memory, reasons)
    cases = len(fingerprint.cases)
    voxels = math.prod(grid.median) * cases
    mirroring = plan_mirroring(fingerprint, dataset.labels.values, bool(dataset.labels.parts), grid.order, choices)
    mirror_axes = reasons.decide("mirror_axes", None, (mirroring.axes, mirroring.why_axes))
    if grid.flat:
        batch = slice_batch(network, patch, _map_values(choices, memory), voxels)
        mirror_axes = tuple(axis for axis in mirror_axes if axis != 0)
        reasons |= slice_reasons(choices)
    else:
        batch = plan_batch_size(network, patch, memory, voxels, accelerated)
    batch_size = reasons.decide("batch_size", choices.batch_size, batch)
    channels = reasons.decide("channels", None, plan_channels(fingerprint, choices))
    document = {
        "dataset": dataset.name,
        "channels": channels,
        "labels": reasons.decide("labels", None, plan_labels(dataset, fingerprint)),
        "regions": bool(dataset.labels.parts),
        "ignore": dataset.labels.ignore,
        "axes": grid.order,
        "dimensions": 2 if grid.flat else 3,
        "crop": grid.crop,
        **_resampling(choices, reasons),
        "spacing_mm": grid.spacing,
        "patch_size": patch,
        "batch_size": batch_size,
        "mirror_axes": mirror_axes,
        "sides": mirroring.sides,
        "steps": reasons.decide("steps", None, plan_steps(cases, batch_size)),
        "scan_ranges": reasons.decide("scan_ranges", None, plan_scan_ranges(fingerprint, channels)),
        "network": network,
    }
    if mirroring.sides:
        reasons["sides"] = mirroring.why_sides
    return checked(Plan, document, "The plan"), reasons


class _Reasons(dict[str, str]):
    """Why each value of a plan is what it is, keyed as in the plan."""

    def decide(self, key: str, choice: T | None, derived: tuple[T, str]) -> T:
        """What the user has chosen, else what was derived; keeps the reason."""
        value, self[key] = derived if choice is None else (choice, SET)
        return value


class _Grid(NamedTuple):
    """The network's grid.

    Args:
        order: the world axes that become D, H and W.
        flat: whether slices are segmented one by one.
        spacing: in mm.
        crop: of the scans.
        median: voxels of the median scan on this grid.
    """

    order: Triple
    flat: bool
    spacing: Spacing
    crop: Literal["none", "nonzero"]
    median: Triple


def _plan_grid(fingerprint: Fingerprint, choices: PlanChoices, reasons: _Reasons) -> _Grid:
    """Which axis is D, whether slices are segmented one by one, the spacing, and the crop."""
    target, why_spacing = _target_spacing(fingerprint)
    through_plane, reasons["axes"] = through_plane_axis(fingerprint, target)
    others = [axis for axis in range(3) if axis != through_plane]
    order: Triple = (through_plane, others[0], others[1])
    usual = _reordered(target, order)
    found = choose_dimensions(fingerprint, choices, choices.spacing_mm or usual, through_plane)
    flat = reasons.decide("dimensions", choices.dimensions, found) == 2
    if flat:
        usual, why_spacing = slice_spacing(fingerprint, usual, through_plane)
    spacing = reasons.decide("spacing_mm", choices.spacing_mm, (usual, why_spacing))
    crop = reasons.decide("crop", choices.crop, plan_crop(fingerprint))
    return _Grid(order, flat, spacing, crop, median_shape(fingerprint, spacing, order, crop == "nonzero"))


def _plan_network(
    dataset: Dataset, grid: _Grid, choices: PlanChoices, accelerated: bool, memory: float, reasons: _Reasons
) -> tuple[NetworkConfig, Triple]:
    """The network, and the largest patch that fits the memory."""
    values = _map_values(choices, memory)
    block, reasons["network.block"] = _block(grid.spacing, accelerated)
    build = partial(
        network_config,
        spacing_mm=grid.spacing,
        choices=choices,
        channels=len(dataset.channels),
        classes=len(dataset.labels.values) + (not dataset.labels.parts),
        width=32 if accelerated else 16,
        block="conv3d" if grid.flat else block,
    )
    seen, most = slice_limits(grid.median, values, accelerated) if grid.flat else (grid.median, values)
    patch = choices.patch_size or fit_patch(grid.spacing, seen, build, most)
    network = build(patch)
    _check_patch(patch, network)
    largest = f"the median scan has {sizes_text(grid.median)} voxels; the largest patch that fits {memory:g} GB"
    reasons["patch_size"] = SET if choices.patch_size else largest
    if little := little_seen(patch, seen, grid.spacing):
        logger.warning("%s.", little)
        reasons["patch_size"] += f". {little}"
    _explain_network(network, choices, accelerated, reasons)
    return network, patch


def _map_values(choices: PlanChoices, memory: float) -> float:
    """How many values the feature maps of a patch may have in `memory` GB."""
    return memory * MAP_VALUES_PER_GB[choices.encoder or "plain"]


def planned_memory(choices: PlanChoices, memory_gb: float, accelerated: bool) -> float:
    """The memory in GB that patch and batch are planned for: what the user has set, or what the device gives."""
    return choices.memory_gb or (memory_gb if accelerated else min(CPU_MEMORY_GB, memory_gb))


def network_of_choices(choices: PlanChoices) -> tuple[NetworkConfig, Triple]:
    """The network and patch size (D, H, W) that a configuration fixes without any data: one channel, two classes.

    Raises:
        ConfigError: patch_size or spacing_mm is not set, or the choices do not fit each other.
    """
    if choices.patch_size is None or choices.spacing_mm is None:
        raise ConfigError(
            "plan.patch_size and plan.spacing_mm determine the network, but one of them is missing; set both."
        )
    network = network_config(choices.patch_size, choices.spacing_mm, choices)
    _check_patch(choices.patch_size, network)
    return network, choices.patch_size


def read_plan(path: Path) -> Plan:
    """Read a plan from YAML.

    Raises:
        ConfigError: not readable, or not a plan that holds together.
    """
    return checked(Plan, read_yaml(path), str(path))


def _resampling(choices: PlanChoices, reasons: dict[str, str]) -> dict[str, Any]:
    """How images and labels are resampled to the network's grid."""
    order = {"nearest": 0, "linear": 1, "cubic": 3}[choices.image_resampling or "linear"]
    # Cubic through thick slices would ring; nearest is what nnU-Net does there.
    separate = "anisotropic" if order > 1 else "never"
    antialias = True if choices.antialias is None else choices.antialias
    averaged = "; averaged along axes that become coarser" if antialias else ""
    reasons["image_resampling"] = SET if choices.image_resampling else f"linear between voxels{averaged}"
    reasons["label_resampling"] = (
        SET if choices.label_resampling else "each voxel takes the label nearest to its centre"
    )
    return {
        "image_resampling": {"order": order, "separate": separate, "antialias": antialias},
        "label_resampling": choices.label_resampling or "nearest",
    }


def _target_spacing(fingerprint: Fingerprint) -> tuple[Spacing, str]:
    """Target spacing along R, A, S."""
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    sizes = np.median([case.shape for case in fingerprint.cases], axis=0)
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    reason = "median of the scans, per axis"
    thick_slices = target[worst] > ANISOTROPIC * target[others].max()
    few_slices = sizes[worst] * ANISOTROPIC < sizes[others].min()
    if thick_slices and few_slices:
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
        reason += f"; the 10th percentile along {'RAS'[worst]}, which is anisotropic, so that finer scans lose little"
    return (round(float(target[0]), 5), round(float(target[1]), 5), round(float(target[2]), 5)), reason


def median_shape(fingerprint: Fingerprint, spacing: Spacing, order: tuple[int, ...], cropped: bool) -> Triple:
    """Median voxel counts of the scans at the target spacing, or of what a crop to their nonzero region leaves."""
    shapes = [(cropped and case.nonzero_shape) or case.shape for case in fingerprint.cases]
    spacings = [case.spacing_mm for case in fingerprint.cases]
    extents = np.multiply(shapes, spacings)[:, list(order)]
    median = np.median(np.maximum(np.round(extents / spacing), 1), axis=0)
    return as_triple([int(edge) for edge in median])


def _check_patch(patch: Triple, network: NetworkConfig) -> None:
    """Reject a patch size that is not a multiple of the strides."""
    if (fitting := padded(patch, network)) != patch:
        raise ConfigError(
            f"plan.patch_size {sizes_text(patch)} is not a multiple of the network's strides "
            f"{sizes_text(network.divisor)}; {sizes_text(fitting)} is."
        )


def _block(spacing: Spacing, accelerated: bool) -> tuple[Block, str]:
    """The convolution type: on a CPU the one with the higher Dice in equal time (benchmarks/RESULTS.md)."""
    anisotropy = max(spacing) / min(spacing)
    if accelerated:
        cheaper = f"; at an anisotropy of {anisotropy:.1f} conv2plus1d costs less, see volseg profile"
        return "conv3d", "plain 3-D convolutions" + (cheaper if anisotropy > ANISOTROPIC else "")
    if anisotropy > ANISOTROPIC:
        return (
            "conv3d",
            "on a CPU in equal time Dice 0.859 against 0.858 of conv2plus1d (Task04 with slices of 3.5 mm)",
        )
    dice = "Dice 0.877 against 0.875 of conv3d (Task04_Hippocampus), and in five times as long 0.887 against 0.884"
    return "conv2plus1d", f"on a CPU in equal time {dice}"


def _explain_network(network: NetworkConfig, choices: PlanChoices, accelerated: bool, reasons: dict[str, str]) -> None:
    """Add a reason for each value of the network that was derived or set."""
    if not choices.features:
        reasons["network.features"] = (
            f"doubling from {network.features[0]}, the width for a {'GPU' if accelerated else 'CPU'}"
        )
    reasons["network.kernels"] = "1 along an axis until its spacing is within twice the smallest, then 3"
    reasons["network.strides"] = "axes within twice the smallest spacing are halved while 4 voxels remain"
    for key in set(choices.model_fields_set) & set(NetworkConfig.model_fields):
        if getattr(choices, key) is not None:
            reasons[f"network.{key}"] = SET
    blocks = "as in nnU-Net's residual encoder" if network.encoder == "residual" else "two per stage, as in nnU-Net"
    reasons["network.encoder_blocks"] = reasons["network.decoder_blocks"] = SET if choices.blocks_per_stage else blocks


def plan_batch_size(
    network: NetworkConfig, patch: Triple, memory_gb: float, voxels: int, accelerated: bool
) -> tuple[int, str]:
    """The number of patches in a batch; `voxels`: number of voxels of all cases."""
    if not accelerated:
        return 2, "the smallest above 1: a CPU gains nothing from a larger one"
    values = memory_gb * MAP_VALUES_PER_GB[network.encoder]
    fitting = round(2 * values / feature_map_size(network, patch))
    varied = round(0.05 * voxels / math.prod(patch))
    if varied < fitting:
        return max(varied, 2), "a batch has at most 5 % of all voxels"
    return max(fitting, 2), f"the largest that fits {memory_gb:g} GB"


def plan_steps(cases: int, batch_size: int) -> tuple[int, str]:
    """The number of training steps where the user gives no budget."""
    steps = round(EPOCHS * cases / batch_size)
    return min(
        max(steps, STEPS[0]), STEPS[1]
    ), f"{EPOCHS} epochs of {cases} cases, at least {STEPS[0]}, at most {STEPS[1]}"


def plan_labels(dataset: Dataset, fingerprint: Fingerprint) -> tuple[tuple[Label, ...], str]:
    """The foreground labels with their range of volumes."""
    labels = [
        Label(
            name=name,
            value=value,
            parts=dataset.labels.parts.get(name, ()),
            volume_ml_range=(found := fingerprint.volume_ml_range(name)) and outward(found),
            code=dataset.labels.codes.get(name),
        )
        for name, value in dataset.labels.values.items()
    ]
    empty = sum(not case.offsets for case in fingerprint.cases)
    reason = "volume_ml_range: smallest and largest volume in the references"
    unstated = sum(bool(case.unstated) for case in fingerprint.cases)
    if unstated:
        reason += f", without {unstated} of {len(fingerprint.cases)} cases that do not state their size in mm"
    if empty:
        reason += f"; {empty} of {len(fingerprint.cases)} cases have no foreground voxel"
    if dataset.labels.parts:
        reason += "; regions overlap, so each has its own sigmoid"
    if any(fingerprint.annotated(name) < len(fingerprint.cases) for name in dataset.labels.values):
        listed = ", ".join(f"{name} {fingerprint.annotated(name)}" for name in dataset.labels.values)
        reason += f"; partial labels, annotated of {len(fingerprint.cases)} cases: {listed}"
    if dataset.labels.ignore is not None:
        reason += f"; voxels of value {dataset.labels.ignore} are excluded from the loss, patch sampling and metrics"
    return tuple(labels), reason


def _reordered(values: Spacing, order: tuple[int, ...]) -> Spacing:
    return values[order[0]], values[order[1]], values[order[2]]
