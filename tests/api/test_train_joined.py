"""Partial labels and several datasets, trained end to end on scans of a few thousand voxels."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.api.test_train_labels import LEARNED, balls, dice_of, load, noisy, save
from tests.pipeline import TINY, volseg
from volseg import Segmenter, plan, train
from volseg.api.describe import describe
from volseg.config import read_yaml
from volseg.errors import InputError, UsageError
from volseg.modelfile import read_card

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("a", "b", "c", "d")
SMALL = (*TINY, "plan.blocks_per_stage=2")


def write(folder: Path, seeds: range, labels: dict[str, int], **document: object) -> Path:
    """A dataset of scans with a ball of 100 and one of 400, of which only some are in the labels."""
    names = {}
    for name, seed in zip(NAMES, seeds, strict=False):
        masks = dict(zip(("first", "second"), balls(seed, 5, 5), strict=True))
        save(folder / "imagesTr" / f"{name}_0000.nii.gz", noisy(seed, (masks["first"], 100), (masks["second"], 400)))
        reference = sum(value * masks[label] for label, value in labels.items())
        save(folder / "labelsTr" / f"{name}.nii.gz", np.asarray(reference, np.uint8))
        names[name] = seed
    index = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **labels}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**index, **document}))
    return folder


def whole_dice(run: Path) -> dict[str, float]:
    """The mean Dice of both balls in scans that nobody has trained on."""
    segmenter = Segmenter.load(run / "model.safetensors", device="cpu")
    found: dict[str, list[float]] = {"first": [], "second": []}
    for seed in range(50, 54):
        first, second = balls(seed, 5, 5)
        labels = segmenter((noisy(seed, (first, 100), (second, 400)), np.diag([1.5, 1.5, 1.5, 1.0]))).labels
        found["first"].append(dice_of(labels == 1, first))
        found["second"].append(dice_of(labels == 2, second))
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> list[Path]:
    """Both datasets give their only label the value 1."""
    folder = tmp_path_factory.mktemp("halves")
    return [write(folder / "A", range(4), {"first": 1}), write(folder / "B", range(4, 8), {"second": 1}, licence="MIT")]


@pytest.fixture(scope="module")
def joined(halves) -> Path:
    overrides = [*SMALL, "training.dataset_shares={A: 3, B: 3}"]
    run = halves[0].parent / "run"
    return train(halves, run, folds=2, steps=150, overrides=overrides, device="cpu")


def test_both_labels_are_learned_and_neither_where_missing_is_background(joined, halves, tmp_path):
    learned = whole_dice(joined)
    assert min(learned.values()) > LEARNED
    # The same label images, as if all labels were annotated in all of them.
    folder = tmp_path / "background"
    for name, seeds, label in (("A", range(4), "first"), ("B", range(4, 8), "second")):
        part = write(tmp_path / name, seeds, {label: 1 if label == "first" else 2})
        for place in ("imagesTr", "labelsTr"):
            for path in (part / place).iterdir():
                save(folder / place / f"{name}_{path.name}", load(path))
    index = {"channel_names": {"0": "MRI"}, "labels": {"first": 1, "second": 2}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(index))
    run = train(folder, tmp_path / "run", folds=2, steps=150, overrides=SMALL, device="cpu")
    missing = whole_dice(run)
    assert np.mean([*learned.values()]) > np.mean([*missing.values()]) + 0.1


def test_a_run_says_what_it_was_trained_on(joined):
    training = read_card(joined / "model.safetensors").training
    assert training["dataset"] == "A + B"
    assert training["licence"] == "A: not stated; B: MIT"
    assert training["datasets"] == {"A": 2, "B": 2}
    assert training["dataset_shares"] == {"A": 0.5, "B": 0.5}
    assert training["annotated_cases"] == {"first": 2, "second": 2}
    assert training["command"].startswith("volseg train A B --output RUN --fold 0")
    assert "annotated_cases {'first': 2, 'second': 2}" in describe(joined / "model.safetensors")["trained_on"]
    assert read_yaml(joined / "settings.yaml")["datasets"] == ["A", "B"]
    header = (joined / "plan.yaml").read_text()
    assert "# dataset B: 4 cases, 50 % of the samples, labels second" in header
    assert "# label first: in 4 of the 4 cases annotated for it, " in header
    assert "partial labels, annotated of 8 cases: first 4, second 4" in header
    found = read_yaml(joined / "plan.yaml")
    assert [(label["name"], label["value"]) for label in found["labels"]] == [("first", 1), ("second", 2)]
    assert found["mirror_axes"] == []


def test_labels_that_nobody_looked_for_are_null_in_the_scores(joined):
    scores = json.loads((joined / "validation.json").read_text())
    split = json.loads((joined / "splits.json").read_text())[0]
    assert [case["name"] for case in scores["cases"]] == split["val"]
    assert sorted(name[:2] for name in split["val"]) == ["A_", "A_", "B_", "B_"]
    for case in scores["cases"]:
        known, unknown = ("first", "second") if case["name"].startswith("A") else ("second", "first")
        assert set(case["labels"][unknown].values()) == {None}
        assert case["labels"][known]["dice"] > LEARNED
        assert case["not_annotated"] == [unknown]
    assert {name: mean["cases"] for name, mean in scores["mean"]["labels"].items()} == {"first": 2, "second": 2}
    assert scores["warnings"] == [one for one in scores["warnings"] if "in no image" not in one]
    last = [json.loads(line) for line in (joined / "metrics.jsonl").read_text().splitlines()]
    during = [record["dice"] for record in last if "dice" in record]
    assert during
    assert set(during[0]) == {"first", "second"}


def test_a_resumed_run_needs_the_same_datasets_in_the_same_order(joined, halves):
    one, other = halves
    for datasets, found in (([other, one], "B and A"), ([one], "a single dataset")):
        with pytest.raises(InputError, match=f"was started with A and B, found {found}. Resume it with the same"):
            train(datasets, joined, resume=True, device="cpu")


def test_a_fold_without_an_annotated_case_of_a_label_is_refused(tmp_path):
    folder = write(tmp_path / "A", range(4), {"first": 1, "second": 2})
    index = json.loads((folder / "dataset.json").read_text())
    index["annotated"] = {name: ["first"] for name in "abc"}
    (folder / "dataset.json").write_text(json.dumps(index))
    splits = [{"train": ["a", "b", "c"], "val": ["d"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match="second is annotated in no case that this fold trains on"):
        train(folder, tmp_path / "run", steps=1, device="cpu")
    splits = [{"train": ["a", "b", "d"], "val": ["c"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match=r"a: label not annotated: labelsTr/a.nii.gz has .* voxels of second"):
        train(folder, tmp_path / "run", steps=1, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_knows_nothing_of_partial_labels_is_refused_before_any_work(halves, tmp_path):
    with pytest.raises(UsageError, match="no keyword annotated"):
        train(halves, tmp_path / "run", steps=1, loss=lambda logits, target: logits.mean(), device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_plan_of_several_datasets_on_the_command_line(halves):
    done = volseg("plan", *halves, "--set", "training.dataset_shares=equal")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Plan for A + B.")
    assert "# dataset A: 4 cases, 50 % of the samples, labels first" in done.stdout
    assert "no case has all labels annotated" in done.stdout
    shares = ("--folds", "2", "--set", "training.dataset_shares={A: 1}")
    done = volseg("train", *halves, "--output", halves[0].parent / "none", *shares)
    assert done.returncode == 2
    assert "expected a share for each of the datasets that are joined: A, B" in done.stderr


def test_partial_labels_of_one_dataset_are_planned_from_the_cases_that_have_them(tmp_path):
    folder = write(tmp_path / "A", range(4), {"first": 1, "second": 2})
    for name in "ab":
        path = folder / "labelsTr" / f"{name}.nii.gz"
        values = load(path)
        save(path, np.where(values == 2, 0, values).astype(np.uint8))
    index = json.loads((folder / "dataset.json").read_text())
    whole = plan(folder, overrides=SMALL)
    (folder / "dataset.json").write_text(json.dumps({**index, "annotated": {"a": ["first"], "b": ["first"]}}))
    text = plan(folder, overrides=SMALL)
    assert "# label second: in 2 of 4 cases" in whole
    assert "# label second: in 2 of the 2 cases annotated for it" in text
    assert "annotated of 4 cases: first 4, second 2" in text
    assert "partial" not in whole
