"""The loss against numbers worked out by hand, and against MONAI's."""

import math

import pytest
import torch
from monai.losses import DiceLoss

from volseg.training.losses import classification_loss, dice_and_cross_entropy, soft_dice, supervised_loss


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


def test_a_perfect_answer_costs_nothing():
    target = torch.randint(0, 3, (2, 4, 4, 4))
    logits = 50.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert dice_and_cross_entropy(logits, target).item() == pytest.approx(0, abs=1e-4)


def test_classification_loss_of_two_clips_by_hand():
    logits = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    loss = classification_loss(logits.bfloat16(), torch.tensor([1, 0], dtype=torch.uint8))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2, abs=2e-3)


def test_deep_supervision_weighs_by_halves_and_leaves_out_the_coarsest():
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
