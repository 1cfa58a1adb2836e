"""Dice and cross-entropy, over all resolutions of a deeply supervised network.

Logits are (B, K, D, H, W), targets (B, D, H, W) class indices; class 0 is the background.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.training.ranks import ALONE, Ranks

SMOOTH = 1e-5


def soft_dice(logits: Tensor, target: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean soft Dice of the foreground classes, each summed over the whole batch, of all ranks (so that a class missing
    from one sample does not swing the loss): 2 sum(p t) / (sum p + sum t). Float32, differentiable, 1 is perfect.
    """
    classes = logits.shape[1]
    probabilities = logits.float().softmax(dim=1)
    truth = F.one_hot(target.long(), classes).movedim(-1, 1).to(probabilities.dtype)
    over = (0, *range(2, logits.ndim))
    overlap = (probabilities * truth).sum(over)[1:]
    total = probabilities.sum(over)[1:] + truth.sum(over)[1:]
    overlap, total = ranks.sum(torch.stack((overlap, total))).unbind()
    return ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def dice_and_cross_entropy(logits: Tensor, target: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """(1 - soft Dice) plus the mean cross-entropy; about K's logarithm plus 1 at random weights, 0 when perfect."""
    entropy = F.cross_entropy(logits.float(), target.long(), reduction="sum")
    entropy, voxels = ranks.sum(torch.stack((entropy, entropy.new_tensor(target.numel())))).unbind()
    return 1.0 - soft_dice(logits, target, ranks) + entropy / voxels


def supervised_loss(outputs: Tensor | Sequence[Tensor], target: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """The loss over all outputs, finest first: weights 1, 1/2, 1/4, ..., the coarsest left out, summing to 1.

    It is that of the whole batch, of which each of the `ranks` gives its part.

    The weights are nnU-Net's (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z). Coarse targets take the
    nearest voxel, so that a label is never mixed.
    """
    if isinstance(outputs, Tensor):
        return dice_and_cross_entropy(outputs, target, ranks)
    used = outputs[:-1] if len(outputs) > 1 else outputs
    weights = [0.5**level for level in range(len(used))]
    loss = sum(
        weight * dice_and_cross_entropy(output, _nearest(target, output.shape[2:]), ranks)
        for weight, output in zip(weights, used, strict=True)
    )
    return torch.as_tensor(loss) / sum(weights)


def _nearest(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Take every n-th voxel's centre: `target` (B, D, H, W) at a coarser `shape`."""
    if tuple(target.shape[1:]) == tuple(shape):
        return target
    return F.interpolate(target[:, None].float(), size=tuple(shape), mode="nearest-exact")[:, 0]
