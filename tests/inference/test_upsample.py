"""Boundary-only resampling gives the same labels as interpolating everything."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.data.grid.resample import nearest_index
from volseg.inference import upsample
from volseg.inference.upsample import label_slabs, winner

Triple = tuple[int, int, int]
sizes = st.tuples(*[st.sampled_from([1, 2, 3, 5, 8, 13])] * 3)


def slabs_of(logits: torch.Tensor, depth: int) -> list[tuple[int, torch.Tensor]]:
    return [(start, logits[:, start : start + depth]) for start in range(0, logits.shape[1], depth)]


def labels_from_slabs(slabs, source: Triple, target: Triple, nearest_axis: int | None = None) -> torch.Tensor:
    """All planes, concatenated."""
    parts = list(label_slabs(slabs, source, target, nearest_axis=nearest_axis))
    assert [first for first, _ in parts] == [sum(len(one) for _, one in parts[:count]) for count in range(len(parts))]
    return torch.cat([labels for _, labels in parts])


def interpolated(logits: torch.Tensor, target: Triple, nearest_axis: int | None = None) -> torch.Tensor:
    """All logits interpolated in float64 by torch, after nearest neighbour along one axis if given."""
    if nearest_axis is not None:
        index = nearest_index(logits.shape[nearest_axis + 1], target[nearest_axis], logits.device)
        logits = logits.index_select(nearest_axis + 1, index)
    return F.interpolate(logits[None].double(), size=target, mode="trilinear", align_corners=False)[0]


def assert_winners(labels: torch.Tensor, logits: torch.Tensor, target: Triple, nearest_axis: int | None = None) -> None:
    """Every label's logit is the best one, up to 8 units in the last place of the logits around it."""
    full = interpolated(logits, target, nearest_axis)
    slack = 8 * torch.finfo(torch.float32).eps * interpolated(logits.abs(), target, nearest_axis).amax(0)
    chosen = full.gather(0, labels.long()[None])[0]
    assert labels.shape == target
    assert bool((chosen >= full.amax(0) - slack).all())


def smooth(generator: torch.Generator, classes: int, shape: Triple) -> torch.Tensor:
    coarse = torch.randn(1, classes, *[max(1, size // 4) for size in shape], generator=generator)
    return F.interpolate(coarse, size=shape, mode="trilinear")[0]


def speckled(generator: torch.Generator, classes: int, shape: Triple) -> torch.Tensor:
    return torch.randn(classes, *shape, generator=generator)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 2.0], ids=["dense", "chosen", "gathered"])
@pytest.mark.parametrize("field", [smooth, speckled])
@settings(max_examples=40, deadline=None)
@given(
    source=sizes,
    target=sizes,
    classes=st.integers(2, 20),
    depth=st.integers(1, 13),
    nearest_axis=st.sampled_from([None, 0, 1, 2]),
    seed=st.integers(0, 1000),
)
def test_labels_are_those_of_interpolating_everything(
    fraction, field, source, target, classes, depth, nearest_axis, seed
):
    logits = field(torch.Generator().manual_seed(seed), classes, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "DENSE_FRACTION", fraction)
        patch.setattr(upsample, "BLOCK_LOGITS", {"cpu": 400})
        labels = labels_from_slabs(slabs_of(logits, depth), source, target, nearest_axis)
    assert labels.dtype == torch.uint8
    assert_winners(labels, logits, target, nearest_axis)


def test_the_same_grid_needs_no_interpolation() -> None:
    logits = torch.randn(7, 6, 5, 4)
    assert torch.equal(labels_from_slabs(slabs_of(logits, 4), (6, 5, 4), (6, 5, 4)).long(), logits.argmax(0))


def test_halfway_between_two_classes_by_hand() -> None:
    # Class 1 minus class 0 is -1 and 3; at the target voxels (at 0, 0.25, 0.75 and 1) it is -1, 0, 2, 3.
    logits = torch.tensor([[0.0, 0.0], [-1.0, 3.0]]).reshape(2, 2, 1, 1)
    assert labels_from_slabs([(0, logits)], (2, 1, 1), (4, 1, 1)).flatten().tolist() == [0, 0, 1, 1]
    logits[1, 0] = -0.9
    assert labels_from_slabs([(0, logits)], (2, 1, 1), (4, 1, 1)).flatten().tolist() == [0, 1, 1, 1]


def test_a_third_class_may_win_between_two_others() -> None:
    # Halfway, the logits are 0.5, 0.5 and 0.8: the winner is the class of neither neighbour.
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.8]]).reshape(3, 2, 1, 1)
    assert labels_from_slabs([(0, logits)], (2, 1, 1), (8, 1, 1)).flatten().tolist() == [0, 0, 0, 2, 2, 1, 1, 1]


def test_more_than_255_classes_are_int16() -> None:
    logits = torch.randn(300, 3, 2, 2)
    logits[299, 1] += 10
    labels = labels_from_slabs(slabs_of(logits, 2), (3, 2, 2), (3, 2, 2))
    assert labels.dtype == torch.int16
    assert labels[1].unique().tolist() == [299]
    assert_winners(labels_from_slabs(slabs_of(logits, 2), (3, 2, 2), (5, 5, 3)), logits, (5, 5, 3))


def test_slabs_may_be_overwritten_once_the_next_is_requested() -> None:
    logits = torch.randn(3, 9, 4, 5)

    def reused():
        for start, slab in slabs_of(logits.clone(), 4):
            yield start, slab
            slab.fill_(float("nan"))

    kept = labels_from_slabs(slabs_of(logits, 9), (9, 4, 5), (20, 9, 11))
    assert torch.equal(labels_from_slabs(reused(), (9, 4, 5), (20, 9, 11)), kept)


def test_the_first_of_tied_classes_wins() -> None:
    logits = torch.tensor([[1.0, 2.0, -5.0], [3.0, 2.0, -5.0], [3.0, 1.0, -5.0]])
    assert winner(logits, torch.uint8).tolist() == [1, 0, 0]
