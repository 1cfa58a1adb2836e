"""The shares of several datasets in the samples of a run."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.data.cases.test_batches import Middle, Still
from tests.data.small_cases import small_plan, write_cases
from volseg.data.cases.batches import AugmentationWarmup, BatchDataset
from volseg.data.cases.cache import cache_cases
from volseg.data.cases.dataset import TrainingCase
from volseg.data.cases.patch_sampling import PatchSampler
from volseg.data.cases.sources.shares import PERIOD, DatasetTurns, shares_of
from volseg.errors import ConfigError

CASES = [TrainingCase(f"{name}", (), Path(), source=name[0]) for name in ("A1", "A2", "A3", "B1")]


def test_shares_by_cases_equal_or_stated():
    assert shares_of("cases", ["A", "B"], CASES) is None
    assert shares_of("equal", ["A", "B"], CASES) == {"A": 0.5, "B": 0.5}
    assert shares_of({"B": 1, "A": 3}, ["A", "B"], CASES) == {"A": 0.75, "B": 0.25}
    assert shares_of("equal", [], CASES) is None


@pytest.mark.parametrize(
    ("stated", "datasets", "said"),
    [
        ({"A": 1}, ["A", "B"], "has A, expected a share for each .*: A, B"),
        ({"A": 1, "B": 1, "C": 1}, ["A", "B"], "has A, B, C, expected"),
        ({"A": 1}, [], "none, because there is one dataset"),
        ("equal", ["A", "B", "C"], "share for C, of which this fold trains on no case"),
    ],
)
def test_shares_of_other_datasets_are_refused(stated, datasets, said):
    with pytest.raises(ConfigError, match=said):
        shares_of(stated, datasets, CASES)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"A": 0.5, "B": 0.5}, {"A": 50, "B": 50}),
        ({"A": 2 / 3, "B": 1 / 3}, {"A": 67, "B": 33}),
        ({"A": 0.999, "B": 0.001}, {"A": 99, "B": 1}),
        ({"A": 1 / 3, "B": 1 / 3, "C": 1 / 3}, {"A": 34, "B": 33, "C": 33}),
    ],
)
def test_every_period_has_the_shares_and_every_case_its_turn(shares, expected):
    counts = {"A": 7, "B": 2, "C": 5}
    turns = DatasetTurns(shares, {name: counts[name] for name in shares}, PatchSampler(0.33, seed=5))
    found = [turns.turn(number) for number in range(3 * PERIOD)]
    for period in range(3):
        assert Counter(name for name, _ in found[period * PERIOD : (period + 1) * PERIOD]) == expected
    for name in shares:
        own = [index for one, index in found if one == name]
        epochs = [own[at : at + counts[name]] for at in range(0, len(own) - counts[name] + 1, counts[name])]
        assert all(sorted(epoch) == list(range(counts[name])) for epoch in epochs)
    assert found[:PERIOD] != found[PERIOD : 2 * PERIOD]


def test_a_resumed_run_and_other_ranks_see_the_same_turns():
    args = {"A": 0.5, "B": 0.5}, {"A": 7, "B": 2}
    one = DatasetTurns(*args, PatchSampler(0.33, seed=5))
    other = DatasetTurns(*args, PatchSampler(0.33, seed=5, rank=1, world=2))
    assert [one.turn(number) for number in range(150)] == [other.turn(number) for number in reversed(range(150))][::-1]
    assert [one.turn(n) for n in range(150)] != [
        DatasetTurns(*args, PatchSampler(0.33, seed=6)).turn(n) for n in range(150)
    ]


def test_foreground_patches_stay_in_the_dataset_whose_turn_it_is(tmp_path):
    plan = small_plan()
    # Case 1, the only one of B, lacks the second label.
    cases = [replace(case, source="B" if case.name == "case_1" else "A") for case in write_cases(tmp_path)]
    cached = cache_cases(cases, plan, tmp_path / "cache")
    warmup = AugmentationWarmup(Still(), epochs=0)
    shapes = {case.shape: case.case.source for case in cached}

    def sampled(shares):
        dataset = BatchDataset(cached, plan, PatchSampler(1.0, seed=7), Seen(), warmup, shares)
        return [(shapes[tuple(one["image"].tolist())], one["foreground"]) for one in map(dataset.sample, range(PERIOD))]

    found = sampled({"A": 0.2, "B": 0.8})
    assert Counter(source for source, _ in found) == {"A": 20, "B": 80}
    assert {label for source, label in found if source == "B"} == {1}
    assert {label for source, label in found if source == "A"} == {1, 2}
    # By cases, all datasets are one pool, in which both labels are as frequent.
    by_cases = Counter(label for _, label in sampled(None))
    assert 35 < by_cases[2] < 65


class Seen(Middle):
    """An augmentation that returns the shape of the case."""

    def __call__(self, sample):
        return {"image": torch.tensor(sample["image"].shape[1:]), "label": torch.tensor([[3, 5, 1, 2]])}
