"""Pairing label images by name, and reading the names of labels."""

import json
import logging
from pathlib import Path

import pytest

from volseg.data.cases.labels import LabelSet
from volseg.errors import ConfigError, InputError
from volseg.evaluation.pairs import Pair, Pairs, labels_of, match_pairs, read_labels_file


def read_labels(path: Path) -> LabelSet:
    return labels_of(read_labels_file(path), str(path))


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


def test_folders_pair_by_name_across_formats(tmp_path: Path) -> None:
    predictions = folder_of(tmp_path / "p", "b.mha", "a.nii.gz", "a.json", "a.png", ".hidden.nii.gz", "summary.csv")
    references = folder_of(tmp_path / "r", "a.nrrd", "b.nii.gz", "dataset.json")
    (references / "c.nii.gz.d").mkdir()
    assert match_pairs(predictions, references) == Pairs(
        (
            Pair("a", predictions / "a.nii.gz", references / "a.nrrd"),
            Pair("b", predictions / "b.mha", references / "b.nii.gz"),
        )
    )


def test_files_pair_whatever_their_names(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", "guess.mgz", "truth.nii.gz")
    pairs = match_pairs(folder / "guess.mgz", folder / "truth.nii.gz")
    assert pairs == Pairs((Pair("guess", folder / "guess.mgz", folder / "truth.nii.gz"),))


def test_a_file_finds_its_reference_in_a_folder(tmp_path: Path) -> None:
    predictions = folder_of(tmp_path / "p", "a.nii")
    references = folder_of(tmp_path / "r", "a.nii.gz", "b.nii.gz")
    pairs = match_pairs(predictions / "a.nii", references)
    assert pairs == Pairs((Pair("a", predictions / "a.nii", references / "a.nii.gz"),), ("b",))


def test_references_without_prediction_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictions = folder_of(tmp_path / "p", "case_3.nii.gz")
    references = folder_of(tmp_path / "r", *(f"case_{number}.nii.gz" for number in range(8)))
    with caplog.at_level(logging.WARNING):
        pairs = match_pairs(predictions, references)
    assert [pair.name for pair in pairs.matched] == ["case_3"]
    assert pairs.unmatched_references == ("case_0", "case_1", "case_2", "case_4", "case_5", "case_6", "case_7")
    assert caplog.messages == [
        "7 of 8 references have no prediction: case_0, case_1, case_2, case_4, case_5 and 2 more."
    ]


def test_predictions_without_reference_are_rejected(tmp_path: Path) -> None:
    predictions = folder_of(tmp_path / "p", "a.nii.gz", "x.nii.gz", "y.mha")
    references = folder_of(tmp_path / "r", "a.nii.gz")
    with pytest.raises(InputError, match=r"2 of 3 predictions in .* have no reference of the same name in .*: x, y\. "):
        match_pairs(predictions, references)


@pytest.mark.parametrize(
    ("names", "chosen", "message"),
    [
        (["a.nii.gz", "a.mha"], "", "a.mha and .*a.nii.gz have the same name"),
        (["a.json"], "", "holds no label image. Known formats: .*nii.gz"),
        (["a.json"], "a.json", "a.json does not end in the suffix of an image"),
        ([], "absent", "absent does not exist"),
    ],
)
def test_what_cannot_be_paired(tmp_path: Path, names: list[str], chosen: str, message: str) -> None:
    bad = folder_of(tmp_path / "bad", *names) / chosen
    good = folder_of(tmp_path / "good", "a.nii.gz")
    for predictions, references in ((bad, good), (good, bad), (bad, good / "a.nii.gz"), (good / "a.nii.gz", bad)):
        with pytest.raises(InputError, match=message):
            match_pairs(predictions, references)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("msd.json", json.dumps({"name": "x", "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}})),
        ("nnunet.json", json.dumps({"labels": {"background": 0, "Anterior": 1, "Posterior": 2}}, indent="\t")),
        ("plain.json", json.dumps({"Anterior": 1, "Posterior": 2})),
        ("plain.yaml", "Anterior: 1\nPosterior: 2\n"),
        ("nested.yml", "labels:\n  0: background\n  1: Anterior\n  2: Posterior\n"),
    ],
)
def test_labels_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_labels(tmp_path / name) == LabelSet({"Anterior": 1, "Posterior": 2})


def test_a_labels_file_with_regions_and_an_ignore_label(tmp_path: Path) -> None:
    document = {"labels": {"whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    expected = LabelSet({"whole": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}, ignore=3)
    assert read_labels(tmp_path / "dataset.json") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"labels": ["a", "b"]}', "'labels' in .* is a list"),
        ('{"labels": {"whole": [1, 2]}, "regions_class_order": []}', "1 regions, but its .* has 0 values"),
        ('{"labels": {"a": true}}', "Label 'a' in .* has the value True"),
        ('{"labels": {"a": 1, "b": 1}}', "share a value"),
        ('{"labels": {"1": "a", "2": "a"}}', "share the name 'a'"),
        ('{"labels": {"background": 0}}', "has no foreground label"),
        ('{"labels"', "Could not read labels from .*Expecting"),
        ("[1, 2]", "holds a list"),
    ],
)
def test_unusable_labels_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_labels(path)


def test_missing_labels_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json"):
        read_labels(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read_labels(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match=r"is a folder\. Give the file with the names and values of labels"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    ("labels", "stored"),
    [
        ({"background": 0, "shell": 1, "core": 2}, {"shell": (1,), "core": (2,)}),
        ({"0": "background", "1": "shell", "2": "core"}, {"shell": (1,), "core": (2,)}),
        ({0: "background", 1: "shell"}, {"shell": (1,)}),
        ({"whole": [1, 2], "core": 2}, {"whole": (1, 2), "core": (2,)}),
        ({"labels": {"a": 1}, "channel_names": {"0": "MR"}}, {"a": (1,)}),
        ({"labels": 1}, {"labels": (1,)}),
    ],
)
def test_a_mapping_is_read_as_a_file_is(labels, stored) -> None:
    assert labels_of(labels, "The labels").stored == stored


@pytest.mark.parametrize("labels", [[1, 2], "shell", 3, {"a": "b"}, {"a": 1.5}, {"background": 0}])
def test_what_is_no_mapping_of_labels_is_one_sentence(labels) -> None:
    with pytest.raises(InputError):
        labels_of(labels, "The labels")
