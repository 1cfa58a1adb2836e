from collections import Counter

import numpy as np
import pytest

from tests.data.small_cases import small_plan, write_cases
from volseg.config import IGNORED, Label
from volseg.data.cases.cache import cache_cases
from volseg.data.cases.patch_sampling import CUT, SAMPLE, PatchSampler

PLAN = small_plan()


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return cache_cases(write_cases(folder), PLAN, folder / "cache")


@pytest.mark.parametrize(("batch_size", "world"), [(4, 1), (4, 2), (5, 2), (5, 3)])
def test_the_processes_share_every_number_of_every_step(batch_size, world):
    ranks = [PatchSampler(0.33, rank=rank, world=world) for rank in range(world)]
    numbers = [number for step in range(3) for rank in ranks for number in rank.sample_numbers(step, batch_size)]
    assert sorted(numbers) == list(range(3 * batch_size))


def test_streams_depend_on_seed_kind_and_number_and_not_on_the_process():
    streams = [
        PatchSampler(0.33, seed).rng(kind, number) for seed in (1, 2) for kind in (SAMPLE, CUT) for number in (1, 2)
    ]
    assert len({stream.random() for stream in streams}) == 8
    assert (
        PatchSampler(0.33, 1, rank=1, world=2).rng(SAMPLE, 2).random() == PatchSampler(0.5, 1).rng(SAMPLE, 2).random()
    )


@pytest.mark.parametrize(
    ("fraction", "batch_size", "positions"),
    [
        (0.33, 2, [1]),
        (0.33, 3, [2]),
        (0.33, 4, [2, 3]),
        (0.33, 9, [6, 7, 8]),
        (0.6, 2, [0, 1]),
        (0, 5, []),
        (1, 1, [0]),
    ],
)
def test_the_last_samples_of_each_batch_are_foreground_patches(fraction, batch_size, positions):
    sampler = PatchSampler(fraction)
    for step in range(4):
        numbers = sampler.sample_numbers(step, batch_size)
        assert [at for at, number in enumerate(numbers) if sampler.is_foreground(number, batch_size)] == positions


def test_with_one_patch_per_batch_a_fraction_of_the_batches_has_foreground():
    chosen = [PatchSampler(0.33).is_foreground(number, 1) for number in range(300)]
    assert sum(chosen) == 99
    # Evenly: never more than four batches from one to the next.
    assert np.diff(np.flatnonzero(chosen)).max() <= 4


@pytest.mark.parametrize("size", [(4, 6, 8), (16, 6, 20)])
@pytest.mark.parametrize("label", [0, 1])
def test_a_patch_lies_inside_the_case_or_contains_it(cached, size, label):
    rng, whole = np.random.default_rng(0), np.array(cached[0].grid.shape)
    starts = np.array([PatchSampler(0.5).patch_start(rng, cached[0], size, label) for _ in range(300)])
    room = whole - size
    assert (starts >= np.minimum(0, room)).all()
    assert (starts <= np.maximum(0, room)).all()
    if label == 0:
        assert starts.min(axis=0).tolist() == np.minimum(0, room).tolist()
        assert starts.max(axis=0).tolist() == np.maximum(0, room).tolist()


@pytest.mark.parametrize("chosen", [1, 2])
def test_a_foreground_patch_is_centred_on_its_label(cached, chosen):
    rng, label = np.random.default_rng(0), cached[0].label[0]
    starts = {PatchSampler(0.5).patch_start(rng, cached[0], (1, 1, 1), chosen) for _ in range(300)}
    assert {int(label[start]) for start in starts} == {chosen}
    # All voxels of the label, in the end.
    assert len(starts) > 0.8 * (label == chosen).sum()


def test_other_patches_are_anywhere(cached):
    rng, label = np.random.default_rng(0), cached[0].label[0]
    hit = np.mean([label[PatchSampler(0.5).patch_start(rng, cached[0], (1, 1, 1))] > 0 for _ in range(3000)])
    assert hit == pytest.approx((label > 0).mean(), abs=0.03)


@pytest.mark.parametrize("chosen", [0, 1])
def test_no_patch_is_centred_on_an_ignored_voxel(tmp_path, chosen):
    network = PLAN.network.model_copy(update={"classes": 2})
    plan = small_plan(labels=(Label(name="two", value=5),), ignore=3, network=network)
    rng, case = np.random.default_rng(0), cache_cases(write_cases(tmp_path, 1), plan, tmp_path / "cache")[0]
    label = case.label[0]
    assert (label == IGNORED).any()
    hits = Counter(int(label[PatchSampler(0.5).patch_start(rng, case, (1, 1, 1), chosen)]) for _ in range(300))
    assert set(hits) == ({1} if chosen else {0, 1})
