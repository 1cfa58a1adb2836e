"""The weights of an nnU-Net v2 network under the names that `volseg.networks.UNet` gives them.

Layers correspond one to one. What differs:
- nnU-Net's files contain most tensors several times, once under the name of each module that refers to them.
- Its convolutions before a norm may have a bias. An instance norm subtracts the bias again, so it is dropped; with a
  batch norm it shifts the running mean.
- Convolutions of 2-D models have kernels (k, k), which are (1, k, k) here.
- Its transposed convolutions may have no bias; volseg's have one, which is then 0.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.config import NetworkConfig
from volseg.errors import InputError
from volseg.networks import UNet
from volseg.networks.blocks import ResidualBlock
from volseg.networks.build import outline

# Characters of a tensor's name in a message.
SHOWN = 80

# Prefixes that parallel training and compilation add to every name.
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
# In a sequence of convolution, dropout (if any), norm and activation, only the convolution and the norm have weights.
SAME = (
    (re.compile(r"^decoder\.encoder\."), "encoder."),
    (re.compile(r"\.all_modules\.0\."), ".conv."),
    (re.compile(r"\.all_modules\.[12]\."), ".norm."),
)


@dataclass(frozen=True)
class Layer:
    """The names of a convolution in volseg and in nnU-Net, and volseg's name of the norm after it, if any."""

    conv: str
    source: str
    norm: str = ""


def import_weights(
    stored: Mapping[str, Tensor], config: NetworkConfig, origin: str, dimensions: int = 3
) -> dict[str, Tensor]:
    """Weights of `UNet(config)` from an nnU-Net network of the same architecture.

    Args:
        stored: tensors by nnU-Net's names.
        config: the network.
        origin: the file that they come from, for messages.
        dimensions: of nnU-Net's convolutions, 2 or 3.

    Returns:
        The state dict of the network: float32 (counters int64), a copy.

    Raises:
        InputError: a tensor is missing, is not in the network, or has another shape.
    """
    network = outline(config)
    assert isinstance(network, UNet)
    _check_types(stored, origin)
    tensors, copies = _without_copies(stored, origin)
    source = Source(dict(tensors), origin, dimensions)
    weights: dict[str, Tensor] = {}
    for layer in _layers(network):
        weights |= source.take(layer, network)
    source.check_empty()
    # Last: now the shapes are those of the network, so comparing takes no longer than copying did.
    for name, tensor in copies:
        if not torch.equal(tensors[name], tensor):
            raise _two_for(name, origin)
    return weights


def _check_types(stored: Mapping[str, Tensor], origin: str) -> None:
    """Reject tensors that are not plain numbers in memory."""
    for name, tensor in stored.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.is_complex() or tensor.dtype == torch.bool:
            kind = str(tensor.dtype if plain else tensor.layout).removeprefix("torch.")
            raise InputError(
                f"The tensor {name[:SHOWN]} in {origin} is {kind} on {tensor.device.type}, expected floating-point "
                "numbers in memory. Take the file as nnU-Net wrote it."
            )


class Source:
    """Tensors by nnU-Net's names; each is taken once."""

    def __init__(self, tensors: dict[str, Tensor], origin: str, dimensions: int = 3) -> None:
        self.tensors = tensors
        self.origin = origin
        self.dimensions = dimensions

    def take(self, layer: Layer, network: UNet) -> dict[str, Tensor]:
        """The weights of a layer and its norm, by the names in `network`."""
        if not layer.norm:
            if layer.conv.endswith(".up"):
                channels = network.get_parameter(f"{layer.conv}.bias").shape
                self.tensors.setdefault(f"{layer.source}.bias", torch.zeros(channels))
            return self._take_module(layer.conv, layer.source, network)
        found = self._take_module(layer.conv, f"{layer.source}.conv", network)
        norm = self._take_module(layer.norm, f"{layer.source}.norm", network)
        name = f"{layer.source}.conv.bias"
        if name in self.tensors:
            bias = self._take(name, network.get_parameter(f"{layer.norm}.bias"))
            if f"{layer.norm}.running_mean" in norm:
                norm[f"{layer.norm}.running_mean"] -= bias
        return found | norm

    def check_empty(self) -> None:
        """Reject tensors that no layer has taken."""
        for name in self.tensors:
            raise InputError(
                f"{self.origin} contains the tensor {name[:SHOWN]}, which the network in plans.json does not have. "
                "volseg imports only networks that match their plans."
            )

    def _take_module(self, ours: str, theirs: str, network: UNet) -> dict[str, Tensor]:
        state = network.get_submodule(ours).state_dict()
        return {f"{ours}.{key}": self._take(f"{theirs}.{key}", wanted) for key, wanted in state.items()}

    def _take(self, name: str, wanted: Tensor) -> Tensor:
        """A copy of a tensor in the shape and number type of `wanted`."""
        if name not in self.tensors:
            raise InputError(
                f"{self.origin} lacks the tensor {name}, which the network in plans.json has. "
                "Take plans.json and checkpoints from one model folder."
            )
        tensor = self.tensors.pop(name)
        flat = self.dimensions == 2 and wanted.ndim == 5
        shape = (*wanted.shape[:2], *wanted.shape[3:]) if flat else tuple(wanted.shape)
        if tensor.shape != shape:
            raise InputError(
                f"The tensor {name} in {self.origin} has shape {tuple(tensor.shape)[:8]}, but plans.json and "
                f"dataset.json give {shape}. Take all files from one model folder."
            )
        tensor = tensor.unsqueeze(2) if flat else tensor
        if tensor.is_floating_point() != wanted.is_floating_point():
            raise InputError(
                f"The tensor {name} in {self.origin} holds {tensor.dtype}, but the network has {wanted.dtype} there. "
                "Take the file as nnU-Net wrote it."
            )
        return tensor.detach().to(wanted.dtype, copy=True).contiguous()


def _without_copies(stored: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], list[tuple[str, Tensor]]]:
    """Each tensor once, by the name of the module that owns it; and the other tensors of the same names."""
    tensors: dict[str, Tensor] = {}
    copies = []
    for full, tensor in stored.items():
        name = WRAPPERS.sub("", full)
        for copied, owner in SAME:
            name = copied.sub(owner, name)
        first = tensors.setdefault(name, tensor)
        if first.shape != tensor.shape or first.dtype != tensor.dtype:
            raise _two_for(name, origin)
        if first is not tensor and not first.is_set_to(tensor):
            copies.append((name, tensor))
    return tensors, copies


def _two_for(name: str, origin: str) -> InputError:
    return InputError(
        f"{origin} contains two different tensors for {name[:SHOWN]}. Copy the file again from its source."
    )


def _layers(network: UNet) -> Iterator[Layer]:
    """All convolutions of a network."""
    config = network.config
    for s, stage in enumerate(network.encoder):
        for k, block in enumerate(stage.children()):
            ours = f"encoder.{s}.{k}"
            if isinstance(block, ResidualBlock):
                # The stem comes before the blocks of the first stage.
                yield from _residual_layers(block, ours, f"encoder.stages.{s}.blocks.{k - (s == 0)}")
            else:
                yield Layer(
                    f"{ours}.conv",
                    "encoder.stem.convs.0" if config.encoder == "residual" else f"encoder.stages.{s}.0.convs.{k}",
                    f"{ours}.norm",
                )
    # Both networks count decoder stages from the coarsest; the configuration counts from the finest.
    for i, blocks in enumerate(reversed(config.decoder_blocks)):
        yield Layer(f"decoder.{i}.up", f"decoder.transpconvs.{i}")
        for k in range(blocks):
            ours = f"decoder.{i}.blocks.{k}"
            yield Layer(f"{ours}.conv", f"decoder.stages.{i}.convs.{k}", f"{ours}.norm")
    for i in range(len(network.heads)):
        yield Layer(f"heads.{i}", f"decoder.seg_layers.{i}")


def _residual_layers(block: ResidualBlock, ours: str, theirs: str) -> Iterator[Layer]:
    yield Layer(f"{ours}.first.conv", f"{theirs}.conv1", f"{ours}.first.norm")
    yield Layer(f"{ours}.second", f"{theirs}.conv2", f"{ours}.norm")
    for i, step in enumerate(block.skip):
        if isinstance(step, torch.nn.Conv3d):
            yield Layer(f"{ours}.skip.{i}", f"{theirs}.skip.{i}", f"{ours}.skip.{i + 1}")
