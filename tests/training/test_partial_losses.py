"""The marginal loss of partial labels, against values computed by hand and against the softmax of merged classes."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from volseg.config import IGNORED, TrainingConfig
from volseg.errors import UsageError
from volseg.networks import UNet
from volseg.training.budget import Budget
from volseg.training.loop import fit
from volseg.training.losses import (
    LOSSES,
    SMOOTH,
    SegmentationLoss,
    cross_entropy,
    merged_logits,
    require_partial_labels,
    soft_dice,
)
from volseg.training.ranks import SINGLE_PROCESS, Ranks
from volseg.training.state import TrainingState


def logits_of(probabilities: list[list[float]]) -> Tensor:
    """(1, K, 1, 1, N) logits whose softmax is `probabilities` (N rows of K)."""
    return torch.tensor(probabilities).log().T.reshape(1, -1, 1, 1, len(probabilities))


def flags(*rows: list[bool]) -> Tensor:
    return torch.tensor(rows)


# Three voxels of background, a, b: the target is background, a, background.
LOGITS = logits_of([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.7, 0.2, 0.1]])
TARGET = torch.tensor([0, 1, 0]).reshape(1, 1, 1, 3)
ONLY_A = flags([True, False])


def test_cross_entropy_by_hand_takes_the_unannotated_label_as_part_of_the_background():
    expected = -(math.log(0.2 + 0.5) + math.log(0.6) + math.log(0.7 + 0.1)) / 3
    assert cross_entropy(LOGITS, TARGET, annotated=ONLY_A).item() == pytest.approx(expected, abs=1e-6)


def test_soft_dice_by_hand_is_that_of_the_annotated_label_alone():
    expected = (2 * 0.6 + SMOOTH) / (0.3 + 0.6 + 0.2 + 1 + SMOOTH)
    assert soft_dice(LOGITS, TARGET, annotated=ONLY_A).item() == pytest.approx(expected, abs=1e-6)


def test_soft_dice_by_hand_sums_a_label_over_the_samples_that_have_it_annotated():
    # The second sample has all of b, and only b annotated; the third both.
    logits = torch.cat((LOGITS, LOGITS, LOGITS))
    target = torch.cat((TARGET, 2 * torch.ones_like(TARGET), TARGET))
    annotated = flags([True, False], [False, True], [True, True])
    a = (2 * (0.6 + 0.6) + SMOOTH) / (2 * (0.3 + 0.6 + 0.2 + 1) + SMOOTH)
    b = (2 * (0.5 + 0.3 + 0.1) + SMOOTH) / (2 * (0.5 + 0.3 + 0.1) + 3 + SMOOTH)
    assert soft_dice(logits, target, annotated=annotated).item() == pytest.approx((a + b) / 2, abs=1e-6)


def test_regions_by_hand_leave_out_those_that_are_not_annotated():
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.7]]).reshape(1, 2, 1, 1, 2)
    target = torch.tensor([[1, 0], [0, 1]]).reshape(1, 2, 1, 1, 2)
    p, q = (1 / (1 + math.exp(-z)) for z in (0.3, -1.0))
    found = cross_entropy(logits, target, regions=True, annotated=ONLY_A)
    assert found.item() == pytest.approx(-(math.log(p) + math.log(1 - q)) / 2, abs=1e-6)
    dice = soft_dice(logits, target, regions=True, annotated=ONLY_A)
    assert dice.item() == pytest.approx((2 * p + SMOOTH) / (p + q + 1 + SMOOTH), abs=1e-6)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_gradient_of_a_joined_class_is_that_of_the_merged_softmax(loss):
    """The loss of K classes with u joined equals that of K - 1 classes whose first logit is log(exp z_0 + exp z_u)."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, 5, dtype=torch.float32)
    target = torch.randint(0, 3, (2, 3, 4, 5))
    whole = logits.clone().requires_grad_()
    LOSSES[loss](whole, target, annotated=flags([True, True, False], [True, True, False])).backward()
    parts = logits.clone().requires_grad_()
    background = torch.logaddexp(parts[:, 0], parts[:, 3])
    LOSSES[loss](torch.stack((background, parts[:, 1], parts[:, 2]), dim=1), target).backward()
    torch.testing.assert_close(whole.grad, parts.grad, rtol=1e-5, atol=1e-7)
    assert whole.grad[:, 3].abs().min() > 0
    # It is the background's, in proportion to the probabilities.
    ratio = (logits[:, 3] - logits[:, 0]).exp()
    torch.testing.assert_close(whole.grad[:, 3], ratio * whole.grad[:, 0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_nothing_tells_an_unannotated_label_from_the_background(loss):
    """Probability that moves between the background and the label changes nothing."""
    torch.manual_seed(1)
    logits, target = torch.randn(1, 3, 4, 4, 4), torch.randint(0, 2, (1, 4, 4, 4))
    moved = logits.clone()
    moved[:, 0], moved[:, 2] = logits[:, 2], logits[:, 0]
    one, other = (LOSSES[loss](each, target, annotated=ONLY_A).item() for each in (logits, moved))
    assert one == pytest.approx(other, abs=1e-6)
    if loss != "dice":
        assert LOSSES[loss](logits, target).item() != pytest.approx(LOSSES[loss](moved, target).item(), abs=1e-3)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_with_all_labels_annotated_loss_and_gradient_are_the_same_bits(loss, regions):
    torch.manual_seed(2)
    outputs = [torch.randn(3, 4, size, size, size, requires_grad=True) for size in (8, 4, 2)]
    target = torch.randint(-1, 2, (3, 4, 8, 8, 8)) if regions else torch.randint(-1, 4, (3, 8, 8, 8))
    of = SegmentationLoss(loss, regions)
    labels = 4 if regions else 3
    found = []
    for annotated in (None, torch.ones(3, labels, dtype=torch.bool)):
        value = of(outputs, target, SINGLE_PROCESS, annotated)
        found.append((value, *torch.autograd.grad(value, outputs[:2])))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_sample_with_all_labels_is_the_same_bits_beside_one_without():
    torch.manual_seed(3)
    logits = torch.randn(2, 3, 4, 4, 4)
    merged = merged_logits(logits, flags([True, True], [False, True]))
    assert torch.equal(merged[0], logits[0])
    assert torch.isneginf(merged[1, 1]).all()
    assert torch.equal(merged[1, 2], logits[1, 2])


def test_ignored_voxels_have_no_gradient_and_the_coarse_outputs_are_marginal_too():
    torch.manual_seed(4)
    outputs = [torch.randn(2, 3, size, size, size, requires_grad=True) for size in (8, 4, 2)]
    target = torch.randint(0, 2, (2, 8, 8, 8))
    target[0, :4] = IGNORED
    annotated = flags([True, False], [True, True])
    SegmentationLoss("dice_ce")(outputs, target, SINGLE_PROCESS, annotated).backward()
    assert not outputs[0].grad[0, :, :4].any()
    assert outputs[0].grad[0, :, 4:].any()
    ratio = (outputs[1].detach()[0, 2] - outputs[1].detach()[0, 0]).exp()
    torch.testing.assert_close(outputs[1].grad[0, 2], ratio * outputs[1].grad[0, 0], rtol=1e-4, atol=1e-7)
    assert all(output.grad.isfinite().all() for output in outputs[:2])


def test_a_batch_without_any_annotated_region_teaches_nothing():
    logits = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    target = torch.zeros(1, 2, 4, 4, 4)
    loss = SegmentationLoss("dice_ce", regions=True)(logits, target, SINGLE_PROCESS, flags([False, False]))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@dataclass(frozen=True)
class OtherRank(Ranks):
    """Stands for two ranks: what `sum` is given is kept, or added to what the other rank has given."""

    world: int = 2
    others: list[Tensor] | None = None
    given: list[Tensor] = field(default_factory=list)

    def sum(self, value: Tensor) -> Tensor:
        self.given.append(value.detach())
        return value if self.others is None else value + self.others[len(self.given) - 1]


@pytest.mark.parametrize("regions", [False, True])
def test_two_ranks_with_different_annotated_labels_have_the_loss_of_the_whole_batch(regions):
    torch.manual_seed(5)
    logits = torch.randn(2, 3, 4, 4, 4)
    target = torch.randint(0, 2, logits.shape if regions else (2, 4, 4, 4))
    annotated = flags([True, False, True], [False, False, True]) if regions else flags([True, False], [True, True])
    of = SegmentationLoss("dice_ce", regions)
    alone = of(logits, target, SINGLE_PROCESS, annotated)
    other = OtherRank()
    of(logits[1:], target[1:], other, annotated[1:])
    shared = of(logits[:1], target[:1], OtherRank(others=other.given), annotated[:1])
    assert shared.item() == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_ranks_add_up_the_sums_of_all_resolutions_at_once(loss, partial):
    torch.manual_seed(7)
    sizes = (8, 4, 2, 1)
    outputs = [torch.randn(2, 3, size, size, size) for size in sizes]
    target = torch.randint(0, 3, (2, 8, 8, 8))
    annotated = flags([True, False], [True, True]) if partial else None
    of = SegmentationLoss(loss)
    alone = of(outputs, target, SINGLE_PROCESS, annotated)
    one, other = OtherRank(), OtherRank()
    for rank, part in ((one, slice(0, 1)), (other, slice(1, 2))):
        of([output[part] for output in outputs], target[part], rank, annotated[part] if partial else None)
        assert len(rank.given) == 1
    whole = OtherRank(others=other.given)
    shared = of([output[:1] for output in outputs], target[:1], whole, annotated[:1] if partial else None)
    assert shared.item() == pytest.approx(alone.item(), abs=1e-5)


def test_the_loop_hands_the_annotated_labels_to_the_loss():
    torch.manual_seed(6)
    network = UNet(in_channels=1, classes=3, features=[4, 8])
    seen = []

    def loss(outputs, target, ranks, annotated=None):
        seen.append(annotated)
        return SegmentationLoss()(outputs, target, ranks, annotated)

    image, label = torch.randn(2, 1, 8, 8, 8), torch.zeros(2, 8, 8, 8, dtype=torch.uint8)
    batches = [{"image": image, "label": label, "annotated": flags([True, False], [True, True])}] * 2
    config = TrainingConfig(validations=0, precision="fp32")
    fit(TrainingState(network, config, SINGLE_PROCESS), batches, Budget(steps=2), config, loss=loss)
    assert [one.tolist() for one in seen] == [[[True, False], [True, True]]] * 2


def test_a_loss_of_the_callers_has_to_know_of_partial_labels():
    def plain(logits, target):
        return logits.mean() + 0 * target.sum()

    def knowing(logits, target, annotated=None):
        return logits.mean() * annotated.float().mean()

    with pytest.raises(UsageError, match=r"partial labels.*no keyword annotated"):
        SegmentationLoss(plain)(LOGITS, TARGET, SINGLE_PROCESS, ONLY_A)
    assert SegmentationLoss(plain)(LOGITS, TARGET).item() == LOGITS.mean().item()
    assert SegmentationLoss(knowing)(LOGITS, TARGET, SINGLE_PROCESS, ONLY_A).item() == LOGITS.mean().item() / 2
    require_partial_labels(lambda logits, target, **options: logits.mean())
    # The call of a module takes every keyword, but its `forward` does not.
    with pytest.raises(UsageError, match="no keyword annotated"):
        require_partial_labels(torch.nn.CrossEntropyLoss())


@pytest.mark.parametrize("wrong", [flags([True]), torch.ones(1, 2), torch.ones(2, 2, dtype=torch.bool)])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_annotated_of_another_shape_or_type_is_refused(loss, wrong):
    with pytest.raises(UsageError, match=r"expected torch\.bool \(1, 2\)"):
        LOSSES[loss](LOGITS, TARGET, annotated=wrong)
