"""Losses: Dice and cross-entropy, over all resolutions of a deeply supervised network; cross-entropy for a classifier.

For segmentation, logits are (B, K, D, H, W). A target holds class indices (B, D, H, W), or (B, 1, D, H, W) as in MONAI,
class 0 being the background. With `regions=True` it is (B, K, D, H, W), 1 inside and 0 outside: K regions that may
overlap, without background. Voxels whose target is `IGNORED` (-1) are excluded from the loss; their gradient is 0.

Partial labels: `annotated` (B, labels) bool says which foreground labels somebody looked for in each sample; None means
all of them. A label that nobody looked for is no background there, so the losses are those of `merged_logits`, the
marginal loss of Shi et al. 2021, "Marginal loss and exclusion loss for partially supervised multi-organ segmentation"
(arXiv 2007.03868): with the classes U that are not annotated in a sample, q_0 = p_0 + sum of p_u over U takes the place
of the background's probability p_0, and cross-entropy and Dice are computed of q_0 and the p_k of the annotated
classes. Regions that are not annotated in a sample are left out of it. With all labels annotated the losses are
bit for bit those without `annotated`.

A loss is that of the global batch; each of the `ranks` holds a shard of it.

>>> import torch
>>> from volseg.losses import SegmentationLoss, soft_dice
>>> target = torch.randint(0, 3, (2, 8, 8, 8))
>>> perfect = 100.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
>>> round(soft_dice(perfect, target).item(), 3), round(SegmentationLoss("dice_ce")(perfect, target).item(), 3)
(1.0, 0.0)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.config import IGNORED
from volseg.device import ran_out_of_memory
from volseg.errors import ConfigError, UsageError
from volseg.training.ranks import SINGLE_PROCESS, Ranks

SMOOTH = 1e-5
# From logits (B, K, D, H, W) and their target to a scalar.
PlainLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Term(NamedTuple):
    """A part of a loss that is computed from sums over the global batch.

    Attributes:
        sums: those over this rank's shard, float32 of any shape.
        value: the scalar for the sums over all ranks.
    """

    sums: Tensor
    value: Callable[[Tensor], Tensor]


def merged_logits(logits: Tensor, annotated: Tensor | None) -> Tensor:
    """Logits whose softmax has the probability of labels that nobody looked for as part of the background's.

    z_0' = log(exp z_0 + sum of exp z_u), z_u' = -inf, over the classes u that are not annotated in a sample.

    Args:
        logits: (B, K, ...), class 0 being the background.
        annotated: (B, K - 1) bool; None: all.

    Returns:
        (B, K, ...); the logits themselves where all labels are annotated, else float32.
    """
    if annotated is None or bool(annotated.all()):
        return logits
    logits = logits.float()
    others = _over_voxels(annotated, logits)
    joins = torch.cat((torch.ones_like(others[:, :1]), ~others), dim=1)
    # The background always joins, so no voxel has -inf alone, whose gradient would be nan.
    background = logits.masked_fill(~joins, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat((background, logits[:, 1:].masked_fill(~others, -torch.inf)), dim=1)


def soft_dice(
    logits: Tensor,
    target: Tensor,
    regions: bool = False,
    ranks: Ranks = SINGLE_PROCESS,
    annotated: Tensor | None = None,
) -> Tensor:
    """Mean soft Dice of the foreground classes or regions: 2 sum(p t) / (sum p + sum t), float32, 1 is perfect.

    Each class is summed over the whole batch, so that a class missing from one sample does not dominate the loss. With
    partial labels over those samples in which it is annotated, and classes without such a sample are left out.

    Raises:
        UsageError: the shape of the target or of `annotated` does not fit the logits.
    """
    return _summed([_dice_term(logits, target, regions, annotated)], ranks)[0]


def _dice_term(logits: Tensor, target: Tensor, regions: bool, annotated: Tensor | None) -> Term:
    target = checked_target(logits, target, regions)
    _check_annotated(logits, annotated, regions)
    counted = (target != IGNORED).float()
    # Ignored voxels are outside of all regions and, as background, of all classes that count.
    target = target.clamp(min=0)
    if regions:
        probabilities, truth, first = logits.float().sigmoid() * counted, target.float(), 0
    else:
        probabilities = merged_logits(logits, annotated).float().softmax(dim=1) * counted[:, None]
        first = 1
        # One byte a voxel and class, where `one_hot` takes eight; channels last as the logits are.
        truth = (target[..., None] == torch.arange(logits.shape[1], device=target.device)).movedim(-1, 1)
    over = (0, *range(2, logits.ndim))
    if annotated is None:
        overlap = (probabilities * truth).sum(over)[first:]
        total = probabilities.sum(over)[first:] + truth.sum(over)[first:]
        return Term(torch.stack((overlap, total)), lambda sums: _dice_of(*sums.unbind()).mean())
    known = _over_voxels(annotated, logits)
    probabilities, truth = probabilities[:, first:] * known, truth[:, first:] * known
    overlap = (probabilities * truth).sum(over)
    total = probabilities.sum(over) + truth.sum(over)
    samples = annotated.sum(0).to(overlap.dtype)
    return Term(torch.stack((overlap, total, samples)), _dice_of_known)


def _dice_of(overlap: Tensor, total: Tensor) -> Tensor:
    """Soft Dice of each class from sum(p t) and sum(p) + sum(t)."""
    return (2 * overlap + SMOOTH) / (total + SMOOTH)


def _dice_of_known(sums: Tensor) -> Tensor:
    """Mean soft Dice of the classes that are annotated in some sample: the third sum counts these samples."""
    overlap, total, samples = sums.unbind()
    dice = _dice_of(overlap, total)
    return dice[samples > 0].mean() if bool((samples > 0).any()) else 1.0 + 0.0 * dice.sum()


def dice_loss(
    logits: Tensor,
    target: Tensor,
    regions: bool = False,
    ranks: Ranks = SINGLE_PROCESS,
    annotated: Tensor | None = None,
) -> Tensor:
    """1 - soft Dice, see `soft_dice`."""
    return _summed([_dice_loss_term(logits, target, regions, annotated)], ranks)[0]


def _dice_loss_term(logits: Tensor, target: Tensor, regions: bool, annotated: Tensor | None) -> Term:
    term = _dice_term(logits, target, regions, annotated)
    return Term(term.sums, lambda sums: 1.0 - term.value(sums))


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    regions: bool = False,
    ranks: Ranks = SINGLE_PROCESS,
    annotated: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over all voxels that are not ignored, 0 if there is none; for regions binary cross-entropy.

    With partial labels, that of `merged_logits`; for regions over those that are annotated in a sample.

    Raises:
        UsageError: the shape of the target or of `annotated` does not fit the logits.
    """
    return _summed([_entropy_term(logits, target, regions, annotated)], ranks)[0]


def _entropy_term(logits: Tensor, target: Tensor, regions: bool, annotated: Tensor | None) -> Term:
    target = checked_target(logits, target, regions)
    counted = target != IGNORED
    if annotated is not None:
        _check_annotated(logits, annotated, regions)
    if regions:
        if annotated is not None:
            counted = counted & _over_voxels(annotated, logits)
        weight = counted.float()
        entropy = F.binary_cross_entropy_with_logits(logits.float(), target.float(), weight, reduction="sum")
    else:
        merged = merged_logits(logits, annotated).float()
        entropy = F.cross_entropy(merged, target.long(), ignore_index=IGNORED, reduction="sum")
    sums = torch.stack((entropy, counted.sum().to(entropy.dtype)))
    return Term(sums, lambda summed: summed[0] / summed[1].clamp(min=1))


def dice_and_cross_entropy(
    logits: Tensor,
    target: Tensor,
    regions: bool = False,
    ranks: Ranks = SINGLE_PROCESS,
    annotated: Tensor | None = None,
) -> Tensor:
    """(1 - soft Dice) plus the mean cross-entropy; about log(K) + 1 at random weights, 0 when perfect."""
    terms = [term(logits, target, regions, annotated) for term in TERMS[dice_and_cross_entropy]]
    return reduce(add, _summed(terms, ranks))


def _summed(terms: Sequence[Term], ranks: Ranks) -> list[Tensor]:
    """The values of terms, from the sums of all of them over the ranks."""
    summed = ranks.sum_all([term.sums for term in terms])
    return [term.value(sums) for term, sums in zip(terms, summed, strict=True)]


def classification_loss(logits: Tensor, target: Tensor, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """Mean cross-entropy of a `Classifier`'s logits (B, K) with class indices (B,); log(K) at random weights."""
    return cross_entropy(logits, target, ranks=ranks)


# By `training.loss`. Each takes (logits, target, regions, ranks), and with partial labels the keyword annotated.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "dice_ce": dice_and_cross_entropy,
    "dice": dice_loss,
    "ce": cross_entropy,
}
# The terms that these losses are the sum of, so that the sums of all resolutions are added up over the ranks at once.
TERMS: dict[Callable[..., Tensor], tuple[Callable[..., Term], ...]] = {
    dice_and_cross_entropy: (_dice_loss_term, _entropy_term),
    dice_loss: (_dice_loss_term,),
    cross_entropy: (_entropy_term,),
}


class SegmentationLoss(nn.Module):
    """A loss over the outputs of a segmentation network, with deep supervision where there are several.

    The resolutions have the weights 1, 1/2, 1/4, ..., the coarsest excluded, normalised to 1, as in nnU-Net (Isensee et
    al. 2021, doi 10.1038/s41592-020-01008-z). Coarse targets take the nearest voxel, so that labels are never mixed.

    Args:
        loss: a name in `LOSSES`; or a function of (logits, target), each as above, of one resolution. On several ranks
            a function sees the shard of its rank, and gradients are averaged. Class indices are int64. With partial
            labels it has to have a keyword `annotated`, see the top of this module.
        regions: whether classes are regions that may overlap.

    Raises:
        ConfigError: there is no loss of that name.
    """

    def __init__(self, loss: str | PlainLoss = "dice_ce", regions: bool = False) -> None:
        super().__init__()
        if isinstance(loss, str) and loss not in LOSSES:
            raise ConfigError(f"There is no loss {loss!r} (training.loss); known are {', '.join(LOSSES)}.")
        self.loss, self.regions = loss, regions

    def forward(
        self,
        outputs: Tensor | Sequence[Tensor],
        target: Tensor,
        ranks: Ranks = SINGLE_PROCESS,
        annotated: Tensor | None = None,
    ) -> Tensor:
        """The loss as a scalar.

        Args:
            outputs: logits (B, K, D, H, W), or a list of them, finest first, as a `UNet` gives in training.
            target: of the finest resolution.
            ranks: the processes that share the batch.
            annotated: (B, labels) bool: the labels that somebody looked for in each sample; None: all. Given on all
                ranks or on none.

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
        used = every[:-1] if len(every) > 1 else every
        losses = self._of_all(used, [_nearest(target, output.shape[2:]) for output in used], ranks, annotated)
        if isinstance(outputs, Tensor):
            return losses[0]
        weights = [0.5**level for level in range(len(used))]
        loss = sum(weight * value for weight, value in zip(weights, losses, strict=True))
        return torch.as_tensor(loss) / sum(weights)

    def _of_all(
        self, outputs: Sequence[Tensor], targets: Sequence[Tensor], ranks: Ranks, annotated: Tensor | None
    ) -> list[Tensor]:
        """The loss of each resolution."""
        terms = TERMS.get(LOSSES[self.loss]) if isinstance(self.loss, str) else None
        each = list(zip(outputs, targets, strict=True))
        if terms is None:
            return [self._of(output, target, ranks, annotated) for output, target in each]
        values = _summed([term(*one, self.regions, annotated) for one in each for term in terms], ranks)
        return [reduce(add, values[first : first + len(terms)]) for first in range(0, len(values), len(terms))]

    def _of(self, logits: Tensor, target: Tensor, ranks: Ranks, annotated: Tensor | None) -> Tensor:
        """The loss of one resolution."""
        partial = {} if annotated is None else {"annotated": annotated}
        if partial:
            require_partial_labels(LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)
        if isinstance(self.loss, str):
            return LOSSES[self.loss](logits, target, self.regions, ranks, **partial)
        target = target if self.regions else target.long()
        try:
            loss = self.loss(logits, target, **partial)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            if ran_out_of_memory(error):
                raise
            given = f"logits {tuple(logits.shape)} and a target {tuple(target.shape)} of {target.dtype}"
            raise UsageError(f"The loss function raised {type(error).__name__} for {given}: {error}") from error
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UsageError(f"The loss function returned {found}, expected a tensor with one number.")
        if logits.requires_grad and not loss.requires_grad:
            raise UsageError(
                "The loss function returned a number that does not depend on the logits, so nothing can be learned. "
                "Compute it with operations of torch, without detach, argmax or numpy."
            )
        return loss


def require_partial_labels(loss: Callable[..., Tensor]) -> None:
    """Check that a function, which may be the caller's, knows of labels that nobody looked for in a sample.

    Raises:
        UsageError: it has no keyword `annotated`, so it would teach that such labels are background.
    """
    try:
        # The call of a module takes anything, and gives it to `forward`.
        called = loss.forward if isinstance(loss, nn.Module) else loss
        keywords: Mapping[str, inspect.Parameter] = inspect.signature(called).parameters
    except (TypeError, ValueError):
        keywords = {}
    if "annotated" not in keywords and not any(one.kind is one.VAR_KEYWORD for one in keywords.values()):
        raise UsageError(
            "The dataset has partial labels, but the loss function has no keyword annotated, (B, labels) bool, so it "
            "would take labels that nobody looked for as background. Add it, or leave out the loss."
        )


def supervised_loss(
    outputs: Any, target: Tensor, ranks: Ranks = SINGLE_PROCESS, annotated: Tensor | None = None
) -> Tensor:
    """`SegmentationLoss()` for class indices: Dice and cross-entropy with deep supervision."""
    loss: Tensor = SegmentationLoss()(outputs, target, ranks, annotated)
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


def _over_voxels(annotated: Tensor, logits: Tensor) -> Tensor:
    """`annotated` (B, labels) as (B, labels, 1, ...), to be combined with logits."""
    return annotated.reshape(*annotated.shape, *(1,) * (logits.ndim - 2))


def _check_annotated(logits: Tensor, annotated: Tensor | None, regions: bool) -> None:
    """Reject `annotated` of another shape or type than (B, labels) bool."""
    expected = (logits.shape[0], logits.shape[1] - (not regions))
    if annotated is not None and (tuple(annotated.shape) != expected or annotated.dtype != torch.bool):
        raise UsageError(
            f"annotated is {annotated.dtype} {tuple(annotated.shape)}, expected torch.bool {expected}: for each "
            "sample, whether each foreground label was looked for."
        )


def _nearest(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Take every n-th voxel's centre: `target` (..., D, H, W) at a coarser `shape`."""
    whole = target.shape[-3:]
    if tuple(whole) == tuple(shape):
        return target
    coarse = F.interpolate(target.reshape(-1, 1, *whole).float(), size=tuple(shape), mode="nearest-exact")
    return coarse.reshape(*target.shape[:-3], *shape).to(target.dtype)
