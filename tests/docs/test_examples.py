"""The programs in examples/ are short, and do what they say."""

import json
import runpy

import numpy as np
import pytest
import torch

from tests.docs.pages import EXAMPLES
from volseg.losses import dice_loss
from volseg.modelfile import read_card

NAMES = [
    "fine_tuning", "join_partial_labels", "loss_in_your_loop", "many_files", "metrics_and_probabilities",
    "network_alone", "own_augmentation", "own_loss", "own_network", "stop_on_plateau", "windows_around_your_network",
]  # fmt: skip


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Runs an example in an empty folder; the names that it leaves."""
    monkeypatch.chdir(tmp_path)
    paths = {path.stem: path for path in EXAMPLES}
    return lambda name: runpy.run_path(str(paths[name]))


def test_these_are_the_examples():
    assert [path.stem for path in EXAMPLES] == NAMES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_fewer_than_thirty_lines_and_says_what_it_is(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 30
    assert lines[0].startswith('"""')
    assert lines[0].endswith('"""')


def test_the_network_alone(example):
    names = example("network_alone")
    counts = names["parameters"]
    # 12 / 27 of the weights of each 3 x 3 x 3 kernel with as many channels, apart from the stem and the upsampling.
    assert counts["(2+1)D light"] / counts["Conv3d"] == pytest.approx(0.49, abs=0.02)
    assert counts["(2+1)D matched"] / counts["Conv3d"] == pytest.approx(1.0, abs=0.01)
    assert [output.shape[2:] for output in names["outputs"]] == [(32, 64, 64), (16, 32, 32), (8, 16, 16)]


def test_the_joined_partial_labels(example):
    names = example("join_partial_labels")
    assert set(names["labels"]) == {"ball", "rod"}
    assert names["annotated"] == {"ball": 4, "rod": 4}
    # Each of two validation cases has one of the labels annotated.
    assert names["scored"] == {"ball": 1, "rod": 1}


def test_the_loss_in_your_loop(example):
    losses = example("loss_in_your_loop")["losses"]
    assert losses[-1] < 0.5 * losses[0]


def test_the_windows_around_your_network(example):
    names = example("windows_around_your_network")
    assert names["windowed"].shape == names["whole"].shape == (4, 48, 40, 44)
    assert names["equal"] > 0.99
    assert (names["windowed"] - names["whole"]).abs().mean() < 0.01


def test_the_metrics_and_probabilities(example):
    names = example("metrics_and_probabilities")
    result = names["result"]
    assert result.probabilities.shape == (3, *result.labels.shape)
    assert np.abs(result.probabilities.astype(np.float32).sum(0) - 1).max() < 0.01
    assert names["dice"](names["mask"], names["likely"]) > 0.9


def test_the_fine_tuning(example):
    names = example("fine_tuning")
    assert names["card"].training["from"][0]["labels"] == {
        "copied": {"ball": "Anterior"},
        "new": ["rod"],
        "dropped": ["Posterior"],
    }
    assert names["card"].training["from"][0]["name"] == "hippocampus"
    assert [label["voxels"] > 0 for label in names["result"].record["labels"].values()] == [True, True]


def test_the_many_files(example, tmp_path):
    names = example("many_files")
    assert names["failed"] == ["torn"]
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert written == {"scan_1.nii.gz", "scan_1.json", "scan_2.nii.gz", "scan_2.json"}


def steps_of(run):
    """The record of each step of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_of_ones_own(example):
    names = example("own_loss")
    tversky = names["tversky"]
    target = torch.randint(0, 3, (2, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 3, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    # With equal weights of a half it is Dice.
    assert tversky(logits, target, 0.5, 0.5).item() == pytest.approx(dice_loss(logits, target).item(), abs=0.01)
    certain = 50.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert tversky(certain, target).item() == pytest.approx(0, abs=1e-6)
    missed, false = certain.clone(), certain.clone()
    missed[:, 0, :2], false[:, 1, :2] = 100, 100
    assert tversky(missed, target) > tversky(false, target)
    ignored = torch.where(torch.arange(6) < 3, target, -1)
    assert torch.allclose(tversky(logits, ignored), tversky(logits[..., :3], target[..., :3]))
    losses = [record["loss"] for record in steps_of(names["run"])]
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])
    assert read_card(names["run"] / "model.safetensors").training["custom_loss"].endswith("tversky")


def test_the_network_of_ones_own(example):
    names = example("own_network")
    assert isinstance(names["segmenter"].labeller.network, names["ThreeConvolutions"])
    losses = [record["loss"] for record in steps_of(names["run"])]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_the_augmentation_of_ones_own(example):
    names = example("own_augmentation")
    ramps = names["ramps"]
    image = torch.ones(1, 8, 9, 10)
    ramps.set_random_state(0)
    for _ in range(20):
        changed = ramps({"image": image, "label": image})["image"]
        varying = [axis for axis in (1, 2, 3) if not torch.equal(changed, changed.roll(1, axis))]
        assert len(varying) == ramps._do_transform
        assert changed.mean().item() == pytest.approx(1)
        assert 0.5 <= changed.min() <= changed.max() <= 1.5
    assert read_card(names["run"] / "model.safetensors").training["custom_transforms"].endswith("RandRamp")


def test_the_callback_that_stops_on_a_plateau(example):
    names = example("stop_on_plateau")
    stop = names["StopOnPlateau"](steps=2, least=0.1)
    assert [stop({"loss": loss}, None) for loss in (4, 4, 3, 3, 2.9, 2.9)] == [False, False, False, False, False, True]
    steps = len(steps_of(names["run"]))
    assert 16 <= steps < 200
    training = read_card(names["run"] / "model.safetensors").training
    assert (training["steps"], training["finished"]) == (steps, f"early, after step {steps} of 200")
