"""Dice and cross-entropy, over all resolutions of a deeply supervised network; cross-entropy alone for a classifier.

Of a segmentation, logits are (B, K, D, H, W). Targets are class indices (B, D, H, W), class 0 being the background; or,
for K regions that may overlap and have no background, (B, K, D, H, W) with 1 inside and 0 outside. Where a target is
`IGNORED` the logits have no say in the loss, and their gradient is 0.

A loss is that of the whole batch, of which each of the `ranks` gives its part.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.config import IGNORED
from volseg.errors import UsageError
from volseg.training.ranks import ALONE, Ranks

SMOOTH = 1e-5


def soft_dice(logits: Tensor, target: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean soft Dice of the regions or foreground classes, each summed over the whole batch (so that a class missing
    from one sample does not swing the loss): 2 sum(p t) / (sum p + sum t). Float32, differentiable, 1 is perfect.
    """
    known = (target != IGNORED).float()
    # What is ignored is outside of all regions and, as background, of all classes that count.
    target = target.clamp(min=0)
    if _is_regions(logits, target):
        probabilities, truth, first = logits.float().sigmoid() * known, target.float(), 0
    else:
        probabilities, first = logits.float().softmax(dim=1) * known[:, None], 1
        # One byte a voxel and class, where `one_hot` takes eight; channels last as the logits are.
        truth = (target[..., None] == torch.arange(logits.shape[1], device=target.device)).movedim(-1, 1)
    over = (0, *range(2, logits.ndim))
    overlap = (probabilities * truth).sum(over)[first:]
    total = probabilities.sum(over)[first:] + truth.sum(over)[first:]
    overlap, total = ranks.sum(torch.stack((overlap, total))).unbind()
    return ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def cross_entropy(logits: Tensor, target: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean cross-entropy over all voxels that are not ignored, 0 if there is none; for regions the mean of theirs."""
    known = target != IGNORED
    if _is_regions(logits, target):
        weight = known.float()
        entropy = F.binary_cross_entropy_with_logits(logits.float(), target.float(), weight, reduction="sum")
    else:
        entropy = F.cross_entropy(logits.float(), target.long(), ignore_index=IGNORED, reduction="sum")
    entropy, count = ranks.sum(torch.stack((entropy, known.sum().to(entropy.dtype)))).unbind()
    return entropy / count.clamp(min=1)


def dice_and_cross_entropy(logits: Tensor, target: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """(1 - soft Dice) plus the mean cross-entropy; about K's logarithm plus 1 at random weights, 0 when perfect."""
    return 1.0 - soft_dice(logits, target, ranks) + cross_entropy(logits, target, ranks)


def classification_loss(logits: Tensor, target: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean cross-entropy of a `Classifier`'s logits (B, K) with class indices (B,); K's logarithm at random weights."""
    return cross_entropy(logits, target, ranks)


def supervised_loss(outputs: Tensor | Sequence[Tensor], target: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """The loss over all outputs, finest first: weights 1, 1/2, 1/4, ..., the coarsest left out, summing to 1.

    The weights are nnU-Net's (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z). Coarse targets take the
    nearest voxel, so that a label is never mixed.

    Raises:
        UsageError: logits that are not (B, K, D, H, W), as those of a `Classifier`.
    """
    if isinstance(outputs, Tensor):
        if outputs.ndim != 5:
            raise UsageError(
                f"The loss of a segmentation needs logits (B, K, D, H, W), found {tuple(outputs.shape)}. "
                "Train a Classifier with fit(..., loss=classification_loss)."
            )
        return dice_and_cross_entropy(outputs, target, ranks)
    used = outputs[:-1] if len(outputs) > 1 else outputs
    weights = [0.5**level for level in range(len(used))]
    loss = sum(
        weight * dice_and_cross_entropy(output, _nearest(target, output.shape[2:]), ranks)
        for weight, output in zip(weights, used, strict=True)
    )
    return torch.as_tensor(loss) / sum(weights)


def _is_regions(logits: Tensor, target: Tensor) -> bool:
    """Whether a target holds regions rather than class indices."""
    return target.ndim == logits.ndim


def _nearest(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Take every n-th voxel's centre: `target` (..., D, H, W) at a coarser `shape`."""
    whole = target.shape[-3:]
    if tuple(whole) == tuple(shape):
        return target
    coarse = F.interpolate(target.reshape(-1, 1, *whole).float(), size=tuple(shape), mode="nearest-exact")
    return coarse.reshape(*target.shape[:-3], *shape)
