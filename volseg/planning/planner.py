"""From a fingerprint to a plan, each choice with its reason.

The baseline are nnU-Net v2's rules (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z). World triples are in the
order R, A, S; all others in network order (D, H, W), D being the through-plane axis.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import yaml

from volseg.config import Channel, Label, NetworkConfig, Plan, PlanChoices, Triple, checked, read_yaml
from volseg.data.dataset import DataSet
from volseg.errors import ConfigError
from volseg.files import write_text
from volseg.planning.fingerprint import ChannelFingerprint, Fingerprint
from volseg.planning.topology import Topology, feature_map_size, plan_topology

Spacing = tuple[float, float, float]
Axis = Literal[0, 1, 2]
T = TypeVar("T")

ANISOTROPIC = 3.0
# nnU-Net's reference: this many values in the feature maps of one patch, twice over, fill 8 GB in training.
MAP_VALUES_PER_GB = 70e6
# A step of two such patches takes a few cores a second or two.
CPU_MEMORY_GB = 0.5
INITIAL_PATCH_VOXELS = 256**3
LARGEST_WIDTH = 320
PASSES = 1000
STEPS = (2_000, 100_000)
ONE_SIDED = 0.1
SET = "set by the configuration"


def make_plan(
    dataset: DataSet, fingerprint: Fingerprint, choices: PlanChoices, *, accelerated: bool, memory_gb: float = 8.0
) -> tuple[Plan, dict[str, str]]:
    """Decide everything about a model before training.

    Args:
        dataset: names and labels.
        fingerprint: of the training cases.
        choices: what the user has fixed; the rest is derived.
        accelerated: whether training runs on a GPU.
        memory_gb: of the GPU that training may use; ignored without one.

    Returns:
        The plan, and a one-line reason per value, keyed as in the plan ("patch_size", "network.features").

    Raises:
        ConfigError: choices that do not fit each other or the data.
    """
    reasons: dict[str, str] = {}

    def decide(key: str, choice: T | None, derived: tuple[T, str]) -> T:
        value, reasons[key] = derived if choice is None else (choice, SET)
        return value

    target, why_spacing = _target_spacing(fingerprint)
    # The largest spacing; a tie goes to the axis nearest to S, then A.
    through_plane: Axis = max((0, 1, 2), key=lambda axis: (target[axis], axis))
    order = (through_plane, *(axis for axis in range(3) if axis != through_plane))
    reasons["through_plane"] = f"{'RAS'[through_plane]} has the largest spacing, a tie going to S, then A"
    spacing = decide("spacing_mm", choices.spacing_mm, (_picked(target, order), why_spacing))
    median = _median_shape(fingerprint, spacing, order)
    memory = memory_gb if accelerated else CPU_MEMORY_GB
    build = _builder(choices, len(dataset.channels), len(dataset.labels) + 1, 32 if accelerated else 16)
    patch = choices.patch_size or _fit_patch(spacing, median, build, memory * MAP_VALUES_PER_GB)
    reasons["patch_size"] = (
        SET if choices.patch_size else f"holds or tiles the median scan {_x(median)} within {memory:g} GB"
    )
    network = build(plan_topology(spacing, patch))
    _check_patch(patch, network)
    _explain_network(network, choices, spacing, accelerated, reasons)
    cases = len(fingerprint.cases)
    voxels = math.prod(median) * cases
    batch_size = decide("batch_size", choices.batch_size, _batch_size(network, patch, memory, voxels, accelerated))
    steps = int(np.clip(round(PASSES * cases / batch_size), *STEPS))
    reasons["steps"] = f"{PASSES} passes over {cases} cases, within {STEPS[0]} and {STEPS[1]}"
    channels, reasons["channels"] = _channels(fingerprint, choices)
    reasons["labels"] = "with the volumes they have in the training references"
    plan = Plan(
        dataset=dataset.name,
        channels=channels,
        labels=tuple(
            Label(name=name, value=value, volume_ml_range=_readable(fingerprint.volume_ml_range(name)))
            for name, value in dataset.labels.items()
        ),
        through_plane=through_plane,
        spacing_mm=spacing,
        patch_size=patch,
        batch_size=batch_size,
        mirror_axes=decide("mirror_axes", choices.mirror_axes, _mirror_axes(fingerprint, order)),
        steps=steps,
        network=network,
    )
    return plan, reasons


def network_of_choices(choices: PlanChoices) -> tuple[NetworkConfig, Triple]:
    """The network and patch size (D, H, W) that a configuration fixes without any data: one channel, two classes.

    Raises:
        ConfigError: patch_size or spacing_mm is not set, or the choices do not fit each other.
    """
    if choices.patch_size is None or choices.spacing_mm is None:
        raise ConfigError(
            "plan.patch_size and plan.spacing_mm have to be set to say which network it is; one is missing."
        )
    network = _builder(choices, 1, 2, 32)(plan_topology(choices.spacing_mm, choices.patch_size))
    _check_patch(choices.patch_size, network)
    return network, choices.patch_size


def write_plan(plan: Plan, reasons: dict[str, str], path: Path) -> None:
    """Write a plan as YAML, the reason for a value as a comment above it; `read_plan` takes it back."""
    lines = [
        f"# The plan of a model for {' '.join(plan.dataset.split())}. A comment is the reason for the value below it."
    ]
    document = plan.model_dump(mode="json", exclude_none=True)
    network = document.pop("network")
    for key, value in document.items():
        lines += _yaml_lines(key, value, reasons.get(key))
    lines += ["network:"]
    for key, value in network.items():
        lines += [f"  {line}" for line in _yaml_lines(key, value, reasons.get(f"network.{key}"))]
    write_text(path, "\n".join(lines) + "\n")


def read_plan(path: Path) -> Plan:
    """Read a plan from YAML.

    Raises:
        ConfigError: not readable, or not a plan that holds together.
    """
    return checked(Plan, read_yaml(path), str(path))


def _target_spacing(fingerprint: Fingerprint) -> tuple[Spacing, str]:
    """Target spacing along R, A, S."""
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    sizes = np.median([case.shape for case in fingerprint.cases], axis=0)
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    reason = "median of the scans, per axis"
    thick = target[worst] > ANISOTROPIC * target[others].max()
    few = sizes[worst] * ANISOTROPIC < sizes[others].min()
    if thick and few:
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
        reason += f"; {'RAS'[worst]} is anisotropic and takes the 10th percentile, so that finer scans lose little"
    return (round(float(target[0]), 5), round(float(target[1]), 5), round(float(target[2]), 5)), reason


def _median_shape(fingerprint: Fingerprint, spacing: Spacing, order: tuple[int, ...]) -> Triple:
    """Median voxel counts of the scans at the target spacing."""
    extents = np.array([np.multiply(case.shape, case.spacing_mm) for case in fingerprint.cases])[:, list(order)]
    median = np.median(np.maximum(np.round(extents / spacing), 1), axis=0)
    return int(median[0]), int(median[1]), int(median[2])


def _builder(choices: PlanChoices, channels: int, classes: int, width: int) -> Callable[[Topology], NetworkConfig]:
    """What makes a network of a topology: features double from `width`, the user's choices go first."""
    chosen = choices.model_dump(
        include={"block", "mid", "encoder", "norm", "activation", "deep_supervision"}, exclude_none=True
    )

    def build(topology: Topology) -> NetworkConfig:
        stages = len(topology.strides)
        features = choices.features or tuple(min(width * 2**stage, LARGEST_WIDTH) for stage in range(stages))
        if len(features) > stages:
            raise ConfigError(
                f"plan.features has {len(features)} stages, but the patch can only be halved into {stages}."
            )
        topology, stages = topology.first(len(features)), len(features)
        residual = choices.encoder == "residual"
        # nnU-Net's: a plain stage has 2 convolutions; residual stages grow deeper, with a light decoder.
        encoder_blocks = (1, 3, 4, *(6,) * stages)[:stages] if residual else (2,) * stages
        decoder_blocks = (1 if residual else 2,) * (stages - 1)
        if choices.blocks_per_stage:
            encoder_blocks, decoder_blocks = (
                (choices.blocks_per_stage,) * stages,
                (choices.blocks_per_stage,) * (stages - 1),
            )
        return NetworkConfig(
            in_channels=channels,
            classes=classes,
            features=features,
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks,
            kernels=topology.kernels,
            strides=topology.strides,
            **chosen,
        )

    return build


def _fit_patch(spacing: Spacing, median: Triple, build: Callable[[Topology], NetworkConfig], budget: float) -> Triple:
    """The largest patch of the median scan's proportions that the budget of feature map values allows."""
    scale = (INITIAL_PATCH_VOXELS * math.prod(spacing)) ** (1 / 3)
    patch = [min(round(scale / one), edge) for one, edge in zip(spacing, median, strict=True)]
    while True:
        topology = plan_topology(spacing, _triple(patch))
        divisor = build(topology).divisor
        patch = [math.ceil(edge / one) * one for edge, one in zip(patch, divisor, strict=True)]
        if feature_map_size(build(topology), _triple(patch)) <= budget:
            return _triple(patch)
        axis = max((2, 1, 0), key=lambda one: patch[one] / median[one])
        # The step is what the shorter patch has to be a multiple of, which may be less than before.
        shorter = list(patch)
        shorter[axis] -= divisor[axis]
        patch[axis] -= build(plan_topology(spacing, _triple(shorter))).divisor[axis]


def _check_patch(patch: Triple, network: NetworkConfig) -> None:
    """Refuse a chosen patch that does not fit the strides."""
    fitting = _triple([math.ceil(edge / one) * one for edge, one in zip(patch, network.divisor, strict=True)])
    if patch != fitting:
        raise ConfigError(
            f"plan.patch_size {_x(patch)} is not a multiple of the network's strides {_x(network.divisor)}; "
            f"{_x(fitting)} would be."
        )


def _explain_network(
    network: NetworkConfig, choices: PlanChoices, spacing: Spacing, accelerated: bool, reasons: dict[str, str]
) -> None:
    """Add a reason for each value of the network that was derived or set."""
    anisotropy = max(spacing) / min(spacing)
    plain = "plain 3-D convolutions"
    if anisotropy > ANISOTROPIC:
        plain += f"; at an anisotropy of {anisotropy:.1f} conv2plus1d costs less, see volseg profile"
    reasons["network.block"] = plain
    if not choices.features:
        reasons["network.features"] = (
            f"doubling from {network.features[0]}, which suits a {'GPU' if accelerated else 'CPU'}"
        )
    reasons["network.kernels"] = "1 along an axis until its spacing is within twice the smallest, then 3"
    reasons["network.strides"] = "axes within twice the smallest spacing are halved while 4 voxels remain"
    for key in set(choices.model_fields_set) & set(NetworkConfig.model_fields):
        if getattr(choices, key) is not None:
            reasons[f"network.{key}"] = SET
    if choices.blocks_per_stage:
        reasons["network.encoder_blocks"] = reasons["network.decoder_blocks"] = SET


def _batch_size(
    network: NetworkConfig, patch: Triple, memory_gb: float, voxels: int, accelerated: bool
) -> tuple[int, str]:
    """How many patches make a step; `voxels` are those of all cases."""
    if not accelerated:
        return 2, "the smallest that is not one: a CPU gains nothing from more"
    fitting = round(2 * memory_gb * MAP_VALUES_PER_GB / feature_map_size(network, patch))
    varied = round(0.05 * voxels / math.prod(patch))
    if varied < fitting:
        return max(varied, 2), "a step sees at most 5 % of all voxels"
    return max(fitting, 2), f"what {memory_gb:g} GB hold"


def _channels(fingerprint: Fingerprint, choices: PlanChoices) -> tuple[tuple[Channel, ...], str]:
    """The channels with their normalisation."""
    reason = (
        SET if choices.normalisation else "ct where the channel is named CT, else each scan by its mean and deviation"
    )
    return tuple(_channel(one, choices) for one in fingerprint.channels), reason


def _channel(channel: ChannelFingerprint, choices: PlanChoices) -> Channel:
    normalisation = choices.normalisation or ("ct" if channel.name.lower() == "ct" else "zscore")
    mean_range = _readable(channel.mean_range)
    if normalisation != "ct":
        return Channel(name=channel.name, normalisation=normalisation, mean_range=mean_range)
    mean, std = _readable((channel.mean, channel.std))
    return Channel(
        name=channel.name,
        normalisation="ct",
        clip=_readable(channel.percentiles),
        mean=mean,
        std=std,
        mean_range=mean_range,
    )


def _mirror_axes(fingerprint: Fingerprint, order: tuple[int, ...]) -> tuple[tuple[Axis, ...], str]:
    """Network axes along which no label keeps to one side of the others: there a mirror image is possible.

    A label keeps to one side when its mean offset exceeds a tenth of the foreground's extent and twice the offset's
    deviation over the cases.
    """
    axes: tuple[Axis, ...] = (0, 1, 2)
    one_sided: dict[int, str] = {}
    for name in fingerprint.cases[0].volumes_ml:
        offsets = np.array([case.offsets[name] for case in fingerprint.cases if name in case.offsets])
        if len(offsets):
            mean, std = np.abs(offsets.mean(axis=0)), offsets.std(axis=0)
            for axis in axes:
                world = order[axis]
                if mean[world] > max(ONE_SIDED, 2 * std[world]):
                    one_sided.setdefault(axis, f"along {'RAS'[world]} {name} keeps to one side of the other labels")
    possible = tuple(axis for axis in axes if axis not in one_sided)
    return possible, "; ".join(one_sided.values()) or "no label keeps to one side of the others"


def _yaml_lines(key: str, value: object, reason: str | None) -> list[str]:
    """One entry of the plan's YAML, with its reason above it."""
    text = yaml.safe_dump({key: value}, default_flow_style=None, sort_keys=False, allow_unicode=True, width=110)
    return [*([f"# {reason}"] if reason else []), *text.rstrip().split("\n")]


def _picked(values: Spacing, order: tuple[int, ...]) -> Spacing:
    return values[order[0]], values[order[1]], values[order[2]]


def _triple(values: list[int]) -> Triple:
    return values[0], values[1], values[2]


def _readable(values: tuple[float, float]) -> tuple[float, float]:
    """Rounded to 6 significant digits."""
    return float(f"{values[0]:.6g}"), float(f"{values[1]:.6g}")


def _x(values: Triple) -> str:
    return " x ".join(str(value) for value in values)
