"""volseg audit from Python: injected errors come first, at the right place, of the right size."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from matplotlib.image import imread

import volseg
from tests.auditing.cases import AFFINE, OVERRIDES, VOXEL_ML, Threshold, train_folds, truth, write_dataset
from volseg.errors import ConfigError, InputError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


def missing(labels):
    labels[labels == 2] = 0


def swapped(labels):
    labels[:] = np.array([0, 2, 1], np.uint8)[labels]


def dropped(labels):
    labels[:, :, 5:7] = 0


def shifted(labels):
    labels[:] = np.roll(labels, 2, 1)


def corner(labels):
    """2 x 2 x 2 voxels of left become right."""
    labels[5:7, 7:9, 5:7] = 2


ERRORS = {1: missing, 3: swapped, 4: dropped, 6: shifted, 7: corner}
WRONG = {f"case_{number}" for number in ERRORS}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("boxes") / "data", ERRORS, cases=15)


@pytest.fixture(scope="module")
def runs(dataset, one_thread):
    return train_folds(dataset, dataset.parent)


@pytest.fixture(scope="module")
def output(dataset, runs):
    volseg.audit(runs, dataset.parent / "audit", device="cpu", network=Threshold)
    return dataset.parent / "audit"


@pytest.fixture(scope="module")
def document(output):
    return json.loads((output / "audit.json").read_text())


def case_of(document, number):
    return next(case for case in document["cases"] if case["name"] == f"case_{number}")


def test_the_wrong_references_come_first(document):
    names = [case["name"] for case in document["cases"]]
    assert set(names[: len(WRONG)]) == WRONG
    assert len(names) == 15
    assert [case["rank"] for case in document["cases"]] == list(range(1, 16))
    scores = [case["score"] for case in document["cases"]]
    assert scores == sorted(scores, reverse=True)
    assert document["failed"] == []
    assert document["warnings"] == []
    assert [(run["run"], run["fold"], run["cases"]) for run in document["runs"]] == [
        ("fold0", 0, 5), ("fold1", 1, 5), ("fold2", 2, 5)
    ]  # fmt: skip


def test_a_right_reference_has_no_finding_and_no_picture(document):
    right = [case for case in document["cases"] if case["name"] not in WRONG]
    assert [case["findings"] for case in right] == [[]] * 10
    assert [case["picture"] for case in right] == [None] * 10


def test_place_and_size_of_a_missing_label_are_right_to_the_voxel(document):
    (finding,) = case_of(document, 1)["findings"]
    voxels = np.argwhere(truth(1) == 2)
    assert finding["reference"] == "background"
    assert finding["prediction"] == "right"
    assert finding["voxels"] == len(voxels)
    assert finding["volume_ml"] == pytest.approx(len(voxels) * VOXEL_ML)
    assert np.abs(np.array(finding["voxel"]) - voxels.mean(0)).max() <= 0.5
    assert finding["position_mm"] == pytest.approx((AFFINE @ [*finding["voxel"], 1])[:3])
    assert finding["confidence"] > 0.9
    assert case_of(document, 1)["label"] == "right"


def test_a_corner_with_another_label_is_found_to_the_voxel(document):
    (finding,) = case_of(document, 7)["findings"]
    assert (finding["reference"], finding["prediction"]) == ("right", "left")
    assert finding["voxels"] == 8
    assert finding["volume_ml"] == pytest.approx(8 * VOXEL_ML)
    assert finding["voxel"][0] in (5, 6)
    assert finding["voxel"][1] in (7, 8)
    assert finding["voxel"][2] in (5, 6)


def test_each_error_is_described_by_what_was_done(document):
    pairs = {
        number: {(one["reference"], one["prediction"]) for one in case_of(document, number)["findings"]}
        for number in ERRORS
    }
    assert pairs[3] == {("left", "right"), ("right", "left")}
    assert pairs[4] == {("background", "left"), ("background", "right")}
    # Shifted by two voxels of 1.5 mm along J, which points to posterior.
    assert case_of(document, 6)["offset_mm"] == pytest.approx([0, -3, 0], abs=0.01)
    assert case_of(document, 4)["measure"] == "gap"
    slab = np.count_nonzero(truth(4)[:, :, 5:7] == 1)
    assert case_of(document, 4)["labels"]["left"]["gap_ml"] == pytest.approx(slab * VOXEL_ML, rel=0.01)


def test_pictures_page_and_table_are_written(document, output):
    for number in ERRORS:
        pixels = imread(output / case_of(document, number)["picture"])
        assert pixels.shape[0] > 200
        assert pixels.shape[1] > 900
        # Not blank: the scan in grey, labels in colour.
        assert np.ptp(pixels[..., :3].mean(2)) > 0.5
        assert np.count_nonzero(np.ptp(pixels[..., :3], axis=2) > 0.3) > 500
    page = (output / "audit.html").read_text()
    assert page.count("data:image/png;base64,") == len(ERRORS)
    rows = (output / "audit.csv").read_text().splitlines()
    assert len(rows) == 16
    assert rows[0].startswith("rank,case,score,label,measure,reference,prediction,volume_ml,i,j,k")
    assert {path.name for path in output.iterdir()} == {"audit.json", "audit.csv", "audit.html", "pictures"}


def test_volumes_have_no_noise_of_binary_fractions(document):
    volumes = [one[key] for case in document["cases"] for one in case["labels"].values() for key in one if "_ml" in key]
    volumes += [one["volume_ml"] for case in document["cases"] for one in case["findings"]]
    assert len(volumes) > 100
    assert [volume for volume in volumes if len(repr(volume)) > 14] == []


def test_pictures_of_an_earlier_audit_are_replaced_and_no_others(runs, output, tmp_path):
    again = shutil.copytree(output, tmp_path / "again")
    (again / "pictures" / "mine.png").write_bytes(b"mine")
    earlier = json.loads((again / "audit.json").read_text())
    (again / "mine.png").write_bytes(b"mine")
    earlier["cases"] += [{"picture": "mine.png"}, {"picture": "pictures/../mine.png"}, {"picture": None}, {}, "none"]
    (again / "audit.json").write_text(json.dumps(earlier))
    named = {case["picture"] for case in earlier["cases"][:15]}
    found = volseg.audit(runs[0], again, device="cpu", network=Threshold)
    now = {case["picture"] for case in found["cases"]} - {None}
    assert now < named
    # Files with names that no audit gives stay.
    assert (again / "mine.png").read_bytes() == b"mine"
    assert {f"pictures/{path.name}" for path in (again / "pictures").iterdir()} == now | {"pictures/mine.png"}


def test_an_interrupted_audit_leaves_nothing(runs, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        volseg.audit(runs, tmp_path / "audit", device="cpu", network=Threshold, progress=stop)
    assert list((tmp_path / "audit").iterdir()) == []


def test_without_an_output_nothing_is_written(runs, document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = volseg.audit(runs, device="cpu", network=Threshold)
    assert list(tmp_path.iterdir()) == []
    assert [case["name"] for case in found["cases"]] == [case["name"] for case in document["cases"]]
    assert {case["picture"] for case in found["cases"]} == {None}


def test_one_run_is_enough(runs):
    found = volseg.audit(runs[0], device="cpu", network=Threshold)
    assert len(found["cases"]) == 5
    assert found["warnings"] == []


def test_a_missing_reference_fails_alone_and_a_changed_one_is_said(dataset, runs, tmp_path):
    moved = shutil.copytree(dataset, tmp_path / "moved")
    gone, changed = (json.loads((runs[0] / "splits.json").read_text())[0]["val"][number] for number in (0, 1))
    (moved / "labelsTr" / f"{gone}.nii.gz").unlink()
    path = moved / "labelsTr" / f"{changed}.nii.gz"
    image = nibabel.load(path)
    labels = np.asarray(image.dataobj).copy()
    labels[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(labels, image.affine, image.header), path)
    found = volseg.audit(runs[0], dataset=moved, device="cpu", network=Threshold)
    assert [one["name"] for one in found["failed"]] == [gone]
    assert gone in found["failed"][0]["error"]
    assert {case["name"]: case["changed"] for case in found["cases"]}[changed]
    about_files, about_scores = found["warnings"]
    assert changed in about_files
    # Four are left.
    assert "only 4 cases could be compared: at least 5 are needed" in about_scores


def test_a_dataset_that_moved_has_to_be_named(dataset, runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    (run / "sources.json").write_text(json.dumps({"folders": [str(tmp_path / "away")]}))
    with pytest.raises(InputError, match=r"There is no folder .*away.*moved, give its folder with --dataset"):
        volseg.audit(run, device="cpu", network=Threshold)
    (run / "sources.json").unlink()
    with pytest.raises(UsageError, match="does not say where its dataset lies"):
        volseg.audit(run, device="cpu", network=Threshold)
    assert len(volseg.audit(run, dataset=dataset, device="cpu", network=Threshold)["cases"]) == 5


def test_runs_that_cannot_be_audited_are_refused(dataset, runs, tmp_path):
    with pytest.raises(UsageError, match="none"):
        volseg.audit([])
    with pytest.raises(UsageError, match="each once"):
        volseg.audit([runs[0], runs[0]])
    with pytest.raises(UsageError, match="not a run folder"):
        volseg.audit(dataset)
    twin = shutil.copytree(runs[0], tmp_path / "twin")
    with pytest.raises(UsageError, match="both validated on case case_"):
        volseg.audit([runs[0], twin], network=Threshold)
    (twin / "validation.json").unlink()
    with pytest.raises(UsageError, match="not finished"):
        volseg.audit(twin, network=Threshold)
    with pytest.raises(ConfigError, match="network of its own"):
        volseg.audit(runs[0])
    with pytest.raises(UsageError, match="cannot be written"):
        volseg.audit(runs[0], dataset / "dataset.json", network=Threshold)


def test_a_run_on_all_cases_is_refused(dataset, tmp_path):
    options = {"overrides": OVERRIDES, "device": "cpu", "steps": 1, "network": Threshold}
    run = volseg.train(dataset, tmp_path / "run", fold="all", **options)
    with pytest.raises(UsageError, match="trained on all cases"):
        volseg.audit(run, network=Threshold)
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": [f"case_{number}" for number in range(15)], "val": []}]))
    run = volseg.train(dataset, tmp_path / "none", splits=splits, **options)
    with pytest.raises(UsageError, match=r"not finished|validated on no case"):
        volseg.audit(run, network=Threshold)


def test_runs_of_different_datasets_and_plans_are_refused(dataset, runs, tmp_path):
    other = write_dataset(tmp_path / "other", {}, labels={"left": 1, "far": 2})
    with pytest.raises(InputError, match=r"was trained with the labels .*far"):
        volseg.audit(runs[0], dataset=other, network=Threshold)
    run = shutil.copytree(runs[1], tmp_path / "run")
    (run / "sources.json").write_text(json.dumps({"folders": [str(other)]}))
    with pytest.raises(InputError, match="runs of one dataset at a time"):
        volseg.audit([runs[0], run], network=Threshold)
    changed = [one.replace("[12, 16, 16]", "[8, 16, 16]") for one in OVERRIDES]
    options = {"overrides": changed, "device": "cpu", "steps": 1, "network": Threshold}
    planned = volseg.train(dataset, tmp_path / "planned", fold=1, folds=3, **options)
    with pytest.raises(InputError, match=r"does not fit .*patch_size"):
        volseg.audit([runs[0], planned], network=Threshold)


def test_labels_that_nobody_looked_for_are_no_finding(tmp_path):
    annotated = {f"case_{number}": ["left"] for number in (0, 1, 2)}
    data = write_dataset(tmp_path / "data", dict.fromkeys((0, 1, 2), missing), cases=6, annotated=annotated)
    found = volseg.audit(train_folds(data, tmp_path), device="cpu", network=Threshold)
    assert {case["name"]: case["findings"] for case in found["cases"]} == {f"case_{n}": [] for n in range(6)}
    assert {case["name"]: set(case["labels"]) for case in found["cases"]}["case_0"] == {"left"}
    # What is annotated is still questioned, and never in favour of a label that nobody looked for.
    path = data / "labelsTr" / "case_0.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image((truth(0) > 0).astype(np.uint8), image.affine, image.header), path)
    found = volseg.audit([tmp_path / f"fold{fold}" for fold in range(3)], device="cpu", network=Threshold)
    (finding,) = found["cases"][0]["findings"]
    assert found["cases"][0]["name"] == "case_0"
    assert (finding["reference"], finding["prediction"]) == ("left", "background")
    assert finding["voxels"] == np.count_nonzero(truth(0) == 2)


def test_ignored_voxels_are_no_disagreement(tmp_path):
    def ignored(labels):
        labels[labels == 2] = 3

    labels = {"background": 0, "left": 1, "right": 2, "ignore": 3}
    data = write_dataset(tmp_path / "data", {0: ignored, 1: missing}, cases=6, labels=labels)
    found = volseg.audit(train_folds(data, tmp_path, 2), device="cpu", network=Threshold)
    by_name = {case["name"]: case for case in found["cases"]}
    assert by_name["case_0"]["findings"] == []
    assert found["cases"][0]["name"] == "case_1"
