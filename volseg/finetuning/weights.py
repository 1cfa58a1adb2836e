"""The first weights of a run that starts from a model, and the freezing of its encoder.

Everything is copied but the rows of the heads and the input channels of the first convolution, which are matched by
name. What is new there is drawn or averaged as `start_weights` says.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from volseg.config import Plan
from volseg.errors import ConfigError
from volseg.finetuning.start import Match, Start

# Standard deviation of the weights of a new label's row, as a fraction of He's.
NEW_ROW = 0.1
STEM = "encoder.0.0.conv.weight"
HEADS = "heads."
# Norms that cancel the scale of what the first convolution gives.
SCALE_FREE = ("instance", "group")


@torch.no_grad()
def start_weights(network: nn.Module, source: nn.Module, model: Plan, plan: Plan, start: Start, seed: int) -> None:
    """Give a new network the weights of a model.

    The row of a new label in each head is drawn from a normal distribution, a tenth of He's standard deviation, minus
    the mean of the row, so that its logit is about 0 everywhere at first; its bias is 0. The weights of a new input
    channel are the mean of those of the matched channels, or of all if none is matched. Instance and group norm cancel
    the size of what the first convolution gives; with another norm, or none, its weights are multiplied by the model's
    number of channels over the new one, so that their sum keeps its size.

    Args:
        network: of `plan`; changed in place.
        source: the network of the model, of `model`.
        model: the plan of the model.
        plan: the new plan.
        start: which labels and channels are matched.
        seed: of the rows that are drawn.

    """
    weights: dict[str, Tensor] = dict(source.state_dict())
    rows, columns = _rows_of(model, plan, start.labels), _columns_of(model, start.channels)
    if not _is_same(model, rows, columns):
        scale = 1.0 if model.network.norm in SCALE_FREE else len(model.channels) / len(columns)
        weights[STEM] = _input_weights(weights[STEM], columns, scale)
        generator = torch.Generator().manual_seed(seed)
        for name in [name for name in weights if name.startswith(HEADS)]:
            weights[name] = _head_rows(weights[name], rows, generator)
    network.load_state_dict(weights)


def require_matchable(model: Plan, plan: Plan, start: Start) -> None:
    """Check that labels and channels of a model's network can be matched by name, or need not be.

    Raises:
        ConfigError: the network is not volseg's U-Net, and labels or channels are not the model's.
    """
    rows, columns = _rows_of(model, plan, start.labels), _columns_of(model, start.channels)
    if model.network.architecture != "unet" and not _is_same(model, rows, columns):
        raise ConfigError(
            f"The network of {start.name} is {model.network.architecture!r}, not volseg's U-Net, so only a dataset "
            "with the model's labels and channels, in their order, can start from it."
        )


def pulled_weights(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the kernels that a run is pulled to: those that learn, but for the heads, whose rows may be new."""
    return {
        name: weights.detach().clone()
        for name, weights in network.named_parameters()
        if weights.requires_grad and weights.ndim > 1 and not name.startswith(HEADS)
    }


def freeze_encoder(network: nn.Module) -> None:
    """Keep the encoder of a network as it is: no gradients, and batch norms compute with their running statistics.

    Raises:
        ConfigError: the network has no part of that name.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ConfigError("The network has no part called encoder that could be frozen. Leave out --freeze.")
    encoder.requires_grad_(False)
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # The training loop puts the whole network into training mode.
            module.register_forward_pre_hook(_as_in_evaluation)


def _as_in_evaluation(module: nn.Module, _: Any) -> None:
    module.eval()


def _rows_of(model: Plan, plan: Plan, labels: Match) -> list[int | None]:
    """For each class of the new plan, the class of the model that it is copied from."""
    background = [] if plan.regions else [0]
    taken = {**labels.taken, **{name: name for name in labels.kept}}
    found = (taken[label.name] for label in plan.labels)
    return [*background, *(None if old is None else _index(model.labels, old) + len(background) for old in found)]


def _columns_of(model: Plan, channels: Match) -> list[int | None]:
    """For each channel of the dataset, that of the model."""
    return [None if old is None else _index(model.channels, old) for old in channels.taken.values()]


def _is_same(model: Plan, rows: Sequence[int | None], columns: Sequence[int | None]) -> bool:
    """Whether classes and channels are those of the model, in its order."""
    return rows == list(range(model.network.classes)) and columns == list(range(model.network.in_channels))


def _index(named: Sequence[Any], name: str) -> int:
    return [one.name for one in named].index(name)


def _input_weights(stored: Tensor, columns: Sequence[int | None], scale: float) -> Tensor:
    """The weights (F, C, D, H, W) of the first convolution for other channels."""
    known = [column for column in columns if column is not None]
    mean = (stored[:, known] if known else stored).mean(1)
    return scale * torch.stack([mean if column is None else stored[:, column] for column in columns], dim=1)


def _head_rows(stored: Tensor, rows: Sequence[int | None], generator: torch.Generator) -> Tensor:
    """The weights (K, F, 1, 1, 1) or biases (K,) of a head for other classes."""

    def new() -> Tensor:
        if stored.ndim == 1:
            return torch.zeros(())
        drawn = torch.randn(stored.shape[1:], generator=generator) * NEW_ROW * math.sqrt(2 / stored.shape[1])
        return drawn - drawn.mean()

    return torch.stack([stored[row] if row is not None else new().to(stored) for row in rows])
