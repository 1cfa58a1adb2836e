"""Losses: Dice and cross-entropy, over all resolutions of a deeply supervised network; cross-entropy for a classifier.

For segmentation, logits are (B, K, D, H, W). A target holds class indices (B, D, H, W), or (B, 1, D, H, W) as in MONAI,
class 0 being the background. With `regions=True` it is (B, K, D, H, W), 1 inside and 0 outside: K regions that may
overlap, without background. Voxels whose target is `IGNORED` (-1) are excluded from the loss; their gradient is 0.

A loss is that of the global batch; each of the `ranks` holds a shard of it.

>>> import torch
>>> from volseg.losses import SegmentationLoss, soft_dice
>>> target = torch.randint(0, 3, (2, 8, 8, 8))
>>> perfect = 100.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
>>> round(soft_dice(perfect, target).item(), 3), round(SegmentationLoss("dice_ce")(perfect, target).item(), 3)
(1.0, 0.0)
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.config import IGNORED
from volseg.errors import ConfigError, UsageError
from volseg.training.ranks import SINGLE_PROCESS, Ranks

SMOOTH = 1e-5
# From logits (B, K, D, H, W) and their target to a scalar.
PlainLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def soft_dice(logits: Tensor, target: Tensor, regions: bool = False, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """Mean soft Dice of the foreground classes or regions: 2 sum(p t) / (sum p + sum t), float32, 1 is perfect.

    Each class is summed over the whole batch, so that a class missing from one sample does not dominate the loss.

    Raises:
        UsageError: the shape of the target does not fit the logits.
    """
    target = checked_target(logits, target, regions)
    annotated = (target != IGNORED).float()
    # Ignored voxels are outside of all regions and, as background, of all classes that count.
    target = target.clamp(min=0)
    if regions:
        probabilities, truth, first = logits.float().sigmoid() * annotated, target.float(), 0
    else:
        probabilities, first = logits.float().softmax(dim=1) * annotated[:, None], 1
        # One byte a voxel and class, where `one_hot` takes eight; channels last as the logits are.
        truth = (target[..., None] == torch.arange(logits.shape[1], device=target.device)).movedim(-1, 1)
    over = (0, *range(2, logits.ndim))
    overlap = (probabilities * truth).sum(over)[first:]
    total = probabilities.sum(over)[first:] + truth.sum(over)[first:]
    overlap, total = ranks.sum(torch.stack((overlap, total))).unbind()
    return ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def dice_loss(logits: Tensor, target: Tensor, regions: bool = False, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """1 - soft Dice, see `soft_dice`."""
    return 1.0 - soft_dice(logits, target, regions, ranks)


def cross_entropy(logits: Tensor, target: Tensor, regions: bool = False, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """Mean cross-entropy over all voxels that are not ignored, 0 if there is none; for regions binary cross-entropy.

    Raises:
        UsageError: the shape of the target does not fit the logits.
    """
    target = checked_target(logits, target, regions)
    annotated = target != IGNORED
    if regions:
        weight = annotated.float()
        entropy = F.binary_cross_entropy_with_logits(logits.float(), target.float(), weight, reduction="sum")
    else:
        entropy = F.cross_entropy(logits.float(), target.long(), ignore_index=IGNORED, reduction="sum")
    entropy, count = ranks.sum(torch.stack((entropy, annotated.sum().to(entropy.dtype)))).unbind()
    return entropy / count.clamp(min=1)


def dice_and_cross_entropy(
    logits: Tensor, target: Tensor, regions: bool = False, ranks: Ranks = SINGLE_PROCESS
) -> Tensor:
    """(1 - soft Dice) plus the mean cross-entropy; about log(K) + 1 at random weights, 0 when perfect."""
    return 1.0 - soft_dice(logits, target, regions, ranks) + cross_entropy(logits, target, regions, ranks)


def classification_loss(logits: Tensor, target: Tensor, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """Mean cross-entropy of a `Classifier`'s logits (B, K) with class indices (B,); log(K) at random weights."""
    return cross_entropy(logits, target, ranks=ranks)


# By `training.loss`. Each takes (logits, target, regions, ranks).
LOSSES: dict[str, Callable[..., Tensor]] = {
    "dice_ce": dice_and_cross_entropy,
    "dice": dice_loss,
    "ce": cross_entropy,
}


class SegmentationLoss(nn.Module):
    """A loss over the outputs of a segmentation network, with deep supervision where there are several.

    The resolutions have the weights 1, 1/2, 1/4, ..., the coarsest excluded, normalised to 1, as in nnU-Net (Isensee et
    al. 2021, doi 10.1038/s41592-020-01008-z). Coarse targets take the nearest voxel, so that labels are never mixed.

    Args:
        loss: a name in `LOSSES`; or a function of (logits, target), each as above, of one resolution. On several ranks
            a function sees the shard of its rank, and gradients are averaged. Class indices are int64.
        regions: whether classes are regions that may overlap.

    Raises:
        ConfigError: there is no loss of that name.
    """

    def __init__(self, loss: str | PlainLoss = "dice_ce", regions: bool = False) -> None:
        super().__init__()
        if isinstance(loss, str) and loss not in LOSSES:
            raise ConfigError(f"There is no loss {loss!r} (training.loss); known are {', '.join(LOSSES)}.")
        self.loss, self.regions = loss, regions

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
        """The loss as a scalar.

        Args:
            outputs: logits (B, K, D, H, W), or a list of them, finest first, as a `UNet` gives in training.
            target: of the finest resolution.
            ranks: the processes that share the batch.

        Raises:
            UsageError: logits that are not (B, K, D, H, W), such as those of a `Classifier`, or a target that does not
                fit them.
        """
        every = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if every[0].ndim != 5:
            raise UsageError(
                f"A segmentation loss needs logits (B, K, D, H, W), found {tuple(every[0].shape)}. "
                "Train a Classifier with fit(..., loss=classification_loss)."
            )
        target = checked_target(every[0], target, self.regions)
        if isinstance(outputs, Tensor):
            return self._of(outputs, target, ranks)
        used = every[:-1] if len(every) > 1 else every
        weights = [0.5**level for level in range(len(used))]
        loss = sum(
            weight * self._of(output, _nearest(target, output.shape[2:]), ranks)
            for weight, output in zip(weights, used, strict=True)
        )
        return torch.as_tensor(loss) / sum(weights)

    def _of(self, logits: Tensor, target: Tensor, ranks: Ranks) -> Tensor:
        """The loss of one resolution."""
        if isinstance(self.loss, str):
            return LOSSES[self.loss](logits, target, self.regions, ranks)
        loss = self.loss(logits, target if self.regions else target.long())
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UsageError(f"The loss function returned {found}, expected a tensor with one number.")
        return loss


def supervised_loss(outputs: Any, target: Tensor, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """`SegmentationLoss()` for class indices: Dice and cross-entropy with deep supervision."""
    loss: Tensor = SegmentationLoss()(outputs, target, ranks)
    return loss


def checked_target(logits: Tensor, target: Tensor, regions: bool) -> Tensor:
    """The target in the shape that the losses compute with.

    Args:
        logits: (B, K, ...).
        target: class indices (B, ...) or (B, 1, ...); with `regions` (B, K, ...).
        regions: whether classes are regions that may overlap.

    Returns:
        (B, ...), or with `regions` (B, K, ...).

    Raises:
        UsageError: another shape; or class indices for logits of a single class, whose softmax is always 1.
    """
    whole, found = tuple(logits.shape), tuple(target.shape)
    if regions:
        if found != whole:
            raise UsageError(f"With regions the target has the shape of the logits, {whole}; found {found}.")
        return target
    if whole[1] == 1:
        raise UsageError(
            "The logits have one class, whose softmax is always 1, so nothing would be learned. Use two classes "
            "(background and foreground), or regions=True with a target (B, 1, D, H, W) of 0 and 1."
        )
    if found == (whole[0], 1, *whole[2:]):
        return target[:, 0]
    if found != (whole[0], *whole[2:]):
        hint = " It may be one-hot: pass target.argmax(1), or regions=True for overlapping regions."
        raise UsageError(
            f"The target has shape {found}, expected class indices {(whole[0], *whole[2:])} for logits {whole}."
            f"{hint if found == whole else ''}"
        )
    return target


def _nearest(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Take every n-th voxel's centre: `target` (..., D, H, W) at a coarser `shape`."""
    whole = target.shape[-3:]
    if tuple(whole) == tuple(shape):
        return target
    coarse = F.interpolate(target.reshape(-1, 1, *whole).float(), size=tuple(shape), mode="nearest-exact")
    return coarse.reshape(*target.shape[:-3], *shape).to(target.dtype)
