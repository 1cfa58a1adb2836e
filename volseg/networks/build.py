"""Build networks from their configuration; the only place that lists the architectures."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from volseg.config import NetworkConfig
from volseg.errors import ConfigError, InputError
from volseg.modelfile import ModelCard
from volseg.networks.ensemble import Ensemble
from volseg.networks.unet import UNet

# By `NetworkConfig.architecture`. An entry maps (B, in_channels, D, H, W) to logits (B, classes, D, H, W); in training
# with deep supervision it may return a list of logits, finest first. Add your own before training or loading a model.
NETWORKS: dict[str, Callable[[NetworkConfig], nn.Module]] = {"unet": UNet}


def find_network(architecture: str) -> Callable[[NetworkConfig], nn.Module]:
    """The entry of `NETWORKS` with that name.

    Raises:
        ConfigError: the name is unknown.
    """
    if architecture not in NETWORKS:
        raise ConfigError(
            f"Unknown network architecture {architecture!r}; known are {', '.join(NETWORKS)}. "
            "Add it to volseg.networks.NETWORKS first."
        )
    return NETWORKS[architecture]


def build_network(config: NetworkConfig) -> nn.Module:
    """A network with random weights.

    Raises:
        ConfigError: `config.architecture` is not in `NETWORKS`.
    """
    return find_network(config.architecture)(config)


def load_network(card: ModelCard, weights: dict[str, Tensor], source: Path) -> nn.Module:
    """The network of a model file in evaluation mode, without gradients; ensemble members average their logits.

    Args:
        card: card of the model file.
        weights: its weights by name.
        source: path of the file, for messages.

    Raises:
        ConfigError: the architecture is unknown.
        InputError: the weights do not fit the network.
    """
    members = [build_network(card.plan.network) for _ in range(card.members)]
    network = Ensemble(members) if card.members > 1 else members[0]
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise InputError(
            f"The weights in {source} do not fit its plan: {first[0].strip()} The file is corrupt."
        ) from error
    return network.eval().requires_grad_(False)
