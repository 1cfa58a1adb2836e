"""What a checkpoint keeps of an optimiser: tensors, and a document of numbers and texts. Nothing is pickled.

Of Muon these are its moments alone; of an optimiser of the caller's own also what its groups hold, because some count
their steps there.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from volseg.errors import UsageError
from volseg.training.optimisers import Muon, has_moments

# Called with the network, `training.learning_rate` and `training.weight_decay`; returns the optimiser of the network's
# parameters. The learning rate that it gives a group is the peak of that group's schedule.
OptimiserFactory: TypeAlias = Callable[[nn.Module, float, float], torch.optim.Optimizer]
MUON = "muon"
_GROUP = "group"


def build_optimiser(
    factory: OptimiserFactory, network: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser that a factory makes for a network.

    Raises:
        UsageError: it is none, or not one of this network's parameters.
    """
    optimiser = factory(network, learning_rate, weight_decay)
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise UsageError(
            f"The factory of the optimiser returned a {type(optimiser).__name__}, expected a torch.optim.Optimizer. It "
            "is called as optimiser(network, learning_rate, weight_decay)."
        )
    needed = inspect.signature(optimiser.step).parameters.get("closure")
    if needed and needed.default is needed.empty:
        raise UsageError(
            f"The optimiser {type(optimiser).__name__} computes the loss several times a step (its step needs a "
            "closure), which training does not do. Use another one."
        )
    own = {id(parameter) for parameter in network.parameters()}
    given = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    if not given or any(id(parameter) not in own for parameter in given):
        raise UsageError(
            "The optimiser has parameters that are not those of the network it was called with, or none. Give it "
            "network.parameters(), or groups of them."
        )
    # What it keeps from the start has to fit a checkpoint, too.
    stored_state(optimiser)
    return optimiser


def optimiser_name(optimiser: torch.optim.Optimizer) -> str:
    """The name of an optimiser's class in a checkpoint, because the state of another one cannot be used."""
    kind = type(optimiser)
    return MUON if kind is Muon else f"{kind.__module__}.{kind.__qualname__}"


def stored_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimiser: tensors by "parameter.name", and the rest as a JSON document, {} for Muon.

    Raises:
        UsageError: it keeps something else than tensors, numbers and texts.
    """
    whole = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in whole["state"].items():
        if type(index) is not int or not isinstance(entries, dict):
            raise UsageError(f"The optimiser keeps {index!r}, which is not the state of a parameter. Use another one.")
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = _plain(value, name)
    if optimiser_name(optimiser) == MUON:
        return tensors, {}
    groups = []
    for number, group in enumerate(whole["param_groups"]):
        kept = {name: value for name, value in group.items() if name != "params"}
        tensors |= {f"{_GROUP}{number}.{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
        groups.append({name: _plain(value, name) for name, value in kept.items() if not isinstance(value, Tensor)})
    return tensors, {"numbers": numbers, "groups": groups}


def restore_state(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    """Put back what `stored_state` gave.

    Raises:
        ValueError: it is of another network or of other groups.
        KeyError, TypeError: the document is not as it was written.
    """
    now = optimiser.state_dict()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = [dict(group) for group in now["param_groups"]]
    for place, name, value in _by_place(tensors):
        if place.startswith(_GROUP):
            groups[int(place.removeprefix(_GROUP))][name] = value
        else:
            state.setdefault(int(place), {})[name] = value
    if optimiser_name(optimiser) == MUON:
        _require_moments(state, parameters)
    else:
        if len(document["groups"]) != len(groups):
            raise ValueError(f"its optimiser has {len(document['groups'])} groups of parameters, not {len(groups)}")
        for group, stored in zip(groups, document["groups"], strict=True):
            group |= {name: _as_before(value, group.get(name)) for name, value in stored.items()}
        for place, stored in document["numbers"].items():
            state.setdefault(int(place), {}).update(stored)
    if any(not 0 <= number < len(parameters) for number in state):
        raise ValueError(f"its optimiser state is of more than {len(parameters)} parameters")
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    for number, entries in state.items():
        _keep_exact(optimiser.state[parameters[number]], entries, parameters[number])


def _keep_exact(loaded: dict[str, Any], stored: dict[str, Any], parameter: Tensor) -> None:
    """Undo what torch makes of tensors that it loads: they get the number type of their parameter."""
    for name, value in stored.items():
        if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
            loaded[name] = value.to(loaded[name].device)
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # In the order of the parameter in memory, as optimisers make them.
            loaded[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _require_moments(state: dict[int, dict[str, Any]], parameters: list[Tensor]) -> None:
    for number, found in state.items():
        if not 0 <= number < len(parameters) or not has_moments(parameters[number], found):
            raise ValueError(f"its optimiser state of parameter {number} is of another network")


def _by_place(tensors: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    for key, value in tensors.items():
        place, _, name = key.partition(".")
        yield place, name, value


def _plain(value: Any, name: str) -> Any:
    """A number, a text or a list of them, as a JSON document keeps them."""
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(
        f"The optimiser keeps {name}, of the type {type(value).__name__}, but a checkpoint holds tensors, numbers and "
        "texts alone. Use another optimiser."
    )


def _as_before(value: Any, example: Any) -> Any:
    """A value of a JSON document, which has lists for tuples."""
    return tuple(value) if isinstance(example, tuple) and isinstance(value, list) else value
