"""The uncertainty of a result as a map: the entropy of the calibrated probabilities at each voxel, 0 to 1."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from volseg.config import Triple
from volseg.data.grid.geometry import GridMap
from volseg.modelfile import ModelCard

# Called with a plane, its rows, and their logits (K, rows, columns), as `volseg.inference.upsample.Sink`.
Write: TypeAlias = Callable[[int, slice, Tensor], None]


def entropy(logits: Tensor, regions: bool, temperature: float) -> Tensor:
    """The entropy of the probabilities of logits (K, ...), divided by its largest value: 0 certain, 1 undecided.

    Of classes that exclude each other, -sum(p log p) / log K. Of overlapping regions, the largest binary entropy of a
    region, divided by log 2.
    """
    scaled = logits / temperature
    if not regions:
        logs = torch.log_softmax(scaled, 0)
        return -(logs.exp() * logs).sum(0) / math.log(len(logits))
    yes, no = torch.nn.functional.logsigmoid(scaled), torch.nn.functional.logsigmoid(-scaled)
    return (-(yes.exp() * yes + no.exp() * no)).amax(0) / math.log(2)


def uncertainty_sink(
    wanted: bool, grid: GridMap, order: Triple, card: ModelCard
) -> tuple[Write | None, np.ndarray | None]:
    """A function that writes the entropy of logits, and the array that it fills; neither if they are not wanted.

    Logits are divided by the temperature of the model, 1 without a calibration.

    Args:
        wanted: whether they are.
        grid: the mapping between image space and network space; logits come on its oriented crop.
        order: its axes in stream order.
        card: of the model.

    Returns:
        The array is (I, J, K) float16. Voxels outside the crop stay 0: they are background without being computed.
    """
    if not wanted:
        return None, None
    temperature = card.calibration.temperature if card.calibration else 1.0
    stored = np.zeros(grid.stored_shape, np.float16, order="F" if grid.axes[order[0]] == 2 else "C")
    planes = grid.into(stored).transpose(order)

    def write(plane: int, rows: slice, logits: Tensor) -> None:
        found = entropy(logits, card.plan.regions, temperature).clamp_(0, 1)
        planes[plane, rows] = found.to(torch.float16).cpu().numpy()

    return write, stored
