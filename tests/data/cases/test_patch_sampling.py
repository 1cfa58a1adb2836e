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


@pytest.mark.parametrize("size", [(4, 6, 8), (16, 6, 20)])
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_patch_lies_inside_the_case_or_contains_it(cached, size, fraction):
    rng, whole = np.random.default_rng(0), np.array(cached[0].grid.shape)
    starts = np.array([PatchSampler(fraction).patch_start(rng, cached[0], size) for _ in range(300)])
    room = whole - size
    assert (starts >= np.minimum(0, room)).all()
    assert (starts <= np.maximum(0, room)).all()
    if fraction == 0:
        assert starts.min(axis=0).tolist() == np.minimum(0, room).tolist()
        assert starts.max(axis=0).tolist() == np.maximum(0, room).tolist()


def test_foreground_patches_are_centred_on_each_class_equally_often(cached):
    rng, label = np.random.default_rng(0), cached[0].label[0]
    hits = Counter(int(label[PatchSampler(1.0).patch_start(rng, cached[0], (1, 1, 1))]) for _ in range(1000))
    assert set(hits) == {1, 2}
    assert hits[1] / 1000 == pytest.approx(0.5, abs=0.06)


def test_the_fraction_of_foreground_patches(cached):
    rng, label = np.random.default_rng(0), cached[0].label[0]
    background = (label == 0).mean()
    hit = np.mean([label[PatchSampler(0.33).patch_start(rng, cached[0], (1, 1, 1))] > 0 for _ in range(3000)])
    assert hit == pytest.approx(0.33 + 0.67 * (1 - background), abs=0.03)


def test_a_class_that_a_case_lacks_is_not_sampled(cached):
    rng, label = np.random.default_rng(0), cached[1].label[0]
    assert {int(label[PatchSampler(1.0).patch_start(rng, cached[1], (1, 1, 1))]) for _ in range(50)} == {1}


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_no_patch_is_centred_on_an_ignored_voxel(tmp_path, fraction):
    network = PLAN.network.model_copy(update={"classes": 2})
    plan = small_plan(labels=(Label(name="two", value=5),), ignore=3, network=network)
    rng, case = np.random.default_rng(0), cache_cases(write_cases(tmp_path, 1), plan, tmp_path / "cache")[0]
    label = case.label[0]
    assert (label == IGNORED).any()
    hits = Counter(int(label[PatchSampler(fraction).patch_start(rng, case, (1, 1, 1))]) for _ in range(300))
    assert set(hits) == ({1} if fraction else {0, 1})
