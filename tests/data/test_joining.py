"""Several datasets as one: labels by name, values assigned anew, folds of each, names, and what does not fit."""

import json
import logging

import pytest

from volseg.data.cases.sources.case_labels import ALL_LABELS, CaseLabels
from volseg.data.joining import datasets_in_words, folds_in_words, folds_of, open_datasets
from volseg.errors import InputError, UsageError


def write(folder, labels, names=("a", "b", "c"), **document):
    """A dataset in the layout of nnU-Net, of empty files."""
    channels = document.setdefault("channel_names", {"0": "MRI"})
    for name in names:
        for number in range(len(channels)):
            path = folder / "imagesTr" / f"{name}_{number:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (folder / "labelsTr").mkdir(exist_ok=True)
        (folder / "labelsTr" / f"{name}.nii.gz").touch()
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **document}))
    return folder


def by_source(dataset):
    return {case.source: case.own for case in dataset.cases}


def test_labels_get_values_in_the_order_in_which_they_appear_and_keep_those_of_their_files(tmp_path):
    one = write(tmp_path / "A", {"background": 0, "liver": 4, "spleen": 2}, licence="CC0")
    other = write(tmp_path / "B", {"background": 0, "kidney": 1, "liver": 2}, names=("a", "x"))
    joined = open_datasets([one, other])
    assert joined.labels.values == {"spleen": 1, "liver": 2, "kidney": 3}
    assert joined.name == "A + B"
    assert joined.licence == "A: CC0; B: not stated"
    assert joined.names == ["A_a", "A_b", "A_c", "B_a", "B_x"]
    assert by_source(joined) == {
        "A": CaseLabels(("spleen", "liver"), (("spleen", (2,)), ("liver", (4,))), ((2, 1), (4, 2))),
        "B": CaseLabels(("liver", "kidney"), (("kidney", (1,)), ("liver", (2,))), ((1, 3), (2, 2))),
    }
    assert datasets_in_words(joined, {"A": 0.25, "B": 0.75}) == [
        "dataset A: 3 cases, 25 % of the samples, labels spleen, liver",
        "dataset B: 2 cases, 75 % of the samples, labels kidney, liver",
    ]


def test_datasets_with_the_same_labels_and_values_have_cases_like_any_other(tmp_path):
    labels = {"background": 0, "liver": 1, "spleen": 2}
    joined = open_datasets([write(tmp_path / "A", labels), write(tmp_path / "B", labels)])
    assert by_source(joined) == {"A": ALL_LABELS, "B": ALL_LABELS}
    # One list of labels for all, of which each dataset states what it has.
    half = [write(tmp_path / name, labels, annotated=[label]) for name, label in (("C", "liver"), ("D", "spleen"))]
    assert by_source(open_datasets(half)) == {"C": CaseLabels(("liver",)), "D": CaseLabels(("spleen",))}


def test_partial_labels_within_a_joined_dataset_stay_partial(tmp_path):
    one = write(tmp_path / "A", {"liver": 1, "spleen": 2}, annotated={"a": ["spleen"]})
    joined = open_datasets([one, write(tmp_path / "B", {"liver": 1})])
    assert {case.name: case.own.annotated for case in joined.cases} == {
        "A_a": ("spleen",), "A_b": None, "A_c": None, "B_a": ("liver",), "B_b": ("liver",), "B_c": ("liver",),
    }  # fmt: skip


def test_a_label_that_no_case_has_annotated_is_refused(tmp_path):
    folder = write(tmp_path / "A", {"liver": 1, "spleen": 2}, annotated=["liver"])
    with pytest.raises(InputError, match='spleen is "annotated" in no case of A'):
        open_datasets(folder)
    with pytest.raises(InputError, match=r'spleen is "annotated" in no case of A \+ B'):
        open_datasets([folder, write(tmp_path / "B", {"liver": 1})])


def test_an_ignore_label_of_one_dataset_is_above_all_labels(tmp_path):
    one = write(tmp_path / "A", {"liver": 1, "ignore": 2})
    joined = open_datasets([one, write(tmp_path / "B", {"kidney": 1, "spleen": 3})])
    assert joined.labels.ignore == 4
    assert joined.labels.known == {1, 2, 3, 4}
    assert by_source(joined)["A"].values == ((1, 1), (2, 4))
    assert by_source(joined)["B"].values == ((1, 2), (3, 3))


def test_regions_are_joined_by_the_names_that_a_value_stands_for(tmp_path):
    one = write(tmp_path / "A", {"whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    other = write(tmp_path / "B", {"whole": [3, 4], "necrosis": 4}, regions_class_order=[3, 4])
    joined = open_datasets([one, other])
    assert joined.labels.parts == {"whole": (1, 2, 3), "core": (2,), "necrosis": (3,)}
    assert joined.labels.values == {"whole": 1, "core": 2, "necrosis": 3}
    assert by_source(joined)["B"] == CaseLabels(
        ("whole", "necrosis"), (("whole", (3, 4)), ("necrosis", (4,))), ((3, 1), (4, 3))
    )


@pytest.mark.parametrize(
    ("labels", "document", "said"),
    [
        ({"whole": [1, 2], "core": 2}, {"regions_class_order": [1, 2]}, "B has regions, .* but A has plain labels"),
        ({"liver": 1}, {"channel_names": {"0": "CT"}}, "B has the channels CT, but A has MRI"),
        ({"liver": 1}, {"channel_names": {"0": "MRI", "1": "CT"}}, "B has the channels MRI, CT, but A has MRI"),
        (
            {"liver": 1},
            {"label_codes": {"liver": {"value": "1", "scheme": "SCT", "meaning": "Other"}}},
            r"liver is Liver \(SCT 10200004\) in one dataset and Other \(SCT 1\) in B",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, labels, document, said):
    code = {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    one = write(tmp_path / "A", {"liver": 1}, label_codes={"liver": code})
    with pytest.raises(InputError, match=said):
        open_datasets([one, write(tmp_path / "B", labels, **document)])


def test_regions_of_another_order_are_refused(tmp_path):
    one = write(tmp_path / "A", {"whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    other = write(tmp_path / "B", {"core": [2, 1], "whole": [1, 2, 3]}, regions_class_order=[2, 3])
    with pytest.raises(InputError, match=r"The regions of B .* do not fit"):
        open_datasets([one, other])


def test_channels_in_separate_files_are_put_in_one_order(tmp_path):
    one = write(tmp_path / "A", {"liver": 1}, channel_names={"0": "T1", "1": "T2"})
    other = write(tmp_path / "B", {"liver": 1}, channel_names={"0": "T2", "1": "T1"})
    joined = open_datasets([one, other])
    assert joined.channels == ("T1", "T2")
    images = {case.name: [path.name for path in case.images] for case in joined.cases}
    assert images["A_a"] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert images["B_a"] == ["a_0001.nii.gz", "a_0000.nii.gz"]


def test_names_that_are_not_quite_equal_are_warned_of_and_not_joined(tmp_path, caplog):
    one = write(tmp_path / "A", {"Liver": 1, "left kidney": 2, "spleen": 3})
    other = write(tmp_path / "B", {"liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4})
    with caplog.at_level(logging.WARNING):
        joined = open_datasets([one, other])
    assert list(joined.labels.values) == ["Liver", "left kidney", "spleen", "liver", "kidney", "pancreas"]
    (said,) = [record.message for record in caplog.records]
    assert "Liver of A and liver of B, left kidney of A and kidney of B." in said
    assert "spleen" not in said


def test_datasets_of_one_name_are_numbered_and_given_twice_refused(tmp_path):
    folders = [write(tmp_path / name, {"liver": 1}, name="My data/1") for name in ("A", "B")]
    assert open_datasets(folders).names[::3] == ["My_data_1_0_a", "My_data_1_1_a"]
    with pytest.raises(UsageError, match="was given twice"):
        open_datasets([folders[0], tmp_path / "B" / ".." / "A"])
    with pytest.raises(InputError, match=r"list of cases is empty\."):
        open_datasets([])
    assert open_datasets([folders[0]]).names == ["a", "b", "c"]


def test_fold_k_is_the_folds_k_of_all_datasets(tmp_path):
    names = tuple("abcdefghij")
    folders = [write(tmp_path / name, {"liver": 1}, names) for name in ("A", "B")]
    joined = open_datasets(folders)
    alone = [folds_of(open_datasets(folder)).splits for folder in folders]
    for number, split in enumerate(folds_of(joined).splits):
        for half in ("train", "val"):
            assert split[half] == [
                f"{name}_{case}" for name, splits in zip("AB", alone, strict=True) for case in splits[number][half]
            ]
    assert folds_in_words(joined).startswith("A: the sorted case names")


def test_the_smallest_number_of_folds_that_is_stated_counts(tmp_path, caplog):
    names = tuple("abcdef")
    folders = [write(tmp_path / name, {"liver": 1}, names) for name in ("A", "B", "C")]
    pairs, thirds = (
        [{"train": [n for n in names if n not in val], "val": list(val)} for val in vals]
        for vals in (("ab", "cd", "ef"), ("abc", "def"))
    )
    for folder, splits in zip(folders, (pairs, thirds), strict=False):
        (folder / "splits_final.json").write_text(json.dumps(splits))
    with caplog.at_level(logging.WARNING):
        folds = folds_of(open_datasets(folders))
    assert len(folds.splits) == 2
    assert "different numbers of folds (A 3, B 2), so there are 2" in caplog.text
    assert folds.splits[1]["val"][:5] == ["A_c", "A_d", "B_d", "B_e", "B_f"]
    validated = [case for split in folds.splits for case in split["val"] if case[0] == "C"]
    assert sorted(validated) == [f"C_{name}" for name in names]


def test_a_number_of_folds_that_the_datasets_do_not_have_is_said(tmp_path, caplog):
    folders = [write(tmp_path / name, {"liver": 1}, tuple("abcdef")) for name in ("A", "B")]
    splits = [{"train": [*"abc"], "val": [*"def"]}, {"train": [*"def"], "val": [*"abc"]}]
    (folders[0] / "splits_final.json").write_text(json.dumps(splits))
    assert len(folds_of(open_datasets(folders), 3).splits) == 2
    assert "The datasets state 2 folds, so there are not 3" in caplog.text
    caplog.clear()
    assert len(folds_of(open_datasets(folders), 2).splits) == 2
    assert not caplog.text


def test_a_dataset_with_fewer_cases_than_folds_is_named(tmp_path):
    folders = [write(tmp_path / "A", {"liver": 1}, tuple("abcde")), write(tmp_path / "B", {"liver": 1})]
    with pytest.raises(InputError, match="Dataset B: 3 cases cannot be split into 5 folds"):
        folds_of(open_datasets(folders))


def test_groups_keep_their_datasets_apart(tmp_path):
    folders = [write(tmp_path / name, {"liver": 1}, groups={"a": "p", "b": "p"}) for name in ("A", "B")]
    assert open_datasets(folders).groups == {"A_a": "A: p", "A_b": "A: p", "B_a": "B: p", "B_b": "B: p"}
