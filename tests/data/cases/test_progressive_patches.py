import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.small_cases import small_plan
from volseg.config import IGNORED
from volseg.data.cases.patch_sampling import PatchSampler
from volseg.data.cases.progressive_patches import LabelledPatch, ProgressivePatches, patch_size_at


def progressive(
    sampler: PatchSampler, fraction: float = 0.5, batch_size: int = 2, stride=(2, 2, 4)
) -> ProgressivePatches:
    network = small_plan().network.model_copy(update={"strides": ((1, 1, 1), stride)})
    return ProgressivePatches(small_plan(network=network, batch_size=batch_size), sampler, fraction)


SAMPLER = PatchSampler(0.5, seed=3)
PATCHES = progressive(SAMPLER)


def batch(count: int = 2, size=(8, 12, 16), regions: int = 0) -> dict[str, torch.Tensor]:
    """Images whose voxel values are the voxels' numbers, and labels computed from them."""
    voxels = torch.arange(count * size[0] * size[1] * size[2], dtype=torch.float32).view(count, 1, *size)
    foreground = torch.arange(count) % 2
    return {"image": voxels, "label": target_of(voxels, regions), "foreground": foreground}


def target_of(image: torch.Tensor, regions: int = 0) -> torch.Tensor:
    label = (image[:, 0] % 7 % 3).to(torch.uint8)
    return torch.stack([label > index for index in range(regions)], dim=1).to(torch.int8) if regions else label


def test_edges_grow_from_half_to_full_length_in_multiples_of_the_divisor():
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


def test_no_edge_is_shorter_than_two_divisors_or_longer_than_the_full_one():
    assert patch_size_at((8, 16, 24), (8, 8, 8), 0.0) == (8, 16, 16)


@pytest.mark.parametrize("regions", [0, 2])
@pytest.mark.parametrize("step", range(5))
def test_image_and_label_are_cut_at_the_same_position_without_gaps(step, regions):
    out = PATCHES(batch(regions=regions), 0.0, step)
    assert out["image"].shape == (2, 1, 4, 6, 8)
    assert torch.equal(out["label"], target_of(out["image"], regions))
    # Differences between voxel numbers along W, H and D.
    for axis, distance in ((4, 1), (3, 16), (2, 12 * 16)):
        assert (out["image"].diff(dim=axis) == distance).all()


def test_patches_are_full_after_the_fraction_or_if_it_is_0():
    full = batch()
    assert PATCHES(full, 0.5, 1)["image"] is full["image"]
    assert PATCHES(full, 0.45, 1)["image"] is full["image"]
    assert PATCHES(full, 0.2, 1)["image"] is not full["image"]
    assert progressive(SAMPLER, fraction=0.0)(full, 0.0, 0)["image"] is full["image"]


def test_step_and_seed_determine_the_position_of_each_sample():
    def corners(patches, step):
        return patches(batch(), 0.0, step)["image"][:, 0, 0, 0, 0].tolist()

    assert corners(PATCHES, 4) == corners(PATCHES, 4)
    # The corner of each smaller patch in its full patch of 8 x 12 x 16.
    places = {corner % (8 * 12 * 16) for step in range(50) for corner in corners(PATCHES, step)}
    assert len(places) > 50
    other = progressive(PatchSampler(0.5, seed=4))
    assert [corners(PATCHES, step) for step in range(5)] != [corners(other, step) for step in range(5)]


@pytest.mark.parametrize("count", [4, 5])
def test_ranks_cut_their_samples_as_one_process_does(count):
    full = batch(count)
    expected = progressive(SAMPLER, batch_size=count)(full, 0.1, 6)
    for rank in range(2):
        part = {key: value[rank::2] for key, value in full.items()}
        found = progressive(replace(SAMPLER, rank=rank, world=2), batch_size=count)(part, 0.1, 6)
        assert all(torch.equal(found[key], expected[key][rank::2]) for key in found)


def test_smaller_patches_keep_the_label_of_a_foreground_patch():
    label = torch.zeros(2, 16, 16, 16, dtype=torch.uint8)
    label[:, 8, 8, 8], label[:, 2, 2, 2] = 1, 2
    patches = progressive(SAMPLER, stride=(2, 2, 2))
    found = [
        patches({"image": label[:, None].float(), "label": label, "foreground": torch.tensor([0, 1])}, 0.0, step)
        for step in range(60)
    ]
    assert all(one["label"][1, 4, 4, 4] == 1 for one in found)
    assert np.mean([one["label"][0, 4, 4, 4].item() for one in found]) == pytest.approx(0, abs=0.1)


def test_the_labels_that_each_patch_holds():
    label = torch.zeros(2, 8, 12, 16, dtype=torch.int16)
    label[0, 0, 0, 0], label[1, 7, 11, 15], label[1, 0, 0, 0] = 2, 1, IGNORED
    full = {"image": label[:, None].float(), "label": label, "foreground": torch.tensor([0, 1])}
    assert PATCHES(full, 1.0, 0)["held"].tolist() == [[False, True], [True, False]]
    regions = {**full, "label": torch.stack([label > 0, label == 2], dim=1).to(torch.int8)}
    assert PATCHES(regions, 1.0, 0)["held"].tolist() == [[True, True], [True, False]]
    # Of the patch that is trained on, not of the larger one that it is cut out of.
    small = PATCHES(full, 0.0, 0)
    assert small["held"].tolist() == [[bool((one == value).any()) for value in (1, 2)] for one in small["label"]]
    assert small["held"][1].tolist() == [True, False]


def test_a_smaller_patch_is_centred_on_an_annotated_voxel_if_others_are_ignored():
    label = torch.full((1, 16, 16, 16), IGNORED, dtype=torch.int8)
    label[0, 6:10, 6:10, 6:10] = 0
    patches = progressive(PatchSampler(0.0), batch_size=1, stride=(2, 2, 2))
    for number in range(20):
        full = {"image": label[:, None].float(), "label": label, "foreground": torch.zeros(1, dtype=torch.int64)}
        assert patches(full, 0, number)["label"][0, 4, 4, 4] == 0


def test_the_labels_of_a_patch():
    label = np.zeros((2, 3, 4), dtype=np.int8)
    label[0, 1, 2], label[1, 2, 3], label[0, 0, 0] = 1, 3, IGNORED
    patch = LabelledPatch(label)
    assert patch.shape == (2, 3, 4)
    assert patch.foreground(3).tolist() == [[1, 2, 3]]
    assert len(patch.annotated) == 23
    assert LabelledPatch(np.abs(label)).annotated is None
    regions = LabelledPatch(np.stack([label == 9, label == 1]).astype(np.int8))
    assert (regions.shape, regions.annotated) == ((2, 3, 4), None)
    assert regions.foreground(2).tolist() == [[0, 1, 2]]
