"""Which settings of a plan a model has decided already."""

from collections.abc import Sequence
from typing import Any

from volseg.config import Plan, PlanChoices
from volseg.errors import UsageError
from volseg.finetuning.start import Match

# Decided by the dataset and the device, so free.
FREE = ("batch_size", "memory_gb", "mirror_axes", "sides")
_ORDERS = {0: "nearest", 1: "linear", 3: "cubic"}


def check_choices(choices: PlanChoices, model: Plan, channels: Match, free: Sequence[str]) -> None:
    """Check that the user's settings do not contradict the model that a run starts from.

    Args:
        choices: what the user has set.
        model: the plan of the model.
        channels: of the dataset, matched with the model's.
        free: channels of the dataset that are normalised anew.

    Raises:
        UsageError: one does; the message names its key.
    """
    fixed = _values_of(model)
    for key in PlanChoices.model_fields:
        given = getattr(choices, key)
        if given is None or key in FREE:
            continue
        if key == "normalisation":
            _check_normalisation(given, model, channels, free)
        elif given != fixed[key]:
            raise _contradicts(f"plan.{key}", given, fixed[key])


def _values_of(model: Plan) -> dict[str, Any]:
    """The settings that would give a model's plan."""
    network = model.network
    blocks = {*network.encoder_blocks, *network.decoder_blocks}
    own = {key: getattr(model, key) for key in ("dimensions", "spacing_mm", "patch_size", "crop", "label_resampling")}
    same = ("architecture", "block", "mid", "encoder", "features", "norm", "activation", "deep_supervision")
    return {
        **own,
        **{key: getattr(network, key) for key in same},
        "image_resampling": _ORDERS.get(model.image_resampling.order, f"order {model.image_resampling.order}"),
        "antialias": model.image_resampling.antialias,
        "blocks_per_stage": blocks.pop() if len(blocks) == 1 else "several",
    }


def _check_normalisation(given: Any, model: Plan, channels: Match, free: Sequence[str]) -> None:
    known = {channel.name: channel.normalisation for channel in model.channels}
    for name, old in channels.copied.items():
        wanted = given.get(name) if isinstance(given, dict) else given
        if name not in free and wanted not in (None, known[old]):
            raise _contradicts("plan.normalisation", wanted, known[old])


def _contradicts(key: str, given: Any, fixed: Any) -> UsageError:
    return UsageError(
        f"{key} is {given}, but the model that the run starts from was trained with {fixed}. Leave {key} out, or train "
        "without --from."
    )
