"""The loss against values computed by hand, and against MONAI's."""

import math

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional

from volseg.config import IGNORED
from volseg.errors import UsageError
from volseg.training.losses import (
    SMOOTH,
    SegmentationLoss,
    classification_loss,
    dice_and_cross_entropy,
    soft_dice,
    supervised_loss,
)


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """(1, K, 1, 1, N) logits whose softmax is `probabilities` (N rows of K)."""
    return torch.tensor(probabilities).log().T.reshape(1, -1, 1, 1, len(probabilities))


def test_soft_dice_of_two_voxels_by_hand():
    logits = logits_of([[0.25, 0.75], [0.5, 0.5]])
    target = torch.tensor([1, 0]).reshape(1, 1, 1, 2)
    # 2 * 0.75 / ((0.75 + 0.5) + 1)
    assert soft_dice(logits, target).item() == pytest.approx(1.5 / 2.25, abs=1e-4)


def test_loss_of_two_voxels_by_hand():
    logits = logits_of([[0.25, 0.75], [0.5, 0.5]])
    target = torch.tensor([1, 0]).reshape(1, 1, 1, 2)
    entropy = -(math.log(0.75) + math.log(0.5)) / 2
    assert dice_and_cross_entropy(logits, target).item() == pytest.approx(1 - 1.5 / 2.25 + entropy, abs=1e-4)


def test_soft_dice_is_monais_batch_dice():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 4, 5, 6, 7), torch.randint(0, 4, (3, 5, 6, 7))
    theirs = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(logits, target[:, None])
    assert soft_dice(logits, target).item() == pytest.approx(1 - theirs.item(), abs=1e-5)


def test_the_loss_of_a_perfect_prediction_is_zero():
    target = torch.randint(0, 3, (2, 4, 4, 4))
    logits = 50.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert dice_and_cross_entropy(logits, target).item() == pytest.approx(0, abs=1e-4)


def test_the_segmentation_loss_rejects_the_logits_of_a_classifier():
    with pytest.raises(UsageError, match=r"found \(2, 3\).*loss=classification_loss"):
        supervised_loss(torch.randn(2, 3), torch.tensor([1, 0]))


def test_classification_loss_of_two_clips_by_hand():
    logits = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    loss = classification_loss(logits.bfloat16(), torch.tensor([1, 0], dtype=torch.uint8))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2, abs=2e-3)


def test_deep_supervision_halves_the_weight_per_level_and_excludes_the_coarsest():
    torch.manual_seed(1)
    target = torch.randint(0, 2, (1, 8, 8, 8))
    outputs = [torch.randn(1, 2, size, size, size) for size in (8, 4, 2)]
    coarse = target[:, 1::2, 1::2, 1::2]
    expected = (2 / 3) * dice_and_cross_entropy(outputs[0], target) + (1 / 3) * dice_and_cross_entropy(
        outputs[1], coarse
    )
    assert supervised_loss(outputs, target).item() == pytest.approx(expected.item(), abs=1e-5)


def test_one_output_is_the_plain_loss():
    logits, target = torch.randn(1, 2, 4, 4, 4), torch.randint(0, 2, (1, 4, 4, 4))
    assert supervised_loss(logits, target) == dice_and_cross_entropy(logits, target)


def random_case(regions: bool, fraction_ignored: float, size: int = 6) -> tuple[Tensor, Tensor]:
    """Logits (2, 3, size, size, size) with gradients, and a target with a fraction of ignored voxels."""
    torch.manual_seed(int(regions))
    logits = 2 * torch.randn(2, 3, size, size, size)
    target = torch.randint(0, 2, logits.shape) if regions else torch.randint(0, 3, (2, size, size, size))
    ignored = torch.rand(2, size, size, size) < fraction_ignored
    target[ignored[:, None].expand_as(target) if regions else ignored] = IGNORED
    return logits.requires_grad_(), target.to(torch.int8)


def reference_loss(logits: np.ndarray, target: np.ndarray, regions: bool) -> float:
    """The loss voxel by voxel in float64, from the formulas of Dice and of cross-entropy."""
    overlap, total, entropies = np.zeros(3), np.zeros(3), []
    for sample, d, h, w in np.ndindex(logits.shape[0], *logits.shape[2:]):
        scores, truth = logits[sample, :, d, h, w], target[sample, ..., d, h, w]
        if (truth == IGNORED).all():
            continue
        if regions:
            probability, member = 1 / (1 + np.exp(-scores)), truth.astype(float)
            entropies += [-math.log(p if inside else 1 - p) for p, inside in zip(probability, member, strict=True)]
        else:
            probability, member = np.exp(scores) / np.exp(scores).sum(), np.eye(3)[truth]
            entropies += [-math.log(probability[truth])]
        overlap, total = overlap + probability * member, total + probability + member
    dice = (2 * overlap + SMOOTH) / (total + SMOOTH)
    return 1 - dice[0 if regions else 1 :].mean() + sum(entropies) / max(len(entropies), 1)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.97, 1.0])
def test_the_loss_equals_the_formulas_over_annotated_voxels(regions, fraction):
    logits, target = random_case(regions, fraction)
    expected = reference_loss(logits.detach().double().numpy(), target.numpy(), regions)
    assert dice_and_cross_entropy(logits, target, regions).item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_ignored_voxels_have_zero_gradient_and_annotated_voxels_have_not(regions, fraction):
    logits, target = random_case(regions, fraction)
    dice_and_cross_entropy(logits, target, regions).backward()
    ignored = (target == IGNORED).expand_as(logits) if regions else (target == IGNORED)[:, None].expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).all()


@pytest.mark.parametrize("regions", [False, True])
def test_logits_of_ignored_voxels_do_not_change_a_bit_of_the_loss(regions):
    logits, target = random_case(regions, 0.4)
    other = torch.where((target if regions else target[:, None]) == IGNORED, 30 * torch.randn_like(logits), logits)
    assert not torch.equal(other, logits)
    assert torch.equal(dice_and_cross_entropy(other, target, regions), dice_and_cross_entropy(logits, target, regions))


def test_without_ignored_voxels_the_loss_is_bitwise_the_plain_one():
    logits, target = random_case(False, 0.0, size=24)
    loss = dice_and_cross_entropy(logits, target.to(torch.uint8))
    again = logits.detach().clone().requires_grad_()
    probabilities = again.softmax(dim=1)
    truth = functional.one_hot(target.long(), 3).movedim(-1, 1).float()
    overlap, total = (
        (probabilities * truth).sum((0, 2, 3, 4))[1:],
        (probabilities.sum((0, 2, 3, 4))[1:] + truth.sum((0, 2, 3, 4))[1:]),
    )
    plain = 1.0 - ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean() + functional.cross_entropy(again, target.long())
    assert torch.equal(loss, plain)
    loss.backward()
    plain.backward()
    assert torch.equal(logits.grad, again.grad)


@pytest.mark.parametrize("regions", [False, True])
def test_deep_supervision_uses_the_nearest_target_for_regions_and_ignored_voxels_too(regions):
    fine, target = random_case(regions, 0.4, size=8)
    coarse, nearest = torch.randn(2, 3, 4, 4, 4), target[..., 1::2, 1::2, 1::2]
    expected = (
        2 * dice_and_cross_entropy(fine, target, regions) + dice_and_cross_entropy(coarse, nearest, regions)
    ) / 3
    found = SegmentationLoss(regions=regions)([fine, coarse, torch.randn(2, 3, 2, 2, 2)], target)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
