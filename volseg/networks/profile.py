"""Parameters, FLOPs and activation memory of a U-Net, stage by stage, without building it.

The network runs on torch's meta device, which computes shapes and no values, so that profiling takes no time or memory.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from volseg.config import NetworkConfig, Triple
from volseg.networks.build import build_network
from volseg.networks.unet import UNet


@dataclass(frozen=True)
class StageProfile:
    """The cost of one stage, or of a whole network.

    Attributes:
        name: "encoder 0", "encoder 1", ... (finest first), then "decoder 2", "decoder 1", ... (coarsest first), then
            "heads". A decoder stage has the number of the encoder stage of the same resolution.
        parameters: number of weights.
        flops: twice the multiply-adds of the convolutions in one forward pass, as `FlopCounterMode` counts.
        activation_bytes: memory in bytes that the forward pass keeps for the backward pass.
    """

    name: str
    parameters: int
    flops: int
    activation_bytes: int


@dataclass(frozen=True)
class Profile:
    """The cost of a network on one patch, in training (all heads), float32, batch size 1."""

    stages: tuple[StageProfile, ...]

    @property
    def total(self) -> StageProfile:
        """The sums over all stages."""
        return StageProfile(
            "total",
            sum(stage.parameters for stage in self.stages),
            sum(stage.flops for stage in self.stages),
            sum(stage.activation_bytes for stage in self.stages),
        )


def profile_network(config: NetworkConfig, patch_size: Triple) -> Profile:
    """The cost of a network, stage by stage.

    Activation memory is that of all tensors that autograd saves except parameters, each counted once, in the stage that
    first saves it: a convolution's input and output, the output of norm and activation (one tensor, as the activation
    works in place), the concatenation in the decoder.

    Args:
        config: the network.
        patch_size: the input's size (D, H, W) in voxels, a multiple of `config.divisor`.

    Returns:
        One `StageProfile` per encoder stage and decoder stage, and one for the heads.

    Raises:
        UsageError: `patch_size` does not fit the network.
    """
    with torch.device("meta"):
        network = build_network(config)
        patch = torch.empty(1, config.in_channels, *patch_size)
    names = _stage_names(network)
    counter = FlopCounterMode(display=False)
    parameters, flops, activation_bytes = Counter[str](), Counter[str](), Counter[str]()
    seen = {_storage_key(parameter) for parameter in network.parameters()}

    def count_saved(tensor: Tensor) -> Tensor:
        if _storage_key(tensor) not in seen:
            seen.add(_storage_key(tensor))
            running = next(name for path, name in names.items() if path in counter.mod_tracker.parents)
            activation_bytes[running] += tensor.untyped_storage().nbytes()
        return tensor

    with counter, saved_tensors_hooks(count_saved, lambda tensor: tensor):
        network(patch)
    for path, name in names.items():
        module = network.get_submodule(path.partition(".")[2])
        parameters[name] += sum(parameter.numel() for parameter in module.parameters())
        flops[name] += sum(counter.get_flop_counts()[path].values())
    stages = dict.fromkeys(names.values())
    return Profile(tuple(StageProfile(name, parameters[name], flops[name], activation_bytes[name]) for name in stages))


def compare_blocks(config: NetworkConfig, patch_size: Triple) -> dict[str, Profile]:
    """Profile a network with each type of block: "conv3d", and (2+1)D "light" and "matched".

    Args:
        config: the network; its `block` and `mid` are replaced.
        patch_size: as for `profile_network`.
    """
    choices = {
        "conv3d": {"block": "conv3d"},
        "light": {"block": "conv2plus1d", "mid": "light"},
        "matched": {"block": "conv2plus1d", "mid": "matched"},
    }
    return {name: profile_network(config.model_copy(update=choice), patch_size) for name, choice in choices.items()}


def _stage_names(network: nn.Module) -> dict[str, str]:
    """The name of each stage, by the path of its module; any architecture other than the U-Net is one stage."""
    if not isinstance(network, UNet):
        return {type(network).__name__: "network"}
    encoder = {f"UNet.encoder.{s}": f"encoder {s}" for s in range(len(network.encoder))}
    decoder = {f"UNet.decoder.{i}": f"decoder {len(network.decoder) - 1 - i}" for i in range(len(network.decoder))}
    heads = {f"UNet.heads.{i}": "heads" for i in range(len(network.heads))}
    return encoder | decoder | heads


def _storage_key(tensor: Tensor) -> int:
    """Equal for tensors that share memory; meta tensors have no address to compare."""
    key: int = tensor.untyped_storage()._cdata
    return key
