import dataclasses
import json
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch

from tests.data.small_cases import AFFINE, region_plan, small_plan, write_cases
from volseg.config import IGNORED, Channel, Label, Resampling
from volseg.data.cases import cache
from volseg.data.cases.cache import cache_cases, cache_key, read_for_plan
from volseg.data.cases.dataset import TrainingCase
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network, label_to_network
from volseg.errors import InputError, ResourceError


@pytest.fixture
def cases(tmp_path):
    return write_cases(tmp_path)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def whole_label(one):
    """(D, H, W) of a cached case."""
    assert one.label.shape == one.image[:1].shape
    return one.label[0]


def test_a_cached_case_is_the_preprocessed_case(cases, folder):
    plan, calls = small_plan(spacing_mm=(1.5, 1.2, 1.0)), []
    cached = cache_cases(cases, plan, folder, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for case, one in zip(cases, cached, strict=True):
        image, label = (np.asarray(nib.load(path).dataobj) for path in (case.images[0], case.label))
        geometry = Geometry(image.shape, AFFINE)
        expected, grid = image_to_network([image], geometry, plan)
        assert one.case == case
        assert one.grid == grid
        assert torch.equal(torch.from_numpy(one.image[...]), expected)
        assert torch.equal(torch.from_numpy(whole_label(one)), label_to_network(label, grid, plan))
        assert (one.image[...].dtype, one.label[...].dtype) == (np.float32, np.uint8)


def test_a_cropped_label_lies_on_the_grid_of_its_image(tmp_path, folder):
    image = np.zeros((12, 10, 9), np.float32)
    image[3:9, 2:8, 1:7] = np.random.default_rng(0).normal(100, 20, (6, 6, 6))
    label = np.zeros(image.shape, np.uint8)
    label[3, 2, 1], label[8, 7, 6] = 3, 5
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    case = TrainingCase("case", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")
    plan = small_plan(orientation="stored", axes=(2, 1, 0), crop="nonzero", spacing_mm=(1.0, 1.0, 1.0))
    one = cache_cases([case], plan, folder)[0]
    assert one.grid.box == ((1, 7), (2, 8), (3, 9))
    label = whole_label(one)
    assert one.image.shape == (1, *label.shape) == (1, 6, 6, 6)
    assert np.argwhere(label).tolist() == [[0, 0, 0], [5, 5, 5]]
    assert label[5, 5, 5] == 2


def test_foreground_voxels_are_the_labelled_ones(cases, folder):
    cached = cache_cases(cases, small_plan(), folder)
    assert [one.classes for one in cached] == [(1, 2), (1,), (1, 2)]
    for one in cached:
        for index in (1, 2):
            assert np.array_equal(one.foreground(index), np.argwhere(whole_label(one) == index))
    assert cached[1].foreground(2).shape == (0, 3)


def test_large_classes_keep_a_repeatable_subset_spread_over_all_of_it(cases, folder, monkeypatch):
    monkeypatch.setattr(cache, "VOXELS_PER_CLASS", 5)
    one, two = (cache_cases(cases[:1], small_plan(), folder / name)[0] for name in "ab")
    for index in one.classes:
        voxels = one.foreground(index)
        assert len(np.unique(voxels, axis=0)) == 5
        assert (whole_label(one)[tuple(voxels.T)] == index).all()
        assert np.array_equal(voxels, two.foreground(index))
        assert np.ptp(voxels, axis=0).max() > 0


def test_foreground_voxels_of_a_region_are_those_of_all_its_parts(cases, folder):
    cached = cache_cases(cases, region_plan(), folder)
    assert [one.classes for one in cached] == [(1, 2), (1,), (1, 2)]
    for one in cached:
        assert np.array_equal(one.foreground(1), np.argwhere(whole_label(one) > 0))
        assert np.array_equal(one.foreground(2), np.argwhere(whole_label(one) == 2))


def test_ignored_voxels_are_not_foreground_and_the_others_are_annotated(cases, folder):
    network = small_plan().network.model_copy(update={"classes": 2})
    plan = small_plan(labels=(Label(name="one", value=3),), ignore=5, network=network)
    cached = cache_cases(cases, plan, folder)
    for one, others in zip(cached, cache_cases(cases, small_plan(), folder), strict=True):
        assert np.array_equal(whole_label(one) == IGNORED, whole_label(others) == 2)
        assert np.array_equal(one.foreground(1), np.argwhere(whole_label(others) == 1))
        assert others.annotated is None
    # Case 1 lacks the label that is ignored in the others.
    assert cached[1].annotated is None
    for one in (cached[0], cached[2]):
        assert np.array_equal(one.annotated, np.argwhere(whole_label(one) != IGNORED))


def test_a_finished_case_is_not_preprocessed_again_and_an_unfinished_one_is(cases, folder, monkeypatch):
    first, done, work = cache_cases(cases, small_plan(), folder), [], cache._preprocess

    def noted(case, plan, stem):
        done.append(case.name)
        work(case, plan, stem)

    monkeypatch.setattr(cache, "_preprocess", noted)
    assert cache_cases(cases, small_plan(), folder) == first
    assert done == []
    # As if interrupted before its last file was written.
    first[1].stem.with_name(f"{first[1].stem.name}.json").unlink()
    assert cache_cases(cases, small_plan(), folder) == first
    assert done == ["case_1"]


@pytest.mark.parametrize("part", ["image.blocks", "label.blocks", "foreground.blocks"])
def test_a_case_with_a_missing_file_is_preprocessed_again(cases, folder, part):
    first = cache_cases(cases, small_plan(), folder)
    lost = first[1].stem.with_name(f"{first[1].stem.name}.{part}")
    content = lost.read_bytes()
    lost.unlink()
    assert cache_cases(cases, small_plan(), folder) == first
    assert lost.read_bytes() == content


def test_an_entry_of_another_format_is_written_again_under_the_same_key(cases, folder):
    """Checkpoints of older runs know their cases by the key."""
    first = cache_cases(cases, small_plan(), folder)
    document = first[1].stem.with_name(f"{first[1].stem.name}.json")
    content = document.read_text()
    image = first[1].stem.with_name(f"{first[1].stem.name}.image.blocks")
    right = image.read_bytes()
    document.write_text(content.replace(f'"format": {cache.FORMAT}', f'"format": {cache.FORMAT - 1}'))
    image.write_bytes(b"another")
    assert cache_cases(cases, small_plan(), folder) == first
    assert document.read_text() == content
    assert image.read_bytes() == right


def test_an_interrupted_run_leaves_only_whole_files_and_resumes(cases, folder, monkeypatch):
    def interrupted(path, document):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache_cases(cases, small_plan(), folder)
    # No case is complete; the cases in progress have left whole files, and none is half-written.
    assert {path.name.split(".")[2] for path in folder.iterdir()} == {"foreground", "image", "label"}
    assert len(cache_cases(cases, small_plan(), folder)) == 3
    assert len(list(folder.iterdir())) == 12


@pytest.mark.parametrize(
    "changes",
    [
        {"spacing_mm": (2.0, 1.0, 1.6)},
        {"axes": (1, 0, 2)},
        {"orientation": "stored"},
        {"crop": "nonzero"},
        {"ignore": 9},
        {"image_resampling": Resampling(order=3)},
        {"image_resampling": Resampling(separate="anisotropic")},
        {"channels": (Channel(normalisation="none"),)},
        {"labels": (Label(name="one", value=3), Label(name="two", value=6))},
        {"image_resampling": Resampling(antialias=True)},
        {"label_resampling": "linear"},
    ],
)
def test_the_key_follows_what_preprocessing_depends_on(cases, changes):
    assert cache_key(cases[0], small_plan()) != cache_key(cases[0], small_plan(**changes))


def test_the_key_follows_the_parts_of_regions(cases):
    plan = region_plan()
    labels = (plan.labels[0], plan.labels[1].model_copy(update={"parts": (3,)}))
    keys = {cache_key(cases[0], plan), cache_key(cases[0], plan.model_copy(update={"labels": labels}))}
    assert len(keys - {cache_key(cases[0], small_plan())}) == 2


def test_the_key_ignores_what_does_not_change_the_result(cases, tmp_path):
    key = cache_key(cases[0], small_plan())
    labels = (Label(name="a", value=3, colour=(255, 0, 0)), Label(name="b", value=5, volume_ml_range=(1, 2)))
    channels = (Channel(name="T1", mean_range=(3.0, 4.0)),)
    assert key == cache_key(cases[0], small_plan(patch_size=(4, 4, 4), labels=labels, channels=channels))
    moved = shutil.copy(cases[0].images[0], tmp_path / "elsewhere.nii.gz")
    assert key == cache_key(dataclasses.replace(cases[0], images=(moved,)), small_plan())


def test_the_key_follows_the_bytes_of_image_and_label(cases):
    keys = {cache_key(case, small_plan()) for case in cases}
    keys |= {cache_key(dataclasses.replace(cases[0], images=cases[1].images), small_plan())}
    keys |= {cache_key(dataclasses.replace(cases[0], label=cases[1].label), small_plan())}
    assert len(keys) == 5


@pytest.mark.parametrize(("suffix", "voxels"), [(".mhd", ".raw"), (".nhdr", ".raw")])
def test_the_key_follows_the_voxels_behind_a_detached_header(cases, tmp_path, suffix, voxels):
    header = tmp_path / f"scan{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(header), useCompression=False)
    case = dataclasses.replace(cases[0], images=(header,))
    before = cache_key(case, small_plan())
    header.with_suffix(voxels).write_bytes(bytes([1]) * 120)
    assert cache_key(case, small_plan()) != before


def test_the_key_follows_every_file_that_a_detached_header_names(cases, tmp_path):
    image = SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    SimpleITK.WriteImage(image, str(tmp_path / "scan.mhd"), useCompression=False)
    header = (tmp_path / "scan.mhd").read_text().replace("scan.raw", "slice%d.raw 0 2 1")
    (tmp_path / "scan.mhd").write_text(header)
    for number in range(3):
        (tmp_path / f"slice{number}.raw").write_bytes(bytes(40))
    case = dataclasses.replace(cases[0], images=(tmp_path / "scan.mhd",))
    before = cache_key(case, small_plan())
    (tmp_path / "slice2.raw").write_bytes(bytes([1]) * 40)
    assert cache_key(case, small_plan()) != before
    (tmp_path / "scan.mhd").write_text(header.replace("DimSize", "Size"))
    with pytest.raises(InputError, match=r"Case case_0: .*DimSize"):
        cache_key(case, small_plan())


def test_a_folder_named_like_a_detached_header_is_not_one_of_its_files(cases, tmp_path):
    header = tmp_path / "scan.mhd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(header), useCompression=False)
    case = dataclasses.replace(cases[0], images=(header,))
    before = cache_key(case, small_plan())
    (tmp_path / "scan.files").mkdir()
    assert cache_key(case, small_plan()) == before


def test_a_bad_case_is_named(cases, folder):
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), AFFINE), cases[1].label)
    with pytest.raises(InputError, match=r"Case case_1: .*label_1"):
        cache_cases(cases, small_plan(), folder)
    assert len(list(folder.glob("case_0.*"))) == 4
    assert not list(folder.glob("case_1.*"))


def test_a_label_value_that_the_plan_does_not_know_is_named(cases, folder):
    plan = small_plan(
        labels=(Label(name="one", value=3),), network=small_plan().network.model_copy(update={"classes": 2}), ignore=9
    )
    for value, known in ((9, True), (5, False)):
        array = np.zeros((12, 10, 9), np.uint8)
        array[2:5, 3:6, 2:4], array[0, 0, 0] = 3, value
        nib.save(nib.Nifti1Image(array, AFFINE), cases[0].label)
        if known:
            assert read_for_plan(cases[0], plan)[1].channels[0][0, 0, 0] == 9
        else:
            with pytest.raises(InputError, match=r"^Case case_0: .*unknown label values \[5\], expected \[3, 9\]"):
                cache_cases(cases[:1], plan, folder)


def test_a_missing_file_is_reported_with_its_case(cases, folder):
    cases[1].label.unlink()
    with pytest.raises(
        InputError, match=r"Case case_1: could not read .*label_1.nii.gz: No such file .*Restore the file"
    ):
        cache_cases(cases, small_plan(), folder)


def test_two_cases_are_prepared_at_the_same_time_and_reported_in_order(tmp_path, folder, monkeypatch):
    cases, both, calls, work = write_cases(tmp_path, 4), threading.Barrier(2), [], cache._preprocess

    def together(case, plan, stem):
        both.wait(timeout=30)
        work(case, plan, stem)

    monkeypatch.setattr(cache, "_preprocess", together)
    cached = cache_cases(cases, small_plan(), folder, lambda done, total: calls.append((done, total)))
    assert [one.case for one in cached] == cases
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_after_a_bad_case_no_further_one_is_started(tmp_path, folder, monkeypatch):
    cases, started = write_cases(tmp_path, 8), []

    def fail_first(case, plan, stem):
        started.append(case.name)
        if case.name == "case_0":
            raise InputError("Case case_0: bad.")
        time.sleep(0.5)

    monkeypatch.setattr(cache, "_preprocess", fail_first)
    with pytest.raises(InputError, match="case_0"):
        cache_cases(cases, small_plan(), folder)
    assert len(started) <= 3


def test_an_entry_is_cheap_to_send_and_records_its_source_files(cases, folder):
    first, other, one = cache_cases(cases, small_plan(), folder)
    sent = pickle.dumps(one)
    # All cases of a run share one plan.
    assert len(pickle.dumps([first, other, one])) < len(sent) + 2 * 1500
    assert np.array_equal(pickle.loads(sent).image[...], one.image[...])
    document = json.loads(one.stem.with_name(f"{one.stem.name}.json").read_text())
    assert document["images"] == [str(cases[2].images[0])]
    assert document["label"] == str(cases[2].label)


def test_an_entry_of_another_case_is_not_taken_for_the_case(cases, folder):
    first = cache_cases(cases, small_plan(), folder)
    wide, narrow = (one.stem.with_name(f"{one.stem.name}.image.blocks") for one in (first[2], first[0]))
    right = narrow.read_bytes()
    shutil.copy(wide, narrow)
    assert cache_cases(cases, small_plan(), folder) == first
    assert narrow.read_bytes() == right


@pytest.mark.parametrize(
    "change", [{"grid": None}, {"grid": {}}, {"foreground_ranges": [[0, 10**9]]}, {"known_range": 3}, {"format": None}]
)
def test_an_odd_document_is_written_again_although_its_checksum_is_right(cases, folder, change):
    first = cache_cases(cases, small_plan(), folder)
    path = first[0].stem.with_name(f"{first[0].stem.name}.json")
    content = path.read_text()
    document = json.loads(content) | change
    document.pop("crc32")
    path.write_text(json.dumps(document | {"crc32": cache._checksum(document)}))
    assert cache_cases(cases, small_plan(), folder) == first
    assert path.read_text() == content


def test_two_that_prepare_the_same_cases_at_once_agree(cases, folder):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: cache_cases(cases, small_plan(), folder), range(3)))
    assert found[0] == found[1] == found[2]
    assert len(list(folder.iterdir())) == 12
    assert [one.image[...].mean() for one in found[0]] == [one.image[...].mean() for one in found[2]]


def test_a_cache_that_cannot_be_written_is_one_sentence_unless_it_is_complete(cases, folder, monkeypatch):
    first = cache_cases(cases, small_plan(), folder)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refused)
    assert cache_cases(cases, small_plan(), folder) == first
    first[0].stem.with_name(f"{first[0].stem.name}.json").unlink()
    with pytest.raises(ResourceError, match=r"Could not write .*: Permission denied\. Choose another place\."):
        cache_cases(cases, small_plan(), folder)
    (folder.parent / "file").write_text("")
    with pytest.raises(ResourceError, match="Could not write"):
        cache_cases(cases, small_plan(), folder.parent / "file")


def test_parts_of_an_earlier_format_are_removed_when_a_case_is_prepared_again(cases, folder):
    first = cache_cases(cases, small_plan(), folder)
    old = first[0].stem.with_name(f"{first[0].stem.name}.image.b2nd")
    old.write_bytes(b"another")
    first[0].stem.with_name(f"{first[0].stem.name}.json").write_text('{"format": 5}')
    cache_cases(cases, small_plan(), folder)
    assert not old.exists()
