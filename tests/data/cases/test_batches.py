import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.small_cases import region_plan, small_plan, write_cases
from volseg.config import AugmentationConfig
from volseg.data.cases.batches import AugmentationWarmup, BatchDataset, BatchLoader, lost_workers
from volseg.data.cases.cache import cache_cases
from volseg.data.cases.patch_sampling import PatchSampler
from volseg.errors import InputError, TrainingError, UsageError
from volseg.transforms import augmentation, cropping

# Python 3.12 and later warn whenever a process that has threads is forked; torch's loader does that by design.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
PLAN = small_plan(mirror_axes=(0, 1, 2))
# Every patch is rotated and scaled, so that many lose what they were centred on.
ROTATED = AugmentationConfig(rotation=1, rotation_degrees=180, scaling=1)
AT_ONCE = AugmentationWarmup(cropping(PLAN, AugmentationConfig()), epochs=0)


class Middle:
    """An augmentation that returns the position of a patch and its seed instead of its voxels."""

    def set_random_state(self, seed):
        self.seed = seed

    def __call__(self, sample):
        place = torch.tensor([*sample["centre"], *sample["image"].shape[1:]])
        return {"image": place[None], "label": torch.tensor([[self.seed]])}


class Still(Middle):
    """A crop without augmentation, recognisable by its seed of -1."""

    def set_random_state(self, seed):
        self.seed = -1


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return cache_cases(write_cases(folder), PLAN, folder / "cache")


@pytest.fixture
def dataset(cached):
    return BatchDataset(cached, PLAN, PatchSampler(0.33, seed=7), augmentation(PLAN, AugmentationConfig()), AT_ONCE)


def take(dataset, start, workers, count=4):
    with BatchLoader(dataset, start, workers) as loader:
        return list(itertools.islice(loader, count))


def same(one, two):
    return all(torch.equal(one[key], two[key]) for key in ("image", "label"))


def test_a_batch_has_the_agreed_shape_and_kind(dataset):
    batch = dataset[0]
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 1, 8, 8, 8), torch.float32)
    assert (batch["label"].shape, batch["label"].dtype) == ((4, 8, 8, 8), torch.uint8)
    assert {type(value) for value in batch.values()} == {torch.Tensor}


def test_a_batch_takes_no_more_shared_memory_than_is_planned(dataset):
    batch = dataset[0]
    size = sum(tensor.nbytes for tensor in batch.values())
    assert size <= dataset.batch_bytes <= 1.25 * size
    half = replace(dataset, sampler=PatchSampler(0.33, seed=7, rank=1, world=2))
    assert half.batch_bytes == dataset.batch_bytes / 2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_depend_on_the_step_only(dataset, workers):
    expected = [dataset[step] for step in range(3, 7)]
    assert all(map(same, take(dataset, 3, workers), expected))
    assert same(take(dataset, 6, workers, 1)[0], expected[3])


def test_a_pickled_dataset_gives_the_same_batches(dataset):
    assert same(pickle.loads(pickle.dumps(dataset))[2], dataset[2])


def test_the_ranks_share_out_the_global_batch(cached, dataset):
    whole = dataset[5]
    for rank in range(2):
        sampler = PatchSampler(0.33, seed=7, rank=rank, world=2)
        part = BatchDataset(cached, PLAN, sampler, augmentation(PLAN, AugmentationConfig()), AT_ONCE)[5]
        assert same(part, {key: value[rank::2] for key, value in whole.items()})
    with pytest.raises(UsageError, match="batch of 4 cannot be split over 5"):
        BatchDataset(cached, PLAN, PatchSampler(0.0, world=5), Middle(), AT_ONCE)
    batch_norm = PLAN.model_copy(update={"network": PLAN.network.model_copy(update={"norm": "batch"})})
    with pytest.raises(UsageError, match="Batch norm needs the whole batch in one process, found 2"):
        BatchDataset(cached, batch_norm, PatchSampler(0.0, world=2), Middle(), AT_ONCE)


def test_no_two_samples_and_no_two_seeds_are_the_same(cached, dataset):
    reported = BatchDataset(cached, PLAN, PatchSampler(0.0, seed=7), Middle(), AT_ONCE)
    seeds = [int(seed) for step in range(50) for seed in reported[step]["label"]]
    assert len(set(seeds)) == 200
    images = [image for step in range(5) for image in dataset[step]["image"]]
    assert not any(torch.equal(one, two) for one, two in itertools.combinations(images, 2))
    other = BatchDataset(cached, PLAN, PatchSampler(0.33, seed=8), augmentation(PLAN, AugmentationConfig()), AT_ONCE)
    assert not same(other[0], dataset[0])


def test_every_case_comes_once_in_an_epoch_in_changing_order(cached):
    dataset = BatchDataset(cached, PLAN, PatchSampler(0.0), Middle(), AT_ONCE)
    # The width tells the three cases apart.
    widths = [int(dataset.sample(number)["image"][0, 5]) for number in range(30)]
    epochs = [tuple(widths[start : start + 3]) for start in range(0, 30, 3)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {(10, 11, 12)}
    assert len(set(epochs)) > 2


@pytest.mark.parametrize(("fraction", "forced"), [(0.33, 2), (0.2, 1), (0.0, 0), (1.0, 4)])
def test_each_batch_has_foreground_patches_that_hold_their_label(cached, fraction, forced):
    dataset = BatchDataset(cached, PLAN, PatchSampler(fraction), augmentation(PLAN, ROTATED), AT_ONCE)
    labels = []
    for step in range(60):
        batch = dataset[step]
        assert (batch["foreground"] > 0).tolist() == [False] * (4 - forced) + [True] * forced
        held = [bool((patch == label).any()) for patch, label in zip(batch["label"], batch["foreground"], strict=True)]
        assert all(held[4 - forced :])
        labels += batch["foreground"].tolist()[4 - forced :]
    if forced:
        # The second label is in two of three cases, and is drawn as often as the first.
        assert np.mean(np.array(labels) == 2) == pytest.approx(0.5, abs=0.17)


def test_a_patch_whose_label_augmentation_loses_is_cropped_instead(cached):
    class Lose(Middle):
        def __call__(self, sample):
            return {"image": torch.zeros(1, 8, 8, 8), "label": torch.zeros(1, 8, 8, 8, dtype=torch.uint8)}

    batch = BatchDataset(cached, PLAN, PatchSampler(0.5), Lose(), AT_ONCE)[0]
    assert [bool(image.any()) for image in batch["image"]] == [False, False, True, True]
    pairs = zip(batch["label"][2:], batch["foreground"][2:], strict=True)
    assert all((patch == label).any() for patch, label in pairs)


def test_foreground_patches_hold_regions(cached, tmp_path):
    plan = region_plan(patch_size=(4, 4, 4))
    cases = cache_cases([case.case for case in cached], plan, tmp_path)
    warmup = AugmentationWarmup(cropping(plan, ROTATED), 0)
    dataset = BatchDataset(cases, plan, PatchSampler(1.0), augmentation(plan, ROTATED), warmup)
    for step in range(20):
        batch = dataset[step]
        for target, region in zip(batch["label"], batch["foreground"], strict=True):
            assert target[region - 1].any()


def test_a_case_without_the_label_gives_its_place_to_one_that_has_it(cached):
    """Of the three cases only one has foreground; the width tells them apart."""
    empty = [replace(one, foreground_ranges=((0, 0), (0, 0))) for one in cached[:2]]
    dataset = BatchDataset([*empty, cached[2]], PLAN, PatchSampler(0.5), Middle(), AT_ONCE)
    drawn = [dataset._with_label(np.random.default_rng(seed), empty[0])[0].case.name for seed in range(20)]
    assert set(drawn) == {"case_2"}
    none = BatchDataset(empty, PLAN, PatchSampler(1.0), Middle(), AT_ONCE)
    assert none[0]["foreground"].tolist() == [0, 0, 0, 0]


def test_the_fraction_of_augmented_patches_rises_over_the_warm_up(cached):
    dataset = BatchDataset(cached, PLAN, PatchSampler(0.0, seed=3), Middle(), AugmentationWarmup(Still(), epochs=800))
    # 800 epochs of three cases, and a quarter more.
    augmented = np.array([dataset.sample(number)["label"].item() >= 0 for number in range(3000)]).reshape(5, 600)
    assert augmented.mean(axis=1) == pytest.approx([0.125, 0.375, 0.625, 0.875, 1], abs=0.05)
    assert augmented[4].all()
    at_once = BatchDataset(cached, PLAN, PatchSampler(0.0, seed=3), Middle(), AugmentationWarmup(Still(), epochs=0))
    assert all(at_once.sample(number)["label"].item() >= 0 for number in range(30))


def test_batches_of_regions_have_one_mask_per_region(cached, tmp_path):
    augment = augmentation(PLAN, AugmentationConfig())
    cases = cache_cases([case.case for case in cached], region_plan(), tmp_path)
    regions = BatchDataset(cases, region_plan(), PatchSampler(0.0, seed=7), augment, AT_ONCE)[3]
    plain = BatchDataset(cached, PLAN, PatchSampler(0.0, seed=7), augment, AT_ONCE)[3]
    assert torch.equal(regions["image"], plain["image"])
    expected = torch.stack([plain["label"] > 0, plain["label"] == 2], dim=1)
    assert torch.equal(regions["label"], expected.to(torch.int8))
    assert expected.any()


def test_workers_use_one_thread_and_ignore_interrupts(cached):
    class Facts(Middle):
        def __call__(self, sample):
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            return {"image": torch.tensor([torch.get_num_threads(), ignored]), "label": torch.zeros(1)}

    batch = take(BatchDataset(cached, PLAN, PatchSampler(0.0), Facts(), AT_ONCE), 0, 1, 1)[0]
    assert batch["image"][0].tolist() == [1, 1]


def test_the_loader_ends_its_workers(dataset):
    before = threading.active_count()
    with BatchLoader(dataset, 0, 2) as loader:
        next(loader)
        workers = [worker.pid for worker in multiprocessing.active_children()]
        assert len(workers) == 2
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_batches_are_the_same_and_their_thread_ends(dataset, monkeypatch, workers):
    expected, before, pinned = take(dataset, 0, 0, 2), threading.active_count(), []
    # A GPU for torch's loader, and its copy to memory that a GPU can read.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda one, *_: pinned.append(one.shape) or one.clone())
    started = time.monotonic()
    with BatchLoader(dataset, 0, workers, pinned=True) as loader:
        found = list(itertools.islice(loader, 2))
    assert all(same(*both) for both in zip(found, expected, strict=True))
    assert expected[0]["image"].shape in pinned
    while threading.active_count() > before and time.monotonic() < started + 20:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_worker_that_computes_ends_at_once(cached):
    class Endless(Middle):
        def __call__(self, sample):
            time.sleep(60 if sample["centre"] and self.late() else 0)
            return super().__call__(sample)

        def late(self):
            self.calls = getattr(self, "calls", 0) + 1
            return self.calls > PLAN.batch_size

    started = time.monotonic()
    with BatchLoader(BatchDataset(cached, PLAN, PatchSampler(0.0), Endless(), AT_ONCE), 0, 1) as loader:
        next(loader)
        worker = multiprocessing.active_children()[0]
    assert not worker.is_alive()
    assert time.monotonic() - started < 20


def test_a_killed_worker_ends_the_run_with_one_sentence(dataset):
    with BatchLoader(dataset, 0, 1) as batches:
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(TrainingError, match=r"worker died.*resume with --resume"), lost_workers():
            list(itertools.islice(batches, 10))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_volseg_in_a_worker_arrives_as_it_is(cached, workers):
    class Refuse(Middle):
        def __call__(self, sample):
            try:
                raise InputError("The case is bad")
            except InputError as error:
                raise RuntimeError("applying a transform") from error

    with (
        pytest.raises(InputError, match=r"^The case is bad$"),
        BatchLoader(BatchDataset(cached, PLAN, PatchSampler(0.0), Refuse(), AT_ONCE), 0, workers) as batches,
    ):
        next(batches)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset"), EOFError(), BrokenPipeError()])
def test_a_connection_that_breaks_is_a_dead_worker(error):
    with pytest.raises(TrainingError, match=r"worker died: .+\. Memory .*resume with --resume"), lost_workers():
        raise error


def test_an_error_inside_a_worker_is_not_reported_as_a_dead_worker():
    with pytest.raises(RuntimeError, match="Caught"), lost_workers():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
