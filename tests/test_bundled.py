"""The model that comes with the package."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.pipeline import volseg
from volseg import Segmenter
from volseg.evaluation.overlap import label_overlaps
from volseg.modelfile import BUNDLED, find_model, read_card

NAMES = ["hippocampus"]


def test_the_bundled_models_are_these() -> None:
    assert sorted(path.stem for path in BUNDLED.glob("*.safetensors")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_model_is_small_and_says_where_it_comes_from(name: str) -> None:
    path = find_model(name)
    card = read_card(path)
    assert path.stat().st_size < 10e6
    assert card.training["licence"]
    members, scores = card.training["members"], card.scores["members"]
    assert [member["fold"] for member in members] == list(range(len(members)))
    assert all(member["command"].startswith("volseg train ") for member in members)
    assert min(score["foreground_dice"] for score in scores) > 0.88
    # Every case was left out once.
    labels = card.scores["out_of_fold"]["labels"].values()
    assert {label["cases"] for label in labels} == {sum(score["cases"] for score in scores)} == {200}
    assert card.scores["out_of_fold"]["foreground_dice"] > 0.886
    assert all(channel.mean_range for channel in card.plan.channels)
    assert all(label.volume_ml_range for label in card.plan.labels)


@pytest.mark.needs_data
def test_the_hippocampus_model_finds_the_hippocampus_by_its_name(data_folder: Path, tmp_path: Path) -> None:
    scan, output = data_folder / "wild" / "mr_hippocampus_series", tmp_path / "seg.nii.gz"
    done = volseg("predict", scan, "--model", "hippocampus", "--output", output, "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["cases"]
    # A hippocampus has about 3 ml.
    assert 1.0 < record["labels"]["Anterior"]["volume_ml"] < 3.0
    assert 1.0 < record["labels"]["Posterior"]["volume_ml"] < 3.0


@pytest.mark.needs_data
def test_the_hippocampus_model_agrees_with_references(data_folder: Path) -> None:
    folder = data_folder / "Task04_Hippocampus"
    segmenter = Segmenter.load("hippocampus", device="cpu")
    values = {label.name: label.value for label in segmenter.card.plan.labels}
    for scan in sorted((folder / "imagesTr").glob("*.nii.gz"))[:5]:
        reference = np.asarray(nibabel.load(folder / "labelsTr" / scan.name).dataobj)
        overlaps = label_overlaps(segmenter(scan).labels, reference, values, 1.0)
        assert all(overlap.dice > 0.8 for overlap in overlaps.values()), scan.name
