"""Which cases a run trains and validates on, from files, dataset.json and groups; and two channels of one name."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.pipeline import TINY
from volseg import train
from volseg.api.predict import predict
from volseg.api.train import plan_dataset
from volseg.cli import app
from volseg.errors import InputError, UsageError
from volseg.modelfile import read_card

pytestmark = pytest.mark.usefixtures("one_thread")
CALL: dict[str, Any] = {"steps": 1, "overrides": (*TINY, "training.validations=0"), "device": "cpu"}
NAMES = [f"phantom_{number:03d}" for number in range(1, 6)]


@pytest.fixture
def data(phantoms, tmp_path) -> Path:
    """A copy of the phantoms whose dataset.json a test may change."""
    return shutil.copytree(phantoms, tmp_path / "data")


def change(data: Path, **changes: Any) -> None:
    document = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(document | changes))


def entries(data: Path) -> list[dict[str, Any]]:
    return sorted(json.loads((data / "dataset.json").read_text())["training"], key=lambda one: one["image"])


def scored(run: Path) -> list[str]:
    return [case["name"] for case in json.loads((run / "validation.json").read_text())["cases"]]


def test_a_run_validates_on_the_validation_list(data, tmp_path):
    scans = entries(data)
    change(data, training=scans[:3], validation=[*scans[3:], "./imagesTs/other.nii.gz"])
    run = train(data, tmp_path / "run", **CALL)
    assert json.loads((run / "splits.json").read_text()) == [{"train": NAMES[:3], "val": NAMES[3:]}]
    assert scored(run) == NAMES[3:]
    assert read_card(run / "model.safetensors").training["cases"] == 3
    log = (run / "log.txt").read_text()
    assert f'Fold 0 of 1: "validation" in {data / "dataset.json"}' in log
    assert "3 cases to train on, 2 to validate on" in log


def test_a_run_validates_on_the_cases_of_its_fold(data, tmp_path):
    change(data, training=[one | {"fold": fold} for one, fold in zip(entries(data), (0, 1, 1, 2, 0), strict=True)])
    run = train(data, tmp_path / "run", fold="1", folds=3, **CALL)
    assert scored(run) == [NAMES[1], NAMES[2]]
    assert f'Fold 1 of 3: "fold" of each case in {data / "dataset.json"}' in (run / "log.txt").read_text()
    # The folds of a run stay what they were.
    change(data, training=entries(data)[::-1])
    train(data, run, resume=True, fold=np.int64(1), **CALL | {"steps": 2})
    assert scored(run) == [NAMES[1], NAMES[2]]
    with pytest.raises(
        UsageError, match=r'There is no fold 3 among 3 \("fold" of each case in .*\). Give 0 to 2, or all'
    ):
        train(data, tmp_path / "other", fold=3, **CALL)


def test_a_file_of_folds_goes_before_those_of_the_dataset(data, tmp_path):
    (data / "splits_final.json").write_text(json.dumps([{"train": NAMES[:4], "val": NAMES[4:]}]))
    mine, other = tmp_path / "mine.json", tmp_path / "other.json"
    splits = [{"train": NAMES[1:], "val": NAMES[:1]}, {"train": NAMES[:2], "val": [NAMES[3]]}]
    mine.write_text(json.dumps(splits))
    other.write_text(json.dumps(splits[::-1]))
    run = train(data, tmp_path / "run", splits=mine, fold=1, folds=2, **CALL)
    assert json.loads((run / "splits.json").read_text()) == splits
    assert scored(run) == [NAMES[3]]
    command = read_card(run / "model.safetensors").training["command"]
    assert "--fold 1 --folds 2 --splits mine.json" in command
    assert str(tmp_path) not in command
    train(data, run, resume=True, **CALL | {"steps": 2})
    shutil.copy(other, mine)
    with pytest.raises(
        UsageError, match=r"mine.json has other folds than .*splits.json, with which the run was started"
    ):
        train(data, run, splits=mine, resume=True, **CALL | {"steps": 2})
    assert "--splits mine.json" in read_card(run / "model.safetensors").training["command"]


def test_all_with_a_file_of_folds_trains_on_its_cases(data, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps([{"train": NAMES[:2], "val": [NAMES[3]]}]))
    run = train(data, tmp_path / "run", splits=str(mine), fold="all", **CALL)
    assert read_card(run / "model.safetensors").training["cases"] == 3
    with pytest.raises(UsageError, match="An empty path was given"):
        train(data, tmp_path / "other", splits="", **CALL)
    with pytest.raises(InputError, match=r"Could not read .*nowhere.json"):
        train(data, tmp_path / "other", splits=tmp_path / "nowhere.json", **CALL)
    assert not (tmp_path / "other").exists()


def test_scans_of_one_patient_are_not_torn_apart(data, tmp_path):
    groups = dict(zip(NAMES, ("one", "two", "one", "three", "two"), strict=True))
    change(data, groups=groups)
    run = train(data, tmp_path / "run", folds=3, **CALL)
    for split in json.loads((run / "splits.json").read_text()):
        assert not {groups[name] for name in split["train"]} & {groups[name] for name in split["val"]}
    assert (
        "Fold 0 of 3: 5 cases of 3 groups by the dataset; the scans of one group stay" in (run / "log.txt").read_text()
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Folds: the sorted case names, shuffled as by nnU-Net"),
        (
            {"groups": {NAMES[0]: "x", NAMES[1]: "x"}},
            "Folds: 2 cases of 1 group by the dataset; the scans of one group",
        ),
        ({"fold": True}, 'Folds: 5, "fold" of each case in '),
    ],
)
def test_a_plan_says_which_folds_are_used(data, caplog, changes, said):
    caplog.set_level(logging.INFO)
    if changes.pop("fold", False):
        changes = {"training": [one | {"fold": fold} for fold, one in enumerate(entries(data))]}
    change(data, **changes)
    plan_dataset(data, overrides=TINY, device="cpu")
    (message,) = [one for one in caplog.messages if one.startswith("Folds: ")]
    assert message.startswith(said)


def test_two_channels_of_one_name_never_have_one_file(data, tmp_path):
    folder = tmp_path / "nnunet"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name in NAMES:
        for channel in (0, 1):
            shutil.copy(data / "imagesTr" / f"{name}.nii.gz", folder / "imagesTr" / f"{name}_000{channel}.nii.gz")
        shutil.copy(data / "labelsTr" / f"{name}.nii.gz", folder / "labelsTr" / f"{name}.nii.gz")
    document = {"channel_names": {"0": "MRI", "1": "mri"}, "labels": {"background": 0, "ball": 1, "rod": 2}}
    (folder / "dataset.json").write_text(json.dumps(document))
    model = train(folder, tmp_path / "run", fold="all", **CALL) / "model.safetensors"
    assert [channel.name for channel in read_card(model).plan.channels] == ["MRI_0", "mri_1"]
    first, second = (folder / "imagesTr" / f"{NAMES[0]}_000{channel}.nii.gz" for channel in (0, 1))
    for names in (["MRI"], ["MRI", "mri"], ["MRI_0"]):
        with pytest.raises(
            UsageError, match=r"The model's channels are MRI_0, mri_1, found --channel .*Give each once"
        ):
            predict(None, model, tmp_path / "out.nii.gz", channels=dict.fromkeys(names, first), device="cpu")
        typed = [word for name in names for word in ("--channel", f"{name}={first}")]
        failed = CliRunner().invoke(
            app, ["predict", *typed, "--model", str(model), "--output", str(tmp_path / "x.nii")]
        )
        assert failed.exit_code == 2
    (done,) = predict(None, model, tmp_path / "out.nii.gz", channels={"MRI_0": first, "mri_1": second}, device="cpu")
    assert (done.error, done.inputs) == (None, (first, second))
