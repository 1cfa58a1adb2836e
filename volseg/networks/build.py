"""Build networks from their configuration; the only place that lists the architectures."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from volseg.config import NetworkConfig
from volseg.errors import ConfigError
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


def outline(config: NetworkConfig) -> nn.Module:
    """A network of the same names and shapes for comparison, on the meta device, where tensors take no memory.

    An architecture of the user's own is built as it is, because it may need values to build itself.

    Raises:
        ConfigError: `config.architecture` is not in `NETWORKS`.
    """
    build = find_network(config.architecture)
    if build is not UNet:
        # Loading a model must not change the random numbers of the caller.
        before = torch.get_rng_state()
        try:
            return build(config)
        finally:
            torch.set_rng_state(before)
    with _Outlined():
        return UNet(config)


class _Outlined(TorchFunctionMode):
    """Makes the tensors of torch's modules on the meta device and draws no random weights.

    `torch.device("meta")` alone would draw them, for which it imports sympy and more: seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls instead of each of its functions."""
        if (name := getattr(func, "__name__", "")) in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        if name in _MAKING:
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        return func(*args, **(kwargs or {}))


# By their names: the functions that torch's modules call for their weights, and those that fill them at random.
_MAKING = frozenset({"empty", "ones", "zeros", "tensor"})
_DRAWING = frozenset({"uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_"})
