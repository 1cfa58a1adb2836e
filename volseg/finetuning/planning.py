"""The plan of a run that starts from a model.

What the weights were trained with is the model's: orientation, axes, spacing, resampling, crop, normalisation, patch
size and network. What describes the dataset is planned for the dataset: labels, batch size, flips and steps.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from volseg.config import Channel, Label, NetworkConfig, Plan, PlanChoices, Sides, checked
from volseg.data.cases.dataset import Dataset
from volseg.data.io.checks import LARGEST_LABEL
from volseg.errors import UsageError
from volseg.finetuning.fit_of_data import channel_of, spacing_note
from volseg.finetuning.fixed import check_choices
from volseg.finetuning.source import Source
from volseg.finetuning.start import Match, Start, match_channels, match_labels
from volseg.finetuning.weights import require_matchable
from volseg.planning.channels import plan_channels
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.planner import (
    MAP_VALUES_PER_GB,
    SET,
    median_shape,
    plan_batch_size,
    plan_labels,
    plan_steps,
    planned_memory,
)
from volseg.planning.ranges import plan_scan_ranges
from volseg.planning.sides import plan_mirroring
from volseg.planning.slices import slice_batch
from volseg.text import first_few

logger = logging.getLogger(__name__)

# What a plan takes from the model as it is.
KEPT = (
    "regions", "orientation", "axes", "dimensions", "crop", "image_resampling", "label_resampling",
    "logits_resampling", "spacing_mm", "patch_size",
)  # fmt: skip


def plan_from(
    source: Source,
    dataset: Dataset,
    fingerprint: Fingerprint,
    choices: PlanChoices,
    *,
    accelerated: bool,
    memory_gb: float,
    label_map: Mapping[str, str],
    keep_labels: bool,
) -> tuple[Plan, dict[str, str], Start]:
    """The plan of a run that starts from a model.

    Args:
        source: the model.
        dataset: its name, channels and labels.
        fingerprint: of the cases.
        choices: what the user has fixed; it may not contradict the model.
        accelerated: whether training runs on a GPU.
        memory_gb: memory that training may use.
        label_map: the name of a label in the dataset: that in the model, where they differ.
        keep_labels: whether labels that the dataset lacks are kept.

    Returns:
        The plan, a one-line reason per value as from `make_plan`, and what is taken from the model.

    Raises:
        UsageError: choices or labels that contradict the model, or labels that cannot be kept.
        ConfigError: see `require_matchable`.
    """
    model = source.card.plan
    reasons = {key: f"as in {source.name}" for key in KEPT if key != "regions"}
    reasons |= {f"network.{key}": f"as in {source.name}" for key in ("architecture", "encoder_blocks")}
    _check_kind(source, dataset, keep_labels)
    labels = match_labels(list(dataset.labels.values), [one.name for one in model.labels], label_map, keep_labels)
    channels = match_channels(dataset.channels, [one.name for one in model.channels])
    planned, notes, free = _channels(model, fingerprint, choices, channels)
    check_choices(choices, model, channels, free)
    if keep_labels:
        _check_inputs(source, channels, free)
    crop, why_crop = _crop(model, fingerprint)
    if why_crop:
        reasons["crop"] = why_crop
        notes.append(f"crop planned anew ({crop}): {why_crop}")
    all_labels = (*plan_labels(dataset, fingerprint)[0], *_kept_labels(model, dataset, labels))
    classes = len(all_labels) + (not model.regions)
    network = model.network.model_copy(update={"in_channels": len(planned), "classes": classes})
    mirror_axes, sides, reasons["mirror_axes"] = _flips(model, dataset, fingerprint, choices, labels, all_labels)
    batch, reasons["batch_size"] = _batch(
        model, network, fingerprint, accelerated, planned_memory(choices, memory_gb, accelerated)
    )
    if choices.batch_size is not None:
        batch, reasons["batch_size"] = choices.batch_size, SET
    steps, reasons["steps"] = plan_steps(len(fingerprint.cases), batch)
    scan_ranges, reasons["scan_ranges"] = plan_scan_ranges(fingerprint, planned)
    document = {
        **{key: getattr(model, key) for key in KEPT},
        "crop": crop,
        "dataset": dataset.name,
        "channels": planned,
        "labels": all_labels,
        "ignore": dataset.labels.ignore,
        "batch_size": batch,
        "mirror_axes": mirror_axes,
        "sides": sides,
        "steps": steps,
        "scan_ranges": scan_ranges,
        "network": network,
    }
    notes.append(spacing_note(fingerprint, model))
    member = source.member if source.card.members > 1 else None
    start = Start(
        name=source.name, sha256=source.sha256, member=member, labels=labels, channels=channels, notes=tuple(notes),
        earlier=source.ancestry(),
    )  # fmt: skip
    plan = checked(Plan, document, "The plan")
    require_matchable(model, plan, start)
    return plan, reasons, start


def _check_kind(source: Source, dataset: Dataset, keep_labels: bool) -> None:
    """Reject a dataset whose labels are of another kind than the model's."""
    kinds = {True: "regions, which may overlap", False: "plain labels"}
    of_model, of_data = source.card.plan.regions, bool(dataset.labels.parts)
    if of_model != of_data:
        raise UsageError(
            f"The labels of {source.name} are {kinds[of_model]}, but those of {dataset.name} are {kinds[of_data]}. "
            "Start from a model of the same kind, or train without --from."
        )
    if keep_labels and of_model:
        raise UsageError(f"--keep-labels is for plain labels, but those of {source.name} are regions. Leave it out.")


def _check_inputs(source: Source, channels: Match, free: Sequence[str]) -> None:
    """Check that the model can segment the dataset, as `--keep-labels` needs it.

    Raises:
        UsageError: a channel is missing, or not normalised as in the model's training.
    """
    if channels.dropped:
        raise UsageError(
            f"--keep-labels lets {source.name} segment the scans, but they lack its channel "
            f"{first_few(channels.dropped)}. Leave out --keep-labels."
        )
    if unfit := [name for name in channels.copied if name in free]:
        raise UsageError(
            f"--keep-labels lets {source.name} segment the scans, but the intensities of channel {first_few(unfit)} do "
            "not fit its normalisation. Leave out --keep-labels."
        )


def _crop(model: Plan, fingerprint: Fingerprint) -> tuple[str, str]:
    """The crop, and why it is not the model's; "" if it is."""
    cut = [case.name for case in fingerprint.cases if case.cut_ml]
    if model.crop == "nonzero" and cut:
        return "none", f"{len(cut)} cases have labels where all channels are 0"
    return model.crop, ""


def _batch(
    model: Plan, network: NetworkConfig, fingerprint: Fingerprint, accelerated: bool, memory_gb: float
) -> tuple[int, str]:
    """The number of patches in a batch for the device, and why."""
    median = median_shape(fingerprint, model.spacing_mm, model.axes, model.crop == "nonzero")
    voxels = math.prod(median) * len(fingerprint.cases)
    if model.dimensions == 2:
        return slice_batch(network, model.patch_size, memory_gb * MAP_VALUES_PER_GB[network.encoder], voxels)
    return plan_batch_size(network, model.patch_size, memory_gb, voxels, accelerated)


def _channels(
    model: Plan, fingerprint: Fingerprint, choices: PlanChoices, match: Match
) -> tuple[tuple[Channel, ...], list[str], list[str]]:
    """The channels of the plan, lines for the table, and the names of those that are normalised anew."""
    # A dataset of one channel may call it otherwise than the user's configuration.
    anew, _ = plan_channels(fingerprint, choices)
    known = {channel.name: channel for channel in model.channels}
    planned, notes, free = [], [], []
    for index, (new, (name, old)) in enumerate(zip(anew, match.taken.items(), strict=True)):
        channel, why = (new, "it is new") if old is None else channel_of(known[old], fingerprint, index, new)
        planned.append(channel)
        if why:
            free.append(name)
            notes.append(f"normalisation of {name} planned anew ({channel.normalisation}): {why}")
            if old is not None:
                logger.warning(
                    "The intensities of channel %s do not fit the model: %s. Its normalisation is planned anew (%s).",
                    name, why, channel.normalisation,
                )  # fmt: skip
        else:
            notes.append(f"normalisation of {name} kept ({channel.normalisation})")
    return tuple(planned), notes, free


def _kept_labels(model: Plan, dataset: Dataset, match: Match) -> list[Label]:
    """The labels of the model that are kept, with their values, or with others where the dataset has those."""
    taken = set(dataset.labels.known)
    kept = []
    for label in model.labels:
        if label.name not in match.kept:
            continue
        value = label.value if label.value not in taken else max(taken | {one.value for one in model.labels}) + 1
        if value > LARGEST_LABEL:
            raise UsageError(f"There is no value left for {label.name}. Give the labels of the dataset lower values.")
        taken.add(value)
        kept.append(label.model_copy(update={"value": value}))
    return kept


def _flips(
    model: Plan,
    dataset: Dataset,
    fingerprint: Fingerprint,
    choices: PlanChoices,
    match: Match,
    labels: Sequence[Label],
) -> tuple[tuple[Any, ...], Sides | None, str]:
    """Along which axes patches may be flipped, which labels a flip exchanges, and why."""
    regions, values = bool(dataset.labels.parts), dataset.labels.values
    stored = model.orientation == "stored"
    order = (0, 1, 2) if stored else model.axes
    found = plan_mirroring(fingerprint, values, regions, order, choices)
    axes, sides, why = found.axes, found.sides, found.why_axes
    if choices.mirror_axes is not None:
        return axes, None if stored else sides, why
    if lone := _without_partner(model, match):
        # Which is left and which is right the dataset may not show, where one of them is its only label.
        axes = tuple(axis for axis in axes if model.sides is None or axis != model.sides.axis)
        why += f"; not from left to right, where {first_few(lone)} of the model has lost its partner"
    if stored:
        # Its axes have no fixed direction in the world: all may be flipped, or none.
        axes, sides = (model.mirror_axes, None) if len(axes) == 3 and sides is None else ((), None)
    if match.kept:
        axes = tuple(axis for axis in axes if axis in model.mirror_axes)
        sides = _joined_sides(model, match, labels, sides)
        why += "; only along the model's axes, whose labels are kept"
    if model.dimensions == 2:
        axes = tuple(axis for axis in axes if axis != 0)
    return axes, sides, why


def _without_partner(model: Plan, match: Match) -> list[str]:
    """Labels of the model that are still there, and whose partner on the other side is not."""
    names = {label.value: label.name for label in model.labels}
    there = {*match.copied.values(), *match.kept}
    pairs = model.sides.pairs if model.sides else ()
    halves = [[names[value] for value in pair if names[value] in there] for pair in pairs]
    return [left[0] for left in halves if len(left) == 1]


def _joined_sides(model: Plan, match: Match, labels: Sequence[Label], found: Sides | None) -> Sides | None:
    """The pairs of the dataset's labels and those of the model's that are still there."""
    if model.sides is None:
        return found
    values = {label.name: label.value for label in labels}
    now = {old: values[name] for name, old in match.copied.items()} | {name: values[name] for name in match.kept}
    names = {label.value: label.name for label in model.labels}
    pairs = list(found.pairs if found else ())
    used = {value for pair in pairs for value in pair}
    for one, other in model.sides.pairs:
        both = [now.get(names[one]), now.get(names[other])]
        if both[0] is not None and both[1] is not None and not used & {*both}:
            pairs.append((both[0], both[1]))
    return Sides(axis=model.sides.axis, pairs=tuple(pairs)) if pairs else None
