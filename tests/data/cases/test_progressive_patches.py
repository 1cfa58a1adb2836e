import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.small_cases import small_plan
from volseg.config import IGNORED
from volseg.data.cases.patch_sampling import PatchSampler
from volseg.data.cases.progressive_patches import LabelledPatch, ProgressivePatches, patch_size_at


def growth_of(draws: PatchSampler, share: float = 0.5, batch_size: int = 2, stride=(2, 2, 4)) -> ProgressivePatches:
    network = small_plan().network.model_copy(update={"strides": ((1, 1, 1), stride)})
    return ProgressivePatches(small_plan(network=network, batch_size=batch_size), draws, share)


DRAWS = PatchSampler(0.5, seed=3)
GROWTH = growth_of(DRAWS)


def batch(count: int = 2, size=(8, 12, 16), regions: int = 0) -> dict[str, torch.Tensor]:
    """Images that say for each voxel which one it is, and labels that follow from it."""
    voxels = torch.arange(count * size[0] * size[1] * size[2], dtype=torch.float32).view(count, 1, *size)
    return {"image": voxels, "label": target_of(voxels, regions)}


def target_of(image: torch.Tensor, regions: int = 0) -> torch.Tensor:
    label = (image[:, 0] % 7 % 3).to(torch.uint8)
    return torch.stack([label > index for index in range(regions)], dim=1).to(torch.int8) if regions else label


def test_edges_grow_from_half_to_the_whole_in_multiples_of_the_divisor():
    sizes = [patch_size_at((40, 40, 56), (8, 8, 8), progress / 1000) for progress in range(1001)]
    assert [size for size, _ in itertools.groupby(sizes)] == [
        (24, 24, 32),
        (24, 24, 40),
        (32, 32, 40),
        (32, 32, 48),
        (40, 40, 48),
        (40, 40, 56),
    ]
    assert patch_size_at((40, 40, 56), (8, 8, 8), 7.0) == (40, 40, 56)


def test_no_edge_is_shorter_than_two_divisors_or_longer_than_the_whole():
    assert patch_size_at((8, 16, 24), (8, 8, 8), 0.0) == (8, 16, 16)


@pytest.mark.parametrize("regions", [0, 2])
@pytest.mark.parametrize("step", range(5))
def test_image_and_label_are_cut_alike_and_stay_in_one_piece(step, regions):
    out = GROWTH(batch(regions=regions), 0.0, step)
    assert out["image"].shape == (2, 1, 4, 6, 8)
    assert torch.equal(out["label"], target_of(out["image"], regions))
    # Of the voxels' numbers: one step along W, H and D.
    for axis, distance in ((4, 1), (3, 16), (2, 12 * 16)):
        assert (out["image"].diff(dim=axis) == distance).all()


def test_nothing_is_cut_from_the_share_on_or_without_growth():
    whole = batch()
    assert GROWTH(whole, 0.5, 1) is whole
    assert GROWTH(whole, 0.45, 1) is whole
    assert GROWTH(whole, 0.2, 1) is not whole
    assert growth_of(DRAWS, share=0.0)(whole, 0.0, 0) is whole


def test_samples_are_cut_in_places_of_their_own_that_step_and_seed_decide():
    def corners(growth, step):
        return growth(batch(), 0.0, step)["image"][:, 0, 0, 0, 0].tolist()

    assert corners(GROWTH, 4) == corners(GROWTH, 4)
    # Where the corner of each sample's cut lies in its patch of 8 x 12 x 16.
    places = {corner % (8 * 12 * 16) for step in range(50) for corner in corners(GROWTH, step)}
    assert len(places) > 50
    other = growth_of(PatchSampler(0.5, seed=4))
    assert [corners(GROWTH, step) for step in range(5)] != [corners(other, step) for step in range(5)]


@pytest.mark.parametrize("count", [4, 5])
def test_ranks_cut_their_samples_as_one_process_does(count):
    whole = batch(count)
    together = growth_of(DRAWS, batch_size=count)(whole, 0.1, 6)
    for rank in range(2):
        mine = {key: value[rank::2] for key, value in whole.items()}
        alone = growth_of(replace(DRAWS, rank=rank, world=2), batch_size=count)(mine, 0.1, 6)
        assert all(torch.equal(alone[key], together[key][rank::2]) for key in alone)


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_cuts_are_centred_on_labels_as_often_as_patches_are(foreground):
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    label[0, 8, 8, 8] = 1
    growth = growth_of(PatchSampler(foreground), batch_size=1, stride=(2, 2, 2))
    whole = {"image": label[:, None].float(), "label": label}
    hits = [growth(whole, 0.0, number)["label"][0, 4, 4, 4].item() for number in range(60)]
    assert np.mean(hits) == (1 if foreground else pytest.approx(0, abs=0.1))


def test_a_cut_is_centred_on_what_is_known_where_a_part_is_ignored():
    label = torch.full((1, 16, 16, 16), IGNORED, dtype=torch.int8)
    label[0, 6:10, 6:10, 6:10] = 0
    growth = growth_of(PatchSampler(0.0), batch_size=1, stride=(2, 2, 2))
    for number in range(20):
        assert growth({"image": label[:, None].float(), "label": label}, 0, number)["label"][0, 4, 4, 4] == 0


def test_the_labels_of_a_patch():
    label = np.zeros((2, 3, 4), dtype=np.int8)
    label[0, 1, 2], label[1, 2, 3], label[0, 0, 0] = 1, 3, IGNORED
    patch = LabelledPatch(label)
    assert (patch.shape, patch.classes) == ((2, 3, 4), (1, 3))
    assert patch.foreground(3).tolist() == [[1, 2, 3]]
    assert len(patch.known) == 23
    assert LabelledPatch(np.abs(label)).known is None
    regions = LabelledPatch(np.stack([label == 9, label == 1]).astype(np.int8))
    assert (regions.shape, regions.classes, regions.known) == ((2, 3, 4), (2,), None)
    assert regions.foreground(2).tolist() == [[0, 1, 2]]
