"""The training loop also trains a classifier: on clips whose classes differ only in motion, and on volumes."""

import doctest
from collections.abc import Iterator
from itertools import count, cycle
from typing import Any

import numpy as np
import pytest
import torch

import volseg.training
from volseg.data.cases.phantom import make_phantom
from volseg.networks import Classifier
from volseg.training import Budget, TrainingState, classification_loss, fit

Batch = dict[str, torch.Tensor]
UNSEEN = 10_000


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The variables of the example in the docstring of `volseg.training`, after it has run."""
    found = doctest.DocTestParser().get_doctest(volseg.training.__doc__, {}, "volseg.training", None, 0)
    assert doctest.DocTestRunner().run(found, clear_globs=False).failed == 0
    return found.globs


@torch.no_grad()
def predicted_classes(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return network(images).argmax(1)


def accuracy(network: torch.nn.Module, batch: Batch) -> float:
    return (predicted_classes(network, batch["image"]) == batch["label"]).double().mean().item()


def trained(example: dict[str, Any], batches: Iterator[Batch]) -> torch.nn.Module:
    """The network of the example, trained in the same way on other batches."""
    torch.manual_seed(0)
    state = TrainingState(Classifier(example["network"]), example["config"])
    assert fit(state, batches, Budget(steps=example["state"].step), example["config"], loss=classification_loss)
    return state.ema


def test_it_separates_moving_from_still_discs_on_unseen_clips(example):
    assert accuracy(example["state"].ema, example["clips"](UNSEEN, seeds=200)) > 0.95


def test_it_relies_on_motion(example):
    """A clip that repeats one of its frames is classified as still."""
    images = example["clips"](UNSEEN, seeds=50)["image"]
    for frame in (0, 3, 7):
        frozen = images[:, :, frame : frame + 1].expand_as(images)
        assert (predicted_classes(example["state"].ema, frozen) == 0).double().mean() > 0.95


def test_single_frames_do_not_separate_the_classes(example):
    """Trained on last frames only, the same network is no better than chance on unseen last frames."""

    def last_frames(number: int, seeds: int = 8) -> Batch:
        batch = example["clips"](number, seeds)
        return {**batch, "image": batch["image"][:, :, -1:]}

    network = trained(example, map(last_frames, count()))
    assert accuracy(network, last_frames(UNSEEN, seeds=200)) == pytest.approx(0.5, abs=0.08)


def test_it_separates_ct_from_mr_volumes(example):
    """The same on volumes (B, 1, D, H, W): the modality of a normalised scan."""

    def volumes(first: int, seeds: int) -> Batch:
        kinds = [(seed, kind) for seed in range(first, first + seeds) for kind in ("ct", "mr")]
        scans = [make_phantom(seed, kind)[0][:44:2, :44:2, :28:2] for seed, kind in kinds]
        normalised = np.stack([(scan - scan.mean()) / scan.std() for scan in scans])
        return {"image": torch.from_numpy(normalised).float()[:, None], "label": torch.tensor([0, 1] * seeds)}

    network = trained(example, cycle([volumes(first, seeds=4) for first in range(0, 16, 4)]))
    assert accuracy(network, volumes(UNSEEN, seeds=12)) > 0.95
