"""Datasets that cannot be used for training: one table row per problem, exit code 2, and no run folder."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from volseg.cli import app
from volseg.data.cases.phantom import write_phantoms

FIRST, SECOND, THIRD, FOURTH = (f"phantom_{number:03d}" for number in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    write_phantoms(folder, count=4, seed=5, kind="mr")
    return folder


@pytest.fixture
def phantoms(good, tmp_path):
    return shutil.copytree(good, tmp_path / "phantoms")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def problems_of(folder: Path) -> list[dict[str, str]]:
    """The problems for which train and plan reject a dataset."""
    train = run("train", folder, "--output", folder.parent / "run", "--folds", 2, "--json", "--device", "cpu")
    assert train.exit_code == 2, train.output
    assert not (folder.parent / "run").exists()
    rows = json.loads(train.stdout)["problems"]
    plan = run("plan", folder, "--output", folder.parent / "plan.yaml")
    assert plan.exit_code == 2
    assert not (folder.parent / "plan.yaml").exists()
    for shown in (train.stderr, plan.stderr):
        assert shown.count("Error:") == 1
        assert f"has {len(rows)} problem{'' if len(rows) == 1 else 's'} and cannot be used for training:" in shown
        assert "what to do" in shown
        for row in rows:
            assert any(row["case"] in line and row["problem"] in line for line in shown.splitlines())
    return rows


def change(path: Path, voxels=None, shift_mm: float = 0) -> None:
    """Rewrite an image: apply `voxels` to its array, and move it along the first world axis."""
    image = nibabel.load(path)
    array = np.asarray(image.dataobj)
    affine = image.affine.copy()
    affine[0, 3] += shift_mm
    changed = nibabel.Nifti1Image(voxels(array) if voxels else array, affine)
    changed.header.set_xyzt_units("mm")
    nibabel.save(changed, path)


def image(folder: Path, name: str) -> Path:
    return folder / "imagesTr" / f"{name}.nii.gz"


def label(folder: Path, name: str) -> Path:
    return folder / "labelsTr" / f"{name}.nii.gz"


def with_one(value: float):
    """A function that sets the first voxel to a value."""

    def set_first(array: np.ndarray) -> np.ndarray:
        changed = array.astype(np.float32)
        changed[0, 0, 0] = value
        return changed

    return set_first


@pytest.mark.parametrize(
    ("damage", "problem", "found", "remedy"),
    [
        (lambda data: change(label(data, SECOND), shift_mm=2), "geometry differs", "than its image", "resample"),
        (lambda data: change(label(data, SECOND), lambda one: one[1:]), "geometry differs", "expected", "resample"),
        (lambda data: change(image(data, SECOND), with_one(np.nan)), "not finite", "contains 1 NaN", "replace"),
        (lambda data: change(image(data, SECOND), with_one(np.inf)), "not finite", "or infinite", "replace"),
        (lambda data: change(label(data, SECOND), lambda one: one * 2), "unknown labels", "[4], expected", "declare"),
        (lambda data: change(label(data, SECOND), with_one(0.5)), "label values", "found 0.5", "label image"),
        (lambda data: change(image(data, SECOND), np.zeros_like), "constant", "every voxel is 0", "leave it out"),
        (lambda data: label(data, SECOND).unlink(), "missing file", "labelsTr/phantom_002", "add it"),
        (lambda data: image(data, SECOND).unlink(), "missing file", "imagesTr/phantom_002", "add it"),
        (lambda data: image(data, SECOND).write_bytes(b"no image"), "not usable", "is not gzip", "remove the case"),
    ],
)  # fmt: skip
def test_a_bad_case_is_one_row(phantoms, damage, problem, found, remedy):
    damage(phantoms)
    (row,) = problems_of(phantoms)
    assert (row["case"], row["problem"]) == (SECOND, problem)
    assert found in row["found"]
    assert remedy in row["remedy"]


def test_a_duplicate_case_is_reported_with_the_other_one(phantoms):
    voxels = np.asarray(nibabel.load(image(phantoms, FIRST)).dataobj)
    affine = nibabel.load(image(phantoms, THIRD)).affine
    # Another dtype, another position and another label image: still the same scan.
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), affine), image(phantoms, THIRD))
    half = np.zeros(voxels.shape, np.uint8)
    half[: len(half) // 2] = 1
    nibabel.save(nibabel.Nifti1Image(half, affine), label(phantoms, THIRD))
    (row,) = problems_of(phantoms)
    assert (row["case"], row["problem"]) == (THIRD, "duplicate")
    assert FIRST in row["found"]


def test_two_cases_with_the_same_name(phantoms):
    document = json.loads((phantoms / "dataset.json").read_text())
    document["training"].append(document["training"][0])
    (phantoms / "dataset.json").write_text(json.dumps(document))
    (row,) = problems_of(phantoms)
    assert (row["case"], row["problem"]) == (FIRST, "same name")


def test_a_dataset_without_any_label(phantoms):
    for path in (phantoms / "labelsTr").iterdir():
        change(path, np.zeros_like)
    (row,) = problems_of(phantoms)
    assert (row["case"], row["problem"]) == ("all", "no label")


def test_all_problems_of_all_cases_are_rows_of_one_table(phantoms):
    change(image(phantoms, FIRST), with_one(np.nan))
    change(label(phantoms, FIRST), lambda one: one * 3, shift_mm=5)
    label(phantoms, SECOND).unlink()
    change(image(phantoms, SECOND), np.ones_like)
    shutil.copy(image(phantoms, THIRD), image(phantoms, FOURTH))
    assert [(row["case"], row["problem"]) for row in problems_of(phantoms)] == [
        (FIRST, "not finite"),
        (FIRST, "unknown labels"),
        (FIRST, "geometry differs"),
        (SECOND, "constant"),
        (SECOND, "missing file"),
        (FOURTH, "geometry differs"),
        (FOURTH, "duplicate"),
    ]


def test_some_cases_without_a_label_are_a_warning(phantoms):
    change(label(phantoms, SECOND), np.zeros_like)
    planned = run("plan", phantoms, "--device", "cpu")
    assert planned.exit_code == 0, planned.output
    assert f"1 of 4 cases have no foreground voxel: {SECOND}" in planned.stderr
    assert "1 of 4 cases have no foreground voxel" in planned.stdout


def test_the_folds_of_a_dataset_may_exclude_a_bad_case(phantoms):
    image(phantoms, FOURTH).unlink()
    split = {"train": [FIRST, SECOND], "val": [THIRD]}
    (phantoms / "splits_final.json").write_text(json.dumps([split]))
    tiny = ("--set", "plan.features=[4, 8]", "--set", "plan.patch_size=[16, 16, 16]", "--set", "training.workers=0")
    done = run("train", phantoms, "--output", phantoms.parent / "run", "--steps", 1, "--device", "cpu", *tiny)
    assert done.exit_code == 0, done.output


def test_a_long_table_is_cut_but_the_json_document_is_complete(phantoms):
    document = json.loads((phantoms / "dataset.json").read_text())
    document["training"] += [{"image": f"imagesTr/gone_{i}.nii.gz", "label": "labelsTr/gone.nii.gz"} for i in range(20)]
    (phantoms / "dataset.json").write_text(json.dumps(document))
    done = run("train", phantoms, "--output", phantoms.parent / "run", "--json")
    rows = json.loads(done.stdout)["problems"]
    assert len(rows) == 40
    assert {row["problem"] for row in rows} == {"missing file"}
    assert done.stderr.splitlines()[-1] == "and 10 more"


def test_other_errors_are_json_documents_too(tmp_path):
    done = run("train", tmp_path / "nowhere", "--output", tmp_path / "run", "--json")
    assert done.exit_code == 2
    assert "There is no folder" in json.loads(done.stdout)["error"]
