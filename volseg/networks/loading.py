"""The network of a model file: its names and shapes are compared before any memory is taken for weights."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from volseg.config import CUSTOM
from volseg.device import random_numbers_kept
from volseg.errors import ConfigError, InputError, UsageError
from volseg.modelfile import ModelCard
from volseg.modelfile.card import card_of, own_network_of, require_network_of_volseg
from volseg.modelfile.header import FLOATING, read_header
from volseg.modelfile.weights import load_weights
from volseg.networks.build import NETWORKS, outline
from volseg.networks.ensemble import Ensemble
from volseg.networks.kernels import WEIGHTS
from volseg.networks.own import NetworkFactory, build_own, require_factory
from volseg.text import first_few, printable, shortened

# Characters of a tensor's name in a message.
SHOWN = 60


class Kind(NamedTuple):
    """What has to be equal in a file and in the network that its card describes."""

    shape: tuple[int, ...]
    is_floating: bool

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape)) or 'one number'} {'floating' if self.is_floating else 'integer'}"


def open_network(path: Path, factory: NetworkFactory | None = None) -> tuple[ModelCard, nn.Module]:
    """The card of a model file, and its network as from `load_network`.

    Args:
        path: of the file.
        factory: of the network, for a model that was trained with one of the caller's own.

    Raises:
        ConfigError: the architecture is unknown.
        InputError: not a model file, or its tensors do not fit the network of its card.
        UsageError: the factory makes no network, or the model needs none.
    """
    header = read_header(path)
    card = card_of(header, path)
    described = {name: Kind(one.shape, one.dtype in FLOATING) for name, one in header.tensors.items()}
    unusual = [name for name, one in header.tensors.items() if one.dtype not in FLOATING and one.dtype[0] not in "IU"]
    if unusual and card.plan.network.architecture == "unet":
        found = f"{_short(unusual[0])} has the number type {header.tensors[unusual[0]].dtype}"
        raise _does_not_fit(path, found, card)
    build = _builder(card, path, factory)
    first = build()
    _compare(first, card, described, path)
    return card, _assembled(first, build, card, load_weights(path), path)


def load_network(card: ModelCard, weights: dict[str, Tensor], source: Path) -> nn.Module:
    """The network of a model file in evaluation mode, without gradients; ensemble members average their logits.

    Args:
        card: card of the model file.
        weights: its weights by name; they are copied.
        source: path of the file, for messages.

    Raises:
        ConfigError: the architecture is unknown.
        InputError: the weights do not fit the network.
    """
    build = _builder(card, source, None)
    first = build()
    _compare(first, card, {name: _kind(one) for name, one in weights.items()}, source)
    return _assembled(first, build, card, weights, source)


def _builder(card: ModelCard, source: Path, factory: NetworkFactory | None) -> Callable[[], nn.Module]:
    """What builds the network of a card, with any weights.

    Raises:
        ConfigError: it is one of the caller's own and there is no factory, or one not registered in this process.
        UsageError: there is a factory, but the network is volseg's U-Net.
    """
    architecture = card.plan.network.architecture
    if factory is not None:
        require_factory(factory)
    if factory is not None and architecture != "unet":
        return partial(_built, factory, card)
    if factory is not None:
        raise UsageError(f"The network of {source} is volseg's U-Net, which volseg builds itself. Leave out network=.")
    require_network_of_volseg(card, source)
    if architecture not in NETWORKS:
        raise ConfigError(
            f"The network of {source} is {architecture!r}, which this process does not know (it knows "
            f"{', '.join(NETWORKS)}). Register it before the file is loaded: "
            f"volseg.networks.NETWORKS[{architecture!r}] = ..."
        )
    return partial(outline, card.plan.network)


def _built(factory: NetworkFactory, card: ModelCard) -> nn.Module:
    """The network of a factory; loading a model does not change the random numbers of the caller."""
    with random_numbers_kept(torch.device("cpu")):
        return build_own(factory, card.plan)


def _kind(tensor: Tensor) -> Kind:
    return Kind(tuple(tensor.shape), tensor.is_floating_point())


def _prefix(member: int, members: int) -> str:
    return f"members.{member}." if members > 1 else ""


def _compare(first: nn.Module, card: ModelCard, found: Mapping[str, Kind], source: Path) -> None:
    """Compare the tensors of a file with those of the networks of its card, which are like the first.

    Raises:
        InputError: one is missing, in excess, or of another shape or kind of number.
    """
    one = {name: _kind(tensor) for name, tensor in _tensors(first).items()}
    prefixes = [_prefix(member, card.members) for member in range(card.members)]
    needed = {f"{prefix}{name}": kind for prefix in prefixes for name, kind in one.items()}
    missing = [name for name in needed if name not in found]
    extra = [name for name in found if name not in needed]
    wrong = [
        f"{name} is {found[name]}, not {needed[name]}"
        for name in needed
        if found.get(name, needed[name]) != needed[name]
    ]
    for names, what in ((missing, "it lacks"), (extra, "it also has"), (wrong, "in it")):
        if names:
            raise _does_not_fit(source, f"{what} {first_few([_short(name) for name in names], 1)}", card)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """What a model file holds of a network."""
    return {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}


def _short(text: str) -> str:
    return shortened(printable(text), 2 * SHOWN)


def _does_not_fit(source: Path, found: str, card: ModelCard) -> InputError:
    architecture = card.plan.network.architecture
    if architecture == CUSTOM:
        return InputError(
            f"The weights in {source} are of another network than the one that network= makes: {found}. Give the "
            f"function or class that it was trained with ({own_network_of(card)})."
        )
    if architecture != "unet":
        return InputError(
            f"The weights in {source} are of another network than the one registered as {architecture!r}: {found}. "
            "Register the network that it was trained with in volseg.networks.NETWORKS."
        )
    return InputError(
        f"The weights in {source} do not fit its plan: {found}. Give the file as volseg wrote it, or train again."
    )


def _assembled(
    first: nn.Module,
    build: Callable[[], nn.Module],
    card: ModelCard,
    weights: Mapping[str, Tensor],
    source: Path,
) -> nn.Module:
    """The network with weights that fit; the first of its members is given, the others are built."""
    networks = []
    for member in range(card.members):
        network = first if member == 0 else build()
        prefix = _prefix(member, card.members)
        own = {name: _placed(weights[f"{prefix}{name}"], wanted) for name, wanted in _tensors(network).items()}
        # A buffer of another network may be meant to be infinite, such as a mask of attention.
        checked = own if card.plan.network.architecture == "unet" else dict(network.named_parameters())
        for name in checked:
            if not torch.isfinite(own[name]).all():
                raise InputError(
                    f"The weights in {source} cannot be used: {_short(prefix + name)} has values that are not finite. "
                    "Train again, or give another model."
                )
        try:
            network.load_state_dict(own, assign=any(one.is_meta for one in network.state_dict().values()))
        # A network of the user's own may compare more than names and shapes.
        except RuntimeError as error:
            reason = " ".join(str(error).split())[: 4 * SHOWN]
            raise _does_not_fit(source, reason, card) from error
        networks.append(network)
    joined = Ensemble(networks) if card.members > 1 else networks[0]
    return joined.eval().requires_grad_(False)


def _placed(stored: Tensor, wanted: Tensor) -> Tensor:
    """A copy of a stored tensor in the number type of `wanted`, and in the memory format that `initialise` gives."""
    found = stored.to(wanted.dtype)
    if found.ndim == 5:
        found = found.contiguous(memory_format=WEIGHTS)
    # A view of the file would change with the file.
    return found.clone() if found is stored else found
