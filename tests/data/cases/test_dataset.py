"""The three layouts of a training dataset, rejected datasets, and folds."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.pipeline import tiny_plan
from volseg.config import Channel, known_name
from volseg.data.cases.dataset import Dataset, open_dataset, split_folds
from volseg.data.cases.labels import LabelSet
from volseg.data.cases.phantom import write_phantoms
from volseg.errors import InputError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_label(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((4, 4, 4), dtype=np.uint8)
    array.flat[: len(values)] = values
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def write_nnunet(folder: Path, labels: dict | None = None, cases: tuple[str, ...] = ("b", "a")) -> dict:
    document = {
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": labels or {"background": 0, "TZ": 2, "PZ": 1},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    for case in cases:
        touch(*(folder / "imagesTr" / f"{case}_000{channel}.nii.gz" for channel in (0, 1)))
        touch(folder / "labelsTr" / f"{case}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(document))
    return document


def test_decathlon_layout(tmp_path):
    write_phantoms(tmp_path, count=2, seed=0, kind="mr")
    dataset = open_dataset(tmp_path)
    assert dataset.name == "Phantoms MR"
    assert dataset.channels == ("MRI",)
    assert dataset.labels.values == {"ball": 1, "rod": 2}
    assert dataset.licence == "Apache-2.0"
    assert [case.name for case in dataset.cases] == ["phantom_001", "phantom_002"]
    first = dataset.cases[0]
    assert first.images[0].samefile(tmp_path / "imagesTr" / "phantom_001.nii.gz")
    assert first.label.samefile(tmp_path / "labelsTr" / "phantom_001.nii.gz")


def test_decathlon_with_several_channels_in_one_file(tmp_path):
    touch(tmp_path / "imagesTr" / "p_01.nii.gz", tmp_path / "labelsTr" / "p_01.nii.gz")
    document = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ"},
        "training": [{"image": "./imagesTr/p_01.nii.gz", "label": "./labelsTr/p_01.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    dataset = open_dataset(tmp_path)
    assert dataset.channels == ("T2", "ADC")
    assert len(dataset.cases[0].images) == 1
    assert dataset.name == tmp_path.name
    # What a dataset does not state is empty.
    assert (dataset.licence, dataset.description, dataset.problems) == ("", "", ())
    assert (dataset.folds, dataset.groups) == (None, {})
    fresh = Dataset("name", tmp_path, ("image",), LabelSet({"organ": 1}), ())
    assert (fresh.licence, fresh.description, fresh.problems, fresh.folds, fresh.groups) == ("", "", (), None, {})


def test_nnunet_layout(tmp_path):
    write_nnunet(tmp_path)
    dataset = open_dataset(tmp_path)
    assert dataset.channels == ("T2", "ADC")
    assert list(dataset.labels.values.items()) == [("PZ", 1), ("TZ", 2)]
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert [path.name for path in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert dataset.cases[0].label == tmp_path / "labelsTr" / "a.nii.gz"


def test_channels_go_by_their_numbers(tmp_path):
    document = write_nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({**document, "channel_names": {"1": "ADC", "0": "T2"}}))
    dataset = open_dataset(tmp_path)
    assert dataset.channels == ("T2", "ADC")
    assert [path.name for path in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    eleven = {str(index): f"C{index}" for index in sorted(range(11), key=str)}
    scan = {"image": "p.nii.gz", "label": "q.nii.gz"}
    decathlon = {"modality": eleven, "labels": {"1": "PZ"}, "training": [scan]}
    (tmp_path / "dataset.json").write_text(json.dumps(decathlon))
    assert open_dataset(tmp_path).channels == tuple(f"C{index}" for index in range(11))


NUMBERED = 'expected {"0": name, "1": name, ...}, numbered from 0 without a gap, found '


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"modality": "MRI"}, f"'modality': {NUMBERED}'MRI'"),
        ({"modality": ["MRI"]}, f"'modality': {NUMBERED}['MRI']"),
        ({"modality": {}}, f"'modality': {NUMBERED}{{}}"),
        ({"modality": {"0": "T1", "2": "T2"}}, f"'modality': {NUMBERED}{{'0': 'T1', '2': 'T2'}}"),
        ({"modality": {"0": 5}}, "'modality.0': Input should be a valid string, found 5"),
        ({"channel_names": ["T1"]}, f"'channel_names': {NUMBERED}['T1']"),
        ({"channel_names": {"1": "T1"}}, f"'channel_names': {NUMBERED}{{'1': 'T1'}}"),
        ({"channel_names": {"0": "T1"}, "file_ending": 3}, "'file_ending': Input should be a valid string, found 3"),
        ({"training": 5}, "'training': Input should be a valid list, found 5"),
        ({"training": "x" * 999}, f"'training': Input should be a valid list, found '{'x' * 199}..."),
        ({"training": [{"image": "a.nii"}]}, "'training.0.label' is missing"),
        (
            {"training": [{"image": None, "label": None}]},
            "'training.0.image': Input should be a valid string, found None; "
            "'training.0.label': Input should be a valid string, found None",
        ),
        ({"training": [5]}, "'training.0': expected a mapping of keys to values, found 5"),
        (
            {"training": [{"image": "a.nii"}] * 12},
            "; ".join(f"'training.{entry}.label' is missing" for entry in range(10)) + "; and 2 more",
        ),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind_in_dataset_json(tmp_path, changes, complaint):
    document = {"labels": {"1": "PZ"}, "training": [{"image": "a.nii", "label": "b.nii"}], **changes}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as error:
        open_dataset(tmp_path)
    assert str(error.value) == f"{tmp_path / 'dataset.json'} is invalid: {complaint}."


def test_plain_layout_takes_labels_from_the_values_found(tmp_path):
    touch(tmp_path / "images" / "one.nrrd", tmp_path / "images" / "two.nii.gz", tmp_path / "images" / "notes.txt")
    write_label(tmp_path / "labels" / "one.nii.gz", 4, 4, 2)
    write_label(tmp_path / "labels" / "two.nii.gz", 2)
    dataset = open_dataset(tmp_path)
    assert dataset.labels.values == {"label_2": 2, "label_4": 4}
    assert dataset.channels == ("image",)
    assert [(case.name, case.images[0].name) for case in dataset.cases] == [("one", "one.nrrd"), ("two", "two.nii.gz")]


def test_plain_layout_takes_names_from_labels_json(tmp_path):
    touch(tmp_path / "images" / "one.nii", tmp_path / "labels" / "one.nii")
    (tmp_path / "labels.json").write_text('{"liver": 3}')
    assert open_dataset(tmp_path).labels.values == {"liver": 3}


def test_a_folder_that_is_not_a_dataset_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither dataset.json .* nor the folders images and labels"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(InputError, match=r'neither "training" \(Decathlon\) nor "channel_names"'):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('["training"]')
    with pytest.raises(InputError, match=r'neither "training" \(Decathlon\) nor "channel_names"'):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"training": []')
    with pytest.raises(InputError, match=r"dataset.json is not readable JSON"):
        open_dataset(tmp_path)


def test_cases_with_missing_files_are_kept(tmp_path):
    write_nnunet(tmp_path)
    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    (tmp_path / "labelsTr" / "b.nii.gz").unlink()
    (tmp_path / "imagesTr" / "b_0000.nii.gz").unlink()
    touch(tmp_path / "labelsTr" / "c.nii.gz")
    dataset = open_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["a", "b", "c"]
    assert dataset.cases[0].images[1] == tmp_path / "imagesTr" / "a_0001.nii.gz"
    assert dataset.cases[2].images[0] == tmp_path / "imagesTr" / "c_0000.nii.gz"


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_plain_layout_takes_the_channel_from_labels_json(tmp_path, key):
    """Without it CT scans would be normalised as if nothing was known of them."""
    write_label(tmp_path / "labels" / "a.nii.gz", 3)
    touch(tmp_path / "images" / "a.nii.gz")
    document = {"labels": {"liver": 3}, key: {"0": "CT"}}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    assert open_dataset(tmp_path).channels == ("CT",)
    (tmp_path / "labels.json").write_text(json.dumps(document | {key: {"0": "T1", "1": "T2"}}))
    with pytest.raises(InputError, match=rf"'{key}': 2 channels, but the scans in the folder images have one"):
        open_dataset(tmp_path)


def test_plain_layout_without_partners(tmp_path):
    touch(tmp_path / "images" / "one.nii", tmp_path / "images" / "two.nii", tmp_path / "images" / "four.nrrd")
    write_label(tmp_path / "labels" / "one.nii", 2)
    write_label(tmp_path / "labels" / "three.nii.gz", 3)
    touch(tmp_path / "labels" / "four.nii.gz")
    dataset = open_dataset(tmp_path)
    assert [(case.name, case.images[0].name, case.label.name) for case in dataset.cases] == [
        ("four", "four.nrrd", "four.nii.gz"),
        ("one", "one.nii", "one.nii"),
        ("three", "three.nii.gz", "three.nii.gz"),
        ("two", "two.nii", "two.nii"),
    ]
    # The label image of "four" is not an image, which is reported when it is read.
    assert dataset.labels.values == {"label_2": 2, "label_3": 3}
    assert dataset.problems == ()


@pytest.mark.parametrize("half", ["images", "labels"])
def test_plain_layout_with_two_of_a_name(tmp_path, half):
    touch(tmp_path / "images" / "one.nii")
    write_label(tmp_path / "labels" / "one.nii", 2)
    touch(tmp_path / half / "one.nrrd")
    dataset = open_dataset(tmp_path)
    assert [case.images[0].name for case in dataset.cases] == ["one.nii"]
    (problem,) = dataset.problems
    assert (problem.case, problem.problem) == ("one", "same name")
    assert str(tmp_path / half / "one.nrrd") in problem.found


@pytest.mark.parametrize(
    ("stated", "names"),
    [
        (("CT", "CT"), ("CT_0", "CT_1")),
        (("T2", "CT", "CT"), ("T2", "CT_1", "CT_2")),
        (("T1", "t1", "FLAIR"), ("T1_0", "t1_1", "FLAIR")),
        (("T1", " T1 ", "T1  post", "T1 post"), ("T1_0", "T1_1", "T1  post_2", "T1 post_3")),
        # A name that a numbered one would have is numbered, too.
        (("CT_1", "CT", "CT"), ("CT_1_0", "CT_1_1", "CT_2")),
        (("T1", "T2"), ("T1", "T2")),
    ],
)
@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_channels_of_one_name_are_numbered(tmp_path, key, stated, names):
    scan = {"image": "p.nii.gz", "label": "q.nii.gz"}
    touch(tmp_path / "labelsTr" / "p.nii.gz")
    channels = {str(index): name for index, name in enumerate(stated)}
    (tmp_path / "dataset.json").write_text(json.dumps({key: channels, "labels": {"1": "PZ"}, "training": [scan]}))
    found = open_dataset(tmp_path).channels
    assert found == names
    # A plan has the same names, also where it comes from an older model.
    network = tiny_plan().network.model_copy(update={"in_channels": len(names)})
    for same in (stated, found):
        plan = tiny_plan(network=network, channels=tuple(Channel(name=name) for name in same))
        assert tuple(channel.name for channel in plan.channels) == names


def test_a_numbered_channel_is_known_by_its_name():
    names = {"CT": "ct", "CT_1": "ct", " ct_1_0": "ct", "T1w": None, "CT_a": None, "T_1": None}
    names |= {"rescale_to_0_1": "rescale_to_0_1", "rescale_to_0_1_2": "rescale_to_0_1"}
    assert {name: known_name(name, ("ct", "rescale_to_0_1")) for name in names} == names


def test_hidden_files_are_no_cases(tmp_path, caplog):
    write_nnunet(tmp_path / "nnunet")
    for name in ("._a", ".b", "._c"):
        touch(*(tmp_path / "nnunet" / "imagesTr" / f"{name}_000{channel}.nii.gz" for channel in (0, 1)))
        touch(tmp_path / "nnunet" / "labelsTr" / f"{name}.nii.gz")
    assert open_dataset(tmp_path / "nnunet").names == ["a", "b"]
    write_label(tmp_path / "plain" / "labels" / "a.nii.gz", 1)
    touch(*(tmp_path / "plain" / part / f"._{name}.nii.gz" for part in ("images", "labels") for name in "ab"))
    touch(tmp_path / "plain" / "images" / "a.nii.gz", tmp_path / "plain" / "labels" / "._a.seg.dcm")
    assert open_dataset(tmp_path / "plain").names == ["a"]
    scans = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("a", "._a", "b")]
    document = {"labels": {"1": "PZ"}, "training": scans, "validation": scans[1:2]}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    dataset = open_dataset(tmp_path)
    assert (dataset.names, dataset.folds) == (["a", "b"], None)
    assert caplog.messages == ["dataset.json lists 1 hidden file, such as macOS makes: passed over"] * 2


@pytest.mark.parametrize("ending", [".nii.gz", "nii.gz", "*.nii.gz", ".NII.GZ", " .nii.gz "])
@pytest.mark.parametrize("written", [".nii.gz", ".NII.gz"])
def test_a_file_ending_is_found_however_it_is_written(tmp_path, ending, written):
    document = {"channel_names": {"0": "CT"}, "labels": {"PZ": 1}, "file_ending": ending}
    touch(tmp_path / "imagesTr" / f"a_0000{written}", tmp_path / "labelsTr" / f"a{written}")
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    (case,) = open_dataset(tmp_path).cases
    assert (case.name, case.images[0].name, case.label.name) == ("a", f"a_0000{written}", f"a{written}")
    assert case.images[0].exists()


@pytest.mark.parametrize("ending", ["", ".", "*", "*.*", "/etc/passwd", ".nii?", "x" * 30, ".nii\n"[:5] + "\0"])
def test_a_file_ending_that_is_none(tmp_path, ending):
    document = {"channel_names": {"0": "CT"}, "labels": {"PZ": 1}, "file_ending": ending}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"'file_ending': expected the end of a file name such as .nii.gz"):
        open_dataset(tmp_path)


def test_a_file_ending_that_no_file_has_is_named_with_what_is_there(tmp_path):
    document = write_nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({**document, "file_ending": "nrrd"}))
    with pytest.raises(InputError) as error:
        open_dataset(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} contains no training case: imagesTr has no file named CASE_0000.nrrd and labelsTr no CASE.nrrd, "
        'by "file_ending" in dataset.json; found a_0000.nii.gz, a_0001.nii.gz, b_0000.nii.gz, b_0001.nii.gz, a.nii.gz '
        "and 1 more."
    )


def test_nnunet_layout_with_regions_and_an_ignore_label(tmp_path):
    document = write_nnunet(tmp_path, {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3})
    with pytest.raises(InputError, match="2 regions, but its regions_class_order has 0 values"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({**document, "regions_class_order": [1, 2]}))
    assert open_dataset(tmp_path).labels == LabelSet({"whole": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}, 3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "1": "PZ", "2": "ignore"}, LabelSet({"PZ": 1}, ignore=2)),
        (
            {"background": 0, "whole": [1, 2], "core": 2},
            LabelSet({"whole": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}),
        ),
    ],
)
def test_decathlon_layout_with_an_ignore_label_or_regions(tmp_path, labels, expected):
    touch(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    document = {
        "labels": labels,
        "regions_class_order": [1, 2],
        "training": [{"image": "a.nii.gz", "label": "b.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert open_dataset(tmp_path).labels == expected


def test_invalid_labels_are_reported_with_the_folder(tmp_path):
    write_nnunet(tmp_path, {"background": 0, "organ": "one"})
    with pytest.raises(InputError, match=rf"'organ' in {tmp_path} has the value 'one', expected an integer"):
        open_dataset(tmp_path)


def test_a_dataset_without_cases(tmp_path):
    write_nnunet(tmp_path, cases=())
    with pytest.raises(InputError, match="no training case"):
        open_dataset(tmp_path)


@pytest.mark.needs_data
def test_hippocampus(data_folder):
    dataset = open_dataset(data_folder / "Task04_Hippocampus")
    assert len(dataset.cases) == 200
    assert dataset.labels.values == {"Anterior": 1, "Posterior": 2}
    assert [len(split["val"]) for split in split_folds(dataset).splits] == [40] * 5
