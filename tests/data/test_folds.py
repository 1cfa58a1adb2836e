"""Folds: nnU-Net's, those of files and of dataset.json, and groups that stay together."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from volseg.data.cases.dataset import Dataset, TrainingCase, open_dataset, split_folds
from volseg.data.cases.labels import LabelSet
from volseg.data.folds import choose_fold, read_splits
from volseg.errors import InputError, UsageError


def many_cases(folder: Path, count: int) -> Dataset:
    cases = tuple(TrainingCase(f"case_{i:03d}", (folder / f"{i}",), folder / f"{i}") for i in range(count))
    return Dataset("many", folder, ("image",), LabelSet({"organ": 1}), cases)


def dataset_of(*names: str, **changes: Any) -> Dataset:
    """A dataset of cases of these names, whose files do not exist."""
    folder = Path("nowhere")
    cases = tuple(TrainingCase(name, (folder / name,), folder / name) for name in sorted(names))
    return Dataset("named", folder, ("image",), LabelSet({"organ": 1}), cases, **changes)


def entry(name: str, **more: Any) -> dict[str, Any]:
    """A case of a Decathlon-like dataset.json."""
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz", **more}


def write_list(folder: Path, training: list[Any], **more: Any) -> Path:
    """A Decathlon-like dataset.json; the files that it names do not exist."""
    document = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ"}, "training": training, **more}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("count", "held_out"),
    [
        (5, [[0], [4], [3], [1], [2]]),
        (7, [[3, 4, 6], [0, 1], [2, 5]]),
        (11, [[0, 3, 6, 7, 9, 10], [1, 2, 4, 5, 8]]),
        (13, [[0, 7, 9], [3, 6, 10], [8, 11, 12], [1, 4], [2, 5]]),
        (20, [[3, 8, 13, 16], [0, 10, 12, 15], [6, 7, 11, 17], [9, 14, 18, 19], [1, 2, 4, 5]]),
        (
            32,
            [
                [0, 3, 8, 12, 15, 18, 27],
                [6, 7, 20, 21, 23, 24, 25],
                [10, 11, 13, 16, 19, 26],
                [14, 17, 22, 28, 30, 31],
                [1, 2, 4, 5, 9, 29],
            ],
        ),
    ],
)
def test_folds_are_those_of_nnunet(tmp_path: Path, count: int, held_out: list[list[int]]) -> None:
    # Written down from scikit-learn 1.9.1: KFold(n_splits=len(held_out), shuffle=True, random_state=12345).
    names = [f"case_{number:03d}" for number in range(count)]
    expected = [
        {"train": [name for i, name in enumerate(names) if i not in part], "val": [names[i] for i in part]}
        for part in held_out
    ]
    assert split_folds(many_cases(tmp_path, count), len(held_out)).splits == expected


def test_the_folds_of_the_hippocampus_are_those_of_nnunet(tmp_path: Path) -> None:
    # The 260 cases of Task04; the first ones of each fold, written down as above.
    folds = split_folds(many_cases(tmp_path, 260), 5).splits
    assert [fold["val"][:6] for fold in folds] == [
        [f"case_{number:03d}" for number in part]
        for part in (
            [9, 10, 16, 18, 20, 30],
            [1, 14, 15, 17, 19, 26],
            [2, 4, 8, 13, 24, 25],
            [0, 3, 6, 12, 21, 22],
            [5, 7, 11, 23, 29, 31],
        )
    ]
    assert all(len(fold["train"]) == 208 for fold in folds)
    assert sorted(name for fold in folds for name in fold["val"]) == [f"case_{number:03d}" for number in range(260)]


def test_folds_of_the_dataset_take_precedence(tmp_path, caplog):
    dataset = many_cases(tmp_path, 4)
    splits = [{"train": ["case_000", "case_001"], "val": ["case_002"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    assert split_folds(dataset, 5).splits == splits
    path = tmp_path / "splits_final.json"
    assert caplog.messages == [f"Using the 1 fold of {path} instead of 5"]
    path.write_text(json.dumps(splits * 5))
    assert split_folds(dataset, 5).splits == splits * 5
    assert len(caplog.messages) == 1
    with pytest.raises(UsageError, match="--folds is 0, expected at least 2"):
        split_folds(dataset, 0)


def test_a_fold_of_the_dataset_may_have_no_validation_cases(tmp_path):
    splits = [{"train": ["case_000", "case_001"], "val": []}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    assert read_splits(tmp_path / "splits.json", many_cases(tmp_path, 2).names).splits == splits


@pytest.mark.parametrize(
    ("splits", "complaint"),
    [
        ([{"train": ["case_000", "other"], "val": []}], "names 1 case not in the dataset: other."),
        (
            [{"train": ["case_000.nii.gz"], "val": ["case_001_0000.nii.gz"]}],
            "Give the names of cases, not of files: case_000 for case_000.nii.gz.",
        ),
        ([{"train": ["case_000"], "val": ["case_001_0000.nii.gz"]}], "case_001 for case_001_0000.nii.gz."),
        ([{"train": ["case_000"], "val": ["case_000"]}], "fold 0: train and val both contain case_000"),
        ([{"train": ["case_000"], "val": []}, {"train": [], "val": ["case_000"]}], "fold 1: train is empty. List the"),
        (
            [{"train": ["case_001", "case_000", "case_001"], "val": []}],
            "fold 0: train contains case_001 more than once. List each case once.",
        ),
        ([{"train": ["case_000"], "val": ["case_001"] * 3}], "fold 0: val contains case_001 more than once."),
        ([{"train": ["case_000"]}], "json, fold 0, is invalid: 'val' is missing."),
        ([{"train": None, "val": []}], "fold 0, is invalid: 'train': Input should be a valid list, found None."),
        ([{"train": "c00", "val": []}], "fold 0, is invalid: 'train': Input should be a valid list, found 'c00'."),
        ([{"train": [["a"]], "val": []}], r"'train.0': Input should be a valid string, found \['a'\]."),
        (["case_000"], "fold 0, is invalid: "),
        ({"train": [], "val": []}, "must be a list"),
        ([], "must be a list"),
    ],
)
def test_splits_that_do_not_fit(tmp_path, splits, complaint):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(splits))
    with pytest.raises(InputError, match=complaint):
        read_splits(path, many_cases(tmp_path, 2).names)


def test_too_few_cases_or_folds(tmp_path):
    with pytest.raises(InputError, match="3 cases cannot be split into 5 folds"):
        split_folds(many_cases(tmp_path, 3), 5)
    with pytest.raises(UsageError, match="at least 2"):
        split_folds(many_cases(tmp_path, 3), 1)


def test_choosing_a_fold(tmp_path):
    folds = split_folds(many_cases(tmp_path, 6), 3)
    assert choose_fold(folds, 2) == folds.splits[2]
    assert choose_fold(folds, "all") == {"train": [f"case_{i:03d}" for i in range(6)], "val": []}
    for wrong in (3, -1, "first"):
        with pytest.raises(
            UsageError, match=rf"There is no fold {wrong} among 3 \(the sorted case names, .*\). Give 0 to 2, or all."
        ):
            choose_fold(folds, wrong)


def test_a_fold_for_each_case_is_used(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_list(tmp_path, [entry(name, fold=fold) for name, fold in (("d", 1), ("b", 0), ("a", 2), ("c", 0))])
    folds = split_folds(open_dataset(tmp_path), 3)
    assert folds.splits == [
        {"train": ["a", "d"], "val": ["b", "c"]},
        {"train": ["a", "b", "c"], "val": ["d"]},
        {"train": ["b", "c", "d"], "val": ["a"]},
    ]
    assert folds.source == f'"fold" of each case in {tmp_path / "dataset.json"}'
    assert not caplog.messages
    assert split_folds(open_dataset(tmp_path), 5) == folds
    assert caplog.messages == [f"Using the 3 folds of {folds.source} instead of 5"]


@pytest.mark.parametrize(
    ("folds", "complaint"),
    [
        ([0, None, 1, None], '"fold" for 2 of 4 cases, but none for b, d. Give one to every case, or to none'),
        ([0, 2, 2, 0], 'values of "fold" in .* are 0, 2; expected two or more, numbered from 0 without a gap'),
        ([1, 2, 3, 4], "are 1, 2, 3, 4; expected two or more, numbered from 0"),
        ([0, 0, 0, 0], "are 0; expected two or more"),
        ([0, "1", 1, 1], "'training.1.fold': Input should be a valid integer, found '1'"),
        ([0, True, 1, 1], "'training.1.fold': Input should be a valid integer, found True"),
        ([0, 1.0, 1, 1], "'training.1.fold': Input should be a valid integer, found 1.0"),
        ([0, -1, 1, 1], "'training.1.fold': Input should be greater than or equal to 0, found -1"),
        ([0, [1], 1, 1], "'training.1.fold': Input should be a valid integer, found"),
    ],
)
def test_folds_of_cases_that_say_no_folds(tmp_path, folds, complaint):
    entries = [
        entry(name, **({} if fold is None else {"fold": fold})) for name, fold in zip("abcd", folds, strict=True)
    ]
    with pytest.raises(InputError, match=complaint):
        open_dataset(write_list(tmp_path, entries))


def test_a_validation_list_is_one_fold(tmp_path):
    write_list(tmp_path, [entry("c"), entry("a")], validation=[entry("d"), entry("b")])
    dataset = open_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["a", "b", "c", "d"]
    folds = split_folds(dataset)
    assert folds.splits == [{"train": ["a", "c"], "val": ["b", "d"]}]
    assert folds.source == f'"validation" in {tmp_path / "dataset.json"}'
    assert choose_fold(folds, "all") == {"train": ["a", "b", "c", "d"], "val": []}
    with pytest.raises(UsageError, match=r'There is no fold 1 among 1 \("validation" in .*\). Give 0, or all.'):
        choose_fold(folds, 1)


@pytest.mark.parametrize("listed", ["./imagesTs/d.nii.gz", {"image": "d.nii.gz"}, {"image": "d.nii.gz", "label": ""}])
def test_scans_to_validate_without_a_label_are_passed_over(tmp_path, caplog, listed):
    caplog.set_level(logging.INFO)
    write_list(tmp_path, [entry("a"), entry("b")], validation=[listed], test=["./imagesTs/e.nii.gz", 5])
    dataset = open_dataset(tmp_path)
    assert ([case.name for case in dataset.cases], dataset.folds) == (["a", "b"], None)
    assert [one for one in caplog.messages if '1 scan of "validation"' in one and "without a label" in one]
    write_list(tmp_path, [entry("a"), entry("b")], validation=[listed, entry("c")])
    assert split_folds(open_dataset(tmp_path)).splits == [{"train": ["a", "b"], "val": ["c"]}]


@pytest.mark.parametrize(
    ("training", "validation", "complaint"),
    [
        ([entry("a"), entry("b")], [entry("b")], 'lists 1 file under both "training" and "validation": imagesTr/b'),
        (
            [entry("a"), entry("b")],
            [{**entry("c"), "image": "imagesTr/../imagesTr/a.nii.gz"}],
            'lists 1 file under both "training" and "validation": imagesTr/a.nii.gz. Remove each from one',
        ),
        ([entry("a", fold=0), entry("b", fold=1)], [entry("c")], "states folds twice, .*Remove one of them"),
        ([], [entry("c")], '"training" in .* is empty. List the cases to train on'),
        ([entry("a")], 5, "'validation': expected a list of"),
        ([entry("a")], [5], "'validation.0': expected a mapping of keys to values, found 5"),
        ([entry("a")], [{"label": "b.nii"}], "'validation.0.image' is missing"),
    ],
)
def test_validation_lists_that_do_not_fit(tmp_path, training, validation, complaint):
    with pytest.raises(InputError, match=complaint):
        open_dataset(write_list(tmp_path, training, validation=validation))


def test_scans_of_one_name_in_both_lists_are_a_problem(tmp_path):
    other = {"image": "./imagesVal/a.nii.gz", "label": "./labelsVal/a.nii.gz"}
    (problem,) = open_dataset(write_list(tmp_path, [entry("a"), entry("b")], validation=[other])).problems
    assert (problem.case, problem.problem) == ("a", "same name")


def test_splits_final_goes_before_dataset_json_and_a_given_file_before_both(tmp_path, caplog):
    write_list(tmp_path, [entry(name, fold=fold) for name, fold in (("a", 0), ("b", 1))])
    final = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(final[::-1]))
    assert split_folds(open_dataset(tmp_path), 2).splits == final[::-1]
    # The same folds in both are no news.
    assert not caplog.messages
    (tmp_path / "splits_final.json").write_text(json.dumps(final))
    assert split_folds(open_dataset(tmp_path), 2).splits == final
    (message,) = caplog.messages
    assert message.startswith(f'Using the folds of {tmp_path / "splits_final.json"}, not those of "fold" of each case')
    given = tmp_path / "mine.json"
    given.write_text(json.dumps(final[:1]))
    found = split_folds(replace(open_dataset(tmp_path), splits=given), 2)
    assert (found.splits, found.source) == (final[:1], str(given))
    assert caplog.messages[1:] == [f"Using the 1 fold of {given} instead of 2"]
    with pytest.raises(InputError, match=r"Could not read .*nowhere.json"):
        split_folds(replace(open_dataset(tmp_path), splits=tmp_path / "nowhere.json"))


def in_folds(dataset: Dataset, folds: int) -> list[list[str]]:
    """The cases that each fold validates on; each case is in one of them, and trained on in the others."""
    splits = split_folds(dataset, folds).splits
    assert sorted(name for split in splits for name in split["val"]) == dataset.names
    for split in splits:
        assert sorted(split["train"] + split["val"]) == dataset.names
        assert [sorted(half) for half in split.values()] == list(split.values())
    return [split["val"] for split in splits]


NAMES = [f"case_{number:02d}" for number in range(20)]


def test_a_group_stays_in_one_fold():
    groups = {name: f"patient {int(name[-2:]) // 3}" for name in NAMES[:18]}
    dataset = dataset_of(*NAMES, groups=groups)
    parts = in_folds(dataset, 5)
    for part in parts:
        for group in {groups[name] for name in part if name in groups}:
            assert {name for name in NAMES if groups.get(name) == group} <= set(part)
    assert sorted(map(len, parts)) == [3, 3, 4, 4, 6]
    # The same each time, whatever the order of the mapping.
    assert in_folds(dataset_of(*NAMES, groups=dict(reversed(groups.items()))), 5) == parts
    assert split_folds(dataset).source == "18 cases of 6 groups by the dataset; the scans of one group stay in one fold"


def test_groups_of_unequal_sizes_are_balanced():
    # 12 groups of 1 to 12 cases: 78 cases in 3 folds of 26.
    groups = {f"case_{size}_{number}": f"g{size}" for size in range(1, 13) for number in range(size)}
    assert [len(part) for part in in_folds(dataset_of(*groups, groups=groups), 3)] == [26, 26, 26]


@pytest.mark.parametrize(
    "groups",
    [{}, {name: name for name in NAMES}, {NAMES[0]: "one", NAMES[3]: "two"}],
    ids=["none", "one case each", "of some cases"],
)
def test_groups_of_one_case_change_nothing(groups):
    assert split_folds(dataset_of(*NAMES, groups=groups)) == split_folds(dataset_of(*NAMES))


def test_subjects_in_names_after_bids_are_groups():
    names = [f"sub-{subject:02d}_ses-{session}_T1w" for subject in range(6) for session in (1, 2)]
    dataset = dataset_of(*names, "phantom")
    parts = in_folds(dataset, 3)
    assert all(len({name[:6] for name in part if name != "phantom"}) == 2 for part in parts)
    assert split_folds(dataset, 3).source == (
        "12 cases of 6 subjects by the sub- entity of their names; the scans of one subject stay in one fold"
    )
    # What the dataset states goes before names.
    stated = replace(dataset, groups={name: "1" if "ses-1" in name else "2" for name in names})
    assert sorted(map(len, in_folds(stated, 3))) == [1, 6, 6]


@pytest.mark.parametrize(
    "names",
    [
        [f"sub-{number:02d}" for number in range(7)],
        [f"sub-{number:02d}_ses-1_T1w" for number in range(7)],
        # Not after BIDS, though they look like it.
        [f"sub_1_{number}" for number in range(7)],
        [f"subject-1_{number}" for number in range(7)],
        [f"a_sub-1_{number}" for number in range(7)],
        [f"sub-1.{number}" for number in range(7)],
    ],
)
def test_names_without_a_subject_of_several_scans_change_nothing(names):
    # KFold(3, shuffle=True, random_state=12345) of 7 cases, as above.
    assert in_folds(dataset_of(*names), 3) == [[names[i] for i in part] for part in ([3, 4, 6], [0, 1], [2, 5])]


def test_fewer_groups_than_folds():
    dataset = dataset_of(*NAMES, groups={name: str(int(name[-2:]) % 3) for name in NAMES})
    with pytest.raises(
        InputError, match=r"20 cases \(20 cases of 3 groups by the dataset; .*\) cannot be split into 5 folds. Use"
    ):
        split_folds(dataset)
    assert sorted(map(len, in_folds(dataset, 3))) == [6, 7, 7]


def test_folds_that_tear_groups_apart_are_named(tmp_path, caplog):
    groups = {"a": "one", "b": "one", "c": "two", "d": "two", "e": "three"}
    (tmp_path / "torn.json").write_text(
        json.dumps([{"train": ["a", "c", "d", "e"], "val": ["b"]}, {"train": ["a", "b", "e"], "val": ["c", "d"]}])
    )
    dataset = dataset_of(*groups, groups=groups, splits=tmp_path / "torn.json")
    split_folds(dataset, 2)
    assert caplog.messages == [
        f"{tmp_path / 'torn.json'}: the cases of 1 of 2 groups are in both train and val of a fold, so the scores will "
        "be too good: one"
    ]
    caplog.clear()
    split_folds(replace(dataset, groups=dict.fromkeys("bcd", "one")), 2)
    assert "the cases of 1 of 1 group" in caplog.text


@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "plain"])
def test_groups_are_read_in_every_layout(tmp_path, layout):
    groups = {"a": "patient 1", "b": 2, "c": "patient 1"}
    images, labels = ("images", "labels") if layout == "plain" else ("imagesTr", "labelsTr")
    for part in (images, labels):
        (tmp_path / part).mkdir()
        for name in "abcd":
            channel = "_0000" if (layout, part) == ("nnunet", images) else ""
            (tmp_path / part / f"{name}{channel}.nii.gz").touch()
    if layout == "plain":
        (tmp_path / "labels.json").write_text(json.dumps({"labels": {"organ": 1}, "groups": groups}))
    elif layout == "nnunet":
        document = {"channel_names": {"0": "CT"}, "labels": {"organ": 1}, "groups": groups}
        (tmp_path / "dataset.json").write_text(json.dumps(document))
    else:
        write_list(tmp_path, [entry(name) for name in "abcd"], groups=groups)
    dataset = open_dataset(tmp_path)
    assert dataset.groups == {"a": "patient 1", "b": "2", "c": "patient 1"}
    assert dataset.labels.values == {"organ": 1}


def test_a_group_for_each_case(tmp_path):
    write_list(tmp_path, [entry("a", group="x"), entry("b", group=7)], validation=[entry("c", group="y"), entry("d")])
    assert open_dataset(tmp_path).groups == {"a": "x", "b": "7", "c": "y"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"groups": {"a": "x", "z": "x"}}, '"groups" in .* names 1 case not in the dataset: z'),
        ({"groups": ["a"]}, "'groups': Input should be a valid dictionary, found"),
        ({"groups": {"a": ["x"]}}, "'groups.a"),
        ({"groups": {"a": True}}, "'groups.a"),
        ({"groups": {"a": 1.5}}, "'groups.a"),
        ({"groups": {"a": "x"}, "training": [entry("a", group="y"), entry("b")]}, "states groups twice"),
        ({"training": [entry("a", group=None), entry("b", group=2.5)]}, "'training.1.group"),
    ],
)
def test_groups_that_are_none(tmp_path, changes, complaint):
    with pytest.raises(InputError, match=complaint):
        open_dataset(write_list(tmp_path, **{"training": [entry("a"), entry("b")], **changes}))


def test_a_file_for_each_channel_as_in_monai(tmp_path):
    scan = {"image": ["a_t1.nii.gz", "a_t2.nii.gz"], "label": "a_seg.nii.gz", "fold": 0}
    other = {"image": ["b_t1.nii.gz", "b_t2.nii.gz"], "label": "b_seg.nii.gz", "fold": 1}
    write_list(tmp_path, [scan, other])
    document = json.loads((tmp_path / "dataset.json").read_text())
    del document["modality"]
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    dataset = open_dataset(tmp_path)
    assert dataset.channels == ("image_0", "image_1")
    assert [path.name for path in dataset.cases[1].images] == other["image"]
    assert dataset.names == ["a_t1", "b_t1"]
