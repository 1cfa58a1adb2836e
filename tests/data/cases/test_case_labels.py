"""Partial labels: what a dataset states of them, and how a label image is read and sampled."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from tests.data.cases.test_batches import Middle, Still
from tests.data.small_cases import AFFINE, region_plan, small_plan, write_cases
from volseg.data.cases.batches import AugmentationWarmup, BatchDataset
from volseg.data.cases.cache import cache_cases, cache_key
from volseg.data.cases.dataset import open_dataset
from volseg.data.cases.patch_sampling import PatchSampler
from volseg.data.cases.progressive_patches import ProgressivePatches
from volseg.data.cases.sources.case_labels import ALL_LABELS, CaseLabels, annotated_cases
from volseg.data.io.reading import read_label
from volseg.errors import InputError

PLAN = small_plan()
TABLE = {"one": (3,), "two": (5,)}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return path


def write_dataset(folder, layout, document):
    """Three cases a, b, c with the labels one and two, in one of the layouts."""
    image, label = np.arange(60.0).reshape(3, 4, 5), np.zeros((3, 4, 5), np.uint8)
    places = {"plain": ("images/{}", "labels/{}"), "nnunet": ("imagesTr/{}_0000", "labelsTr/{}")}
    one, other = places.get(layout, ("imagesTr/{}", "labelsTr/{}"))
    for name in "abc":
        save(folder / f"{one.format(name)}.nii.gz", image)
        save(folder / f"{other.format(name)}.nii.gz", label)
    keys = {"nnunet": {"channel_names": {"0": "MRI"}}, "plain": {}}
    entries = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "abc"]
    document = {"labels": {"one": 1, "two": 2}, **keys.get(layout, {"training": entries}), **document}
    (folder / ("labels.json" if layout == "plain" else "dataset.json")).write_text(json.dumps(document))
    return folder


def annotated(folder):
    return {case.name: case.own.annotated for case in open_dataset(folder).cases}


@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "plain"])
def test_the_annotated_labels_of_a_dataset_are_a_list_or_a_mapping(tmp_path, layout):
    folder = write_dataset(tmp_path / "list", layout, {"annotated": ["two"]})
    assert annotated(folder) == {"a": ("two",), "b": ("two",), "c": ("two",)}
    folder = write_dataset(tmp_path / "mapping", layout, {"annotated": {"a": ["one"], "b": ["two", "one"]}})
    assert annotated(folder) == {"a": ("one",), "b": None, "c": None}
    assert set(annotated(write_dataset(tmp_path / "none", layout, {})).values()) == {None}


def entries(*stated):
    names = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "abc"]
    return {
        "training": [{**one, **({"annotated": two} if two else {})} for one, two in zip(names, stated, strict=True)]
    }


def test_the_entries_of_a_decathlon_state_them_too(tmp_path):
    folder = write_dataset(tmp_path, "decathlon", entries(["one"], None, ["one", "two"]))
    assert annotated(folder) == {"a": ("one",), "b": None, "c": None}
    assert annotated_cases([case.own for case in open_dataset(folder).cases], ["one", "two"]) == {"one": 3, "two": 2}
    assert annotated_cases([ALL_LABELS, ALL_LABELS], ["one"]) is None


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"annotated": ["three"]}, '"annotated" of case a in .* names three, but the labels are one, two'),
        ({"annotated": {"d": ["one"]}}, "names 1 case not in the dataset: d"),
        ({"annotated": {"b": []}}, "of case b in .* is empty: without an annotated label the case teaches nothing"),
        ({"annotated": []}, "of case a in .* is empty"),
        ({"annotated": "one"}, "'annotated': expected a list of label names"),
        ({"annotated": {"a": "one"}}, "'annotated': expected a list of label names"),
        ({"annotated": {"a": None}}, "'annotated': case a has null; leave out the cases of which all labels are"),
        ({"annotated": ["one"], **entries(["one"], None, None)}, 'states "annotated" twice'),
        (entries(["one", 3], None, None), "'training.0.annotated': expected a list of label names"),
        (entries(["ignore"], None, None), "names ignore"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(tmp_path, document, said):
    with pytest.raises(InputError, match=said):
        open_dataset(write_dataset(tmp_path, "decathlon", document))


def test_a_label_image_with_a_label_that_is_not_annotated_is_refused(tmp_path):
    cases = write_cases(tmp_path)
    only = CaseLabels(("two",))
    said = r"Case case_0: .*label_0.nii.gz has 18 voxels of one, which is not among the annotated labels .* \(two\)"
    with pytest.raises(InputError, match=said):
        cache_cases([replace(cases[0], own=only)], PLAN, tmp_path / "cache")
    assert only.read(read_label, save(tmp_path / "b.nii.gz", np.full((2, 2, 2), 5, np.uint8)), None, None, TABLE)


def test_a_voxel_of_two_regions_may_be_there_if_one_of_them_is_annotated(tmp_path):
    inner, outer = (save(tmp_path / f"{v}.nii.gz", np.full((2, 2, 2), v, np.uint8)) for v in (5, 3))
    regions = {"both": (3, 5), "two": (5,)}
    CaseLabels(("both",)).read(read_label, inner, None, None, regions)
    CaseLabels(("two",)).read(read_label, inner, None, None, regions)
    with pytest.raises(InputError, match="8 voxels of both"):
        CaseLabels(("two",)).read(read_label, outer, None, None, regions)


def test_values_of_another_dataset_become_those_of_the_joined_one(tmp_path):
    array = np.array([0, 1, 7, 9], np.uint8).reshape(1, 2, 2)
    own = CaseLabels(("one", "two"), (("one", (7,)), ("two", (1,)), ("ignore", (9,))), ((7, 3), (1, 5), (9, 300)))
    scan = own.read(read_label, save(tmp_path / "a.nii.gz", array), None, {3, 5, 300}, {**TABLE, "ignore": (300,)})
    assert scan.channels[0].ravel().tolist() == [0, 5, 3, 300]
    with pytest.raises(InputError, match=r"unknown label values \[6\], expected \[1, 7, 9\]"):
        own.read(read_label, save(tmp_path / "b.nii.gz", 3 * array // 9 * 3), None, {3, 5, 300}, TABLE)


def test_the_key_of_a_case_with_all_labels_has_no_more_in_it_and_others_differ(tmp_path):
    case = write_cases(tmp_path, 1)[0]
    assert ALL_LABELS.facts == {}
    keys = {cache_key(replace(case, own=own), PLAN) for own in (ALL_LABELS, CaseLabels(("one",)), CaseLabels(("two",)))}
    assert len(keys) == 3


class Patch(Middle):
    """An augmentation that returns the whole label image."""

    def __call__(self, sample):
        return {"image": torch.zeros(1, 8, 8, 8), "label": torch.from_numpy(sample["label"][:, :8, :8, :8])}


def batches_of(folder, plan, *owns):
    folder.mkdir()
    cases = [replace(case, own=own) for case, own in zip(write_cases(folder), owns, strict=True)]
    cached = cache_cases(cases, plan, folder / "cache")
    return BatchDataset(cached, plan, PatchSampler(0.33, seed=7), Patch(), AugmentationWarmup(Still(), epochs=0))


def test_batches_say_which_labels_are_annotated_in_each_sample(tmp_path):
    # Case 1 has no voxel of the second label: annotated and absent is not the same as not annotated.
    partial = batches_of(tmp_path / "partial", PLAN, ALL_LABELS, CaseLabels(("one",)), ALL_LABELS)
    found = [row for step in range(6) for row in partial[step]["annotated"].tolist()]
    assert sorted({tuple(row) for row in found}) == [(True, False), (True, True)]
    # Each case once an epoch, apart from foreground patches of the second label.
    assert 3 <= found.count([True, False]) <= 8
    whole = batches_of(tmp_path / "whole", PLAN, ALL_LABELS, ALL_LABELS, ALL_LABELS)
    assert "annotated" not in whole[0]
    assert torch.equal(whole[3]["label"], partial[3]["label"])


def test_a_region_that_nobody_looked_for_is_neither_sampled_nor_counted(tmp_path):
    plan = region_plan()
    owns = [CaseLabels(("both",))] * 3
    dataset = batches_of(tmp_path / "cases", plan, *owns)
    assert [case.classes for case in dataset.cases] == [(1,), (1,), (1,)]
    batch = dataset[0]
    cropped = ProgressivePatches(plan, dataset.sampler, 0.0)(batch, 1.0, 0)
    assert cropped["held"][:, 0].any()
    assert not cropped["held"][:, 1].any()
    assert batch["label"][:, 1].any()
