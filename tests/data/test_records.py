"""A dataset as a list of cases in Python: the forms it may have, names, and what is refused."""

import json
import ntpath

import nibabel
import numpy as np
import pytest

import volseg
from tests.pipeline import TINY
from volseg.data.cases.dataset import open_dataset, split_folds
from volseg.data.cases.phantom import write_phantoms
from volseg.data.joining import open_datasets
from volseg.data.records import open_cases
from volseg.errors import InputError, UsageError

LABELS = {"background": 0, "ball": 1, "rod": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, 5, 3, "mr")
    return folder


@pytest.fixture(scope="module")
def pairs(folder):
    entries = json.loads((folder / "dataset.json").read_text())["training"]
    return [(folder / one["image"], folder / one["label"]) for one in entries]


def forms(pairs):
    """The same cases in each form."""
    yield pairs
    yield [(str(image), str(label)) for image, label in pairs]
    yield [([image], label) for image, label in pairs]
    yield [{"image": image, "label": str(label)} for image, label in pairs]
    yield tuple({"image": [str(image)], "label": label, "extra": 1} for image, label in pairs)
    yield {"training": [list(pair) for pair in pairs]}


def test_every_form_is_the_same_dataset(folder, pairs):
    plain = open_dataset(folder)
    for form in forms(pairs):
        found = open_cases(form)
        assert found.cases == plain.cases
        assert found.labels.values == {"label_1": 1, "label_2": 2}
        assert found.channels == ("image",)
        assert found.name == "phantoms"
        assert split_folds(found).splits == split_folds(plain).splits


def test_names_are_given_as_in_dataset_json(pairs):
    found = open_cases({"training": pairs, "labels": LABELS, "channel_names": ["CT"], "name": "Mine", "licence": "CC0"})
    assert found.labels.values == {"ball": 1, "rod": 2}
    assert (found.channels, found.name, found.licence) == (("CT",), "Mine", "CC0")
    assert open_cases({"training": pairs, "labels": LABELS, "modality": {"0": "MRI"}}).channels == ("MRI",)


def test_several_files_are_the_channels(pairs):
    found = open_cases([((image, image), label) for image, label in pairs])
    assert found.cases[0].images == (pairs[0][0], pairs[0][0])
    assert found.channels == ("image", "image 2") or len(set(found.channels)) == 2


def test_names_folds_and_groups_of_cases(pairs):
    entries = [
        {
            "name": f"case_{number}",
            "image": image,
            "label": label,
            "fold": number % 2,
            "group": f"patient {number // 2}",
        }
        for number, (image, label) in enumerate(pairs)
    ]
    found = open_cases(entries)
    assert found.names == [f"case_{number}" for number in range(5)]
    assert found.groups == {f"case_{number}": f"patient {number // 2}" for number in range(5)}
    assert found.folds.splits[0]["val"] == ["case_0", "case_2", "case_4"]


def test_a_validation_list_is_the_fold(pairs):
    found = open_cases({"training": pairs[:3], "validation": pairs[3:]})
    assert [len(half) for half in found.folds.splits[0].values()] == [3, 2]


def test_folds_of_the_working_directory_or_of_the_files_are_not_taken(folder, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, folder):
        (place / "splits_final.json").write_text("[]")
    try:
        assert "shuffled" in split_folds(open_cases(pairs)).source
    finally:
        (folder / "splits_final.json").unlink()


def test_relative_paths_are_relative_to_the_working_directory(folder, pairs, monkeypatch):
    monkeypatch.chdir(folder)
    relative = [(image.relative_to(folder), label.relative_to(folder)) for image, label in pairs]
    assert open_cases(relative).cases == open_cases(pairs).cases


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda pairs: [], InputError, r"The list of cases is empty. Give \(image, label\) for each case"),
        (lambda pairs: [*pairs, ("missing.nii.gz", pairs[0][1])], InputError, "1 file of the list of cases is not"),
        (lambda pairs: [*pairs, pairs[0]], InputError, "Two cases are named phantom_001, after .*Name them"),
        (lambda pairs: [*pairs, pairs[0][0]], UsageError, r"Case 5 of the list is .*expected \(image, label\) or"),
        (lambda pairs: [*pairs, {"image": pairs[0][0]}], InputError, r"training.5.label"),
        (lambda pairs: [({"a": 1}, pairs[0][1])], InputError, r"training.0.image"),
        (lambda pairs: [{"name": "../x", "image": p[0], "label": p[1]} for p in pairs], InputError, "no file can be"),
        (lambda pairs: {"labels": LABELS}, UsageError, "type dict, expected a folder, a list of cases"),
        (lambda pairs: 3, UsageError, "type int, expected a folder, a list of cases"),
        (lambda pairs: {"training": pairs, "labels": [1]}, InputError, "'labels' in the list of cases is a list"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_cases_is_refused_in_a_sentence(pairs, change, error, message):
    with pytest.raises(error, match=message):
        open_cases(change(pairs))


def test_a_list_trains_the_model_of_its_folder_and_resumes(folder, pairs, tmp_path):
    call = {"overrides": (*TINY, "training.workers=0", "training.validations=0"), "device": "cpu", "steps": 2}
    listed = {"training": pairs, "labels": LABELS, "channel_names": ["MRI"]}
    first = volseg.train(folder, tmp_path / "folder", **call)
    second = volseg.train(listed, tmp_path / "list", **call)
    for name in ("validation.json", "splits.json", "cases.json"):
        assert (first / name).read_text() == (second / name).read_text()
    assert "# 5 cases" in volseg.plan(listed, overrides=TINY, device="cpu")
    volseg.train(listed, second, resume=True, device="cpu", steps=3)
    with pytest.raises(InputError, match="phantom_005"):
        volseg.train({**listed, "training": pairs[:4]}, second, resume=True, device="cpu")
    with pytest.raises(InputError, match=r"started with the labels .* but phantoms has"):
        volseg.train(pairs, second, resume=True, device="cpu")
    other, image = tmp_path / pairs[0][0].name, nibabel.load(pairs[0][0])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), other)
    with pytest.raises(InputError, match="have changed: phantom_001"):
        volseg.train({**listed, "training": [(other, pairs[0][1]), *pairs[1:]]}, second, resume=True, device="cpu")


def test_cases_and_datasets_on_several_drives_of_windows_have_no_common_folder(pairs, folder, tmp_path, monkeypatch):
    other = tmp_path / "other"
    write_phantoms(other, 5, 9, "mr")
    entry = json.loads((other / "dataset.json").read_text())["training"][0]
    elsewhere = (other / entry["image"], other / entry["label"])
    with monkeypatch.context() as windows:
        windows.setattr("os.path.commonpath", lambda _: ntpath.commonpath(["C:\\data", "D:\\data"]))
        listed = open_cases([*pairs, {"image": elsewhere[0], "label": elsewhere[1], "name": "elsewhere"}])
        joined = open_datasets([folder, other])
    assert (listed.name, len(listed.cases)) == ("cases", 6)
    assert (joined.folder, len(joined.cases)) == (None, 10)
