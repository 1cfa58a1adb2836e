"""The programs in examples/ are short, and do what they say."""

import runpy

import numpy as np
import pytest

from tests.docs.pages import EXAMPLES

NAMES = [
    "fine_tuning", "loss_in_your_loop", "many_files", "metrics_and_probabilities", "network_alone",
    "windows_around_your_network",
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
