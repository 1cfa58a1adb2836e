"""The models of several runs, such as the folds of a cross-validation, as one model file."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from torch import Tensor

from volseg.config import Channel, ComponentRule, Label, Plan
from volseg.errors import InputError, UsageError
from volseg.files import sha256_of
from volseg.modelfile import ModelCard, check_model_path, find_model, load_model, read_card, save_model
from volseg.networks import Ensemble, load_network
from volseg.training.run_folder import is_run

Part = TypeVar("Part", Channel, Label)

# What a plan takes from its training cases without a change to what the network sees or answers; the members' are
# put together.
RANGES: Any = {
    "channels": {"__all__": {"mean_range"}},
    "labels": {"__all__": {"volume_ml_range"}},
    "batch_size": True,
    "steps": True,
}


def ensemble(models: Sequence[str | Path], output: str | Path, *, half: bool = False, overwrite: bool = False) -> Path:
    """Put several models into one file, which answers with the mean of their logits, in one pass over a scan.

    Args:
        models: at least two: run folders, model files or bundled names, whose plans agree but for the ranges of
            their training cases.
        output: the model file, ending in .safetensors. Its card lists the members' training records and scores, and
            of one model per fold what they reached together on the cases that each was not trained on. Its
            postprocessing is what they agree on: of a label only the largest component where all say so, and the
            smallest of their volumes.
        half: store the weights in float16, in half the bytes; they are still computed with in the precision that
            predicting asks for. Its 11 bits are more than the 8 that bfloat16 keeps of them.
        overwrite: replace an existing `output`.

    Returns:
        `output`.

    Raises:
        UsageError: fewer than two models, one of them twice, `output` exists or is no name of a model file, or a
            weight is too large for `half`.
        InputError: a model is missing, damaged, an ensemble itself, or does not fit the first one.
        ResourceError: the disk refused the bytes.
    """
    output = Path(output)
    check_model_path(output, overwrite)
    paths = [_model_of(model) for model in models]
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        found = ", ".join(map(str, models)) or "none"
        raise UsageError(f"An ensemble needs two models or more, each only once, found {found}.")
    cards = [read_card(path) for path in paths]
    for path, card in zip(paths, cards, strict=True):
        _check_fits(path, card, paths[0], cards[0])
    members = Ensemble([load_network(*load_model(path), path) for path in paths])
    plan = _joined([card.plan for card in cards])
    # By names, because paths differ from machine to machine.
    command = shlex.join(["volseg", "ensemble", *(card.name for card in cards), "--output", "MODEL"])
    records = [
        {"name": card.name, "sha256": sha256_of(path), **card.training} for path, card in zip(paths, cards, strict=True)
    ]
    save_model(
        output,
        ModelCard(
            name=f"{plan.dataset}-ensemble{len(cards)}",
            plan=plan,
            members=len(cards),
            postprocessing=_agreed(cards),
            training={
                "command": f"{command} --half" if half else command,
                "dataset": plan.dataset,
                "licence": cards[0].training.get("licence"),
                "members": records,
            },
            scores={"members": [card.scores for card in cards], **_out_of_fold(cards)},
        ),
        _halved(members.state_dict()) if half else members.state_dict(),
    )
    return output


def _halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float16, unless one of them is too large for it; counts as they are."""
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    for name, tensor in halved.items():
        if tensor.isinf().any():
            raise UsageError(f"The weights {name} hold a value beyond 65504, float16's largest. Leave out --half.")
    return halved


def _model_of(model: str | Path) -> Path:
    """The model file of a run, or the model itself."""
    if not is_run(Path(model)):
        return find_model(model)
    path = Path(model) / "model.safetensors"
    if not path.exists():
        raise InputError(f"The run {model} has no model yet. Finish it with volseg train --resume.")
    return path


def _check_fits(path: Path, card: ModelCard, first_path: Path, first: ModelCard) -> None:
    """Refuse a model that cannot answer together with the first one."""
    if card.members > 1:
        raise InputError(f"{path} is an ensemble of {card.members} networks itself. Give the models it was made of.")
    plans = [one.plan.model_dump(mode="json", exclude=RANGES) for one in (card, first)]
    differences = list(_differences(plans[0], plans[1]))
    if differences:
        raise InputError(
            f"{path} does not fit {first_path}: {'; '.join(differences[:3])}. "
            "Give models that were trained with one plan, such as the folds of a dataset."
        )


def _differences(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """Where two plans differ, as "network.norm is batch, expected instance"."""
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


def _joined(plans: Sequence[Plan]) -> Plan:
    """The plan of all members: the first one's, with ranges that hold those of all."""
    channels = tuple(_widened(one, "mean_range") for one in zip(*(plan.channels for plan in plans), strict=True))
    labels = tuple(_widened(one, "volume_ml_range") for one in zip(*(plan.labels for plan in plans), strict=True))
    return plans[0].model_copy(update={"channels": channels, "labels": labels})


def _out_of_fold(cards: Sequence[ModelCard]) -> dict[str, Any]:
    """Per label, the mean Dice over the cases of the members' folds, each from the member that did not see it, and the
    mean of those; nothing unless every member has a fold of its own and scores.
    """
    folds = {card.training.get("fold") for card in cards}
    scored = all("labels" in card.scores for card in cards)
    if len(folds) < len(cards) or not all(isinstance(fold, int) for fold in folds) or not scored:
        return {}
    labels = {}
    for label in cards[0].scores["labels"]:
        rows = [row for card in cards if (row := card.scores["labels"][label])["cases"]]
        if cases := sum(row["cases"] for row in rows):
            labels[label] = {"dice": sum(row["dice"] * row["cases"] for row in rows) / cases, "cases": cases}
    if not labels:
        return {}
    return {"out_of_fold": {"labels": labels, "foreground_dice": fmean(row["dice"] for row in labels.values())}}


def _agreed(cards: Sequence[ModelCard]) -> dict[str, ComponentRule]:
    """The rules of an ensemble, which drop nothing that one of the members' would keep; without figures, for nobody
    has scored them.
    """
    rules = {}
    for label in cards[0].plan.labels:
        members = [card.postprocessing.get(label.name, ComponentRule()) for card in cards]
        rules[label.name] = ComponentRule(
            smallest_ml=min(rule.smallest_ml for rule in members),
            largest_only=all(rule.largest_only for rule in members),
        )
    return {name: rule for name, rule in rules.items() if rule != ComponentRule()}


def _widened(parts: Sequence[Part], name: str) -> Part:
    """The first of some parts, its range `name` so wide that it holds those of all; None where one is not known."""
    ranges = [getattr(part, name) for part in parts]
    whole = None if None in ranges else (min(low for low, _ in ranges), max(high for _, high in ranges))
    return parts[0].model_copy(update={name: whole})
