"""Combine the models of several runs, such as the folds of a cross-validation, in one model file."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from torch import Tensor

from volseg.api.training.calibrate import pooled
from volseg.config import Channel, ComponentRule, Label, Plan, checked
from volseg.errors import InputError, UsageError
from volseg.finetuning.source import model_path
from volseg.modelfile import ModelCard, check_model_path, read_card, save_model, sha256_of_model
from volseg.networks import Ensemble, open_network
from volseg.networks.own import NetworkFactory
from volseg.planning.ranges import merge_scan_ranges
from volseg.postprocessing.choosing import Chosen, choose_rules_of_folds
from volseg.text import first_few

Part = TypeVar("Part", Channel, Label)

# Plan fields that may differ between members, because they change neither the input nor the output of the network. The
# ensemble gets the union of the members' ranges, and batch size and steps of the first.
MAY_DIFFER: Any = {
    "channels": {"__all__": {"mean_range"}},
    "labels": {"__all__": {"volume_ml_range"}},
    "batch_size": True,
    "steps": True,
    "scan_ranges": True,
}


def ensemble(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    half: bool = False,
    overwrite: bool = False,
    network: NetworkFactory | None = None,
) -> Path:
    """Combine several models in one file that averages their logits, in one pass over a scan.

    Args:
        models: at least two run folders, model files or bundled names. Their plans must be equal, except for volume and
            intensity ranges of the training cases, batch size and steps.
        output: the model file, ending in .safetensors. Its card lists the training records and scores of the members;
            with one model per fold also the out-of-fold scores: each validation case is scored with the member that was
            not trained on it, and the postprocessing is chosen on all these cases (postprocessing.json beside each
            member). Otherwise it is what all members agree on: a label keeps only its largest component if all members
            do so, and the smallest component volume is the smallest of the members'.
        half: store the weights in float16, which halves the file size; `Segmenter.load` still chooses the precision of
            the computation. float16 has 11 significant bits, more than the 8 of bfloat16.
        overwrite: replace an existing `output`.
        network: makes the network of models that were trained with one of the caller's own, as for `volseg.train`.

    Returns:
        `output`.

    Raises:
        UsageError: fewer than two models, one of them twice, `output` exists or does not end in .safetensors, or a
            weight is too large for `half`.
        InputError: a model is missing, corrupt, already an ensemble, or does not fit the first one.
        ResourceError: the disk is full or not writable.
    """
    output = Path(output)
    check_model_path(output, overwrite)
    paths = [model_path(model) for model in models]
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        found = ", ".join(map(str, models)) or "none"
        raise UsageError(f"An ensemble needs two models or more, each only once, found {found}.")
    cards = [read_card(path) for path in paths]
    for path, card in zip(paths, cards, strict=True):
        _check_fits(path, card, paths[0], cards[0])
    members = Ensemble([open_network(path, network)[1] for path in paths])
    plan = _merge_plans([card.plan for card in cards])
    are_folds = _have_own_folds(cards)
    chosen = choose_rules_of_folds(paths, plan.labels) if are_folds else None
    # Names instead of paths, which differ between machines.
    command = shlex.join(["volseg", "ensemble", *(card.name for card in cards), "--output", "MODEL"])
    records = [
        {"name": card.name, "sha256": sha256_of_model(path), **card.training}
        for path, card in zip(paths, cards, strict=True)
    ]
    document = {
        "name": f"{plan.dataset}-ensemble{len(cards)}",
        "plan": plan,
        "members": len(cards),
        "postprocessing": _common_rules(cards) if chosen is None else chosen.rules,
        "training": {
            "command": f"{command} --half" if half else command,
            "dataset": plan.dataset,
            "licence": cards[0].training.get("licence"),
            "members": records,
        },
        "scores": {"members": [card.scores for card in cards], **_out_of_fold_scores(cards, chosen)},
        "calibration": pooled(paths) if are_folds else None,
    }
    card = checked(ModelCard, document, "The ensemble", InputError)
    save_model(output, card, _to_half(members.state_dict()) if half else members.state_dict())
    return output


def _to_half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float16; integers, such as the counters of batch norm, stay as they are.

    Raises:
        UsageError: a weight is too large for float16.
    """
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    for name, tensor in halved.items():
        if tensor.isinf().any():
            raise UsageError(f"The weights {name} exceed 65504, the largest float16 value. Leave out --half.")
    return halved


def _check_fits(path: Path, card: ModelCard, first_path: Path, first: ModelCard) -> None:
    """Reject a model whose logits cannot be averaged with those of the first one."""
    if card.members > 1:
        raise InputError(f"{path} is already an ensemble of {card.members} networks. Give its member models.")
    if found := plan_differences(card, first):
        raise InputError(
            f"{path} does not fit {first_path}: {first_few(found, 3, '; ')}. "
            "Give models that were trained with the same plan, such as the folds of a dataset."
        )


def plan_differences(card: ModelCard, first: ModelCard) -> list[str]:
    """How the plan of a model differs from that of another, such as "network.norm is batch, expected instance"."""
    plans = [one.plan.model_dump(mode="json", exclude=MAY_DIFFER) for one in (card, first)]
    return list(_differences(plans[0], plans[1]))


def _differences(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """The differences of two plans, such as "network.norm is batch, expected instance"."""
    if isinstance(found, dict):
        parts: Any = [(key, found[key], expected[key]) for key in found]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        parts = [(number, *pair) for number, pair in enumerate(zip(found, expected, strict=True))]
    else:
        if found != expected:
            yield f"{place} is {found}, expected {expected}"
        return
    for name, one, other in parts:
        yield from _differences(one, other, f"{place}.{name}" if place else name)


def _merge_plans(plans: Sequence[Plan]) -> Plan:
    """The plan of the ensemble: the plan of the first member, with the union of all ranges."""
    channels = tuple(_merge_range(same, "mean_range") for same in zip(*(plan.channels for plan in plans), strict=True))
    labels = tuple(_merge_range(same, "volume_ml_range") for same in zip(*(plan.labels for plan in plans), strict=True))
    scans = merge_scan_ranges([plan.scan_ranges for plan in plans])
    return plans[0].model_copy(update={"channels": channels, "labels": labels, "scan_ranges": scans})


def _out_of_fold_scores(cards: Sequence[ModelCard], chosen: Chosen | None) -> dict[str, Any]:
    """Mean Dice per label over the validation cases of all folds, and the mean over labels.

    Each case is scored with the member that was not trained on it, after the rules chosen for the ensemble; without
    such rules after those of the member. Empty unless all have scores and folds of their own.
    """
    # A model from someone else may have scores of other labels than its own.
    scored = all(card.scores.get("labels", {}).keys() == cards[0].scores.get("labels", {}).keys() for card in cards)
    if not _have_own_folds(cards) or not scored:
        return {}
    labels = {}
    for label in cards[0].scores.get("labels", {}):
        found = [card.scores["labels"][label] for card in cards]
        rows = [row for row in found if row["cases"] and row["dice"] is not None]
        if chosen and label in chosen.scores:
            if chosen.scores[label]["cases"]:
                labels[label] = chosen.scores[label]
        elif cases := sum(row["cases"] for row in rows):
            labels[label] = {"dice": sum(row["dice"] * row["cases"] for row in rows) / cases, "cases": cases}
    if not labels:
        return {}
    return {"out_of_fold": {"labels": labels, "foreground_dice": fmean(row["dice"] for row in labels.values())}}


def _have_own_folds(cards: Sequence[ModelCard]) -> bool:
    """Whether each model was trained on a fold of its own."""
    folds = [card.training.get("fold") for card in cards]
    return all(isinstance(fold, int) for fold in folds) and len(set(folds)) == len(cards)


def _common_rules(cards: Sequence[ModelCard]) -> dict[str, ComponentRule]:
    """The postprocessing rules of the ensemble: they keep every component that the rule of a member keeps.

    They have no Dice before and after, because no cases were scored with them.
    """
    rules = {}
    for label in cards[0].plan.labels:
        members = [card.postprocessing.get(label.name, ComponentRule()) for card in cards]
        rules[label.name] = ComponentRule(
            smallest_ml=min(rule.smallest_ml for rule in members),
            largest_only=all(rule.largest_only for rule in members),
        )
    return {name: rule for name, rule in rules.items() if rule != ComponentRule()}


def _merge_range(parts: Sequence[Part], name: str) -> Part:
    """The first of `parts`, with the union of their ranges called `name`; None if one of the ranges is unknown."""
    ranges = [getattr(part, name) for part in parts]
    whole = None if None in ranges else (min(low for low, _ in ranges), max(high for _, high in ranges))
    return parts[0].model_copy(update={name: whole})
