"""Scans as they come: each gets a result on its own grid, or one sentence and exit code 2."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from tests.pipeline import tiny_plan, volseg, write_model
from volseg import Segmenter
from volseg.data.io.reading import read_scan

pytestmark = pytest.mark.needs_data


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    plan = tiny_plan(spacing_mm=(3.0, 3.0, 3.0), patch_size=(48, 48, 48))
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", plan)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("FLAIR.nii.gz", (124, 160, 140)),
        ("shear.nii.gz", (306, 422, 54)),
        ("wm.mgz", (256, 256, 256)),
        ("ct_torso_3mm.nii.gz", (122, 101, 112)),
        ("mr_hippocampus_series", (35, 51, 32)),
        ("ct_3slice_series", (512, 512, 3)),
        ("mr_oblique_5mm_series.zip", (512, 512, 22)),
        ("enh.dcm", (64, 64, 6)),
    ],
)
def test_a_result_lies_on_the_grid_of_its_scan(data_folder, model, tmp_path, name, shape):
    source = data_folder / "wild" / name
    suffix = ".mgz" if name.endswith(".mgz") else ".nii.gz"
    result = Segmenter.load(model, precision="fp32")(source)
    result.save(tmp_path / f"out{suffix}")
    written = nibabel.load(tmp_path / f"out{suffix}")
    assert written.shape == result.labels.shape
    if name not in ("enh.dcm", "mr_oblique_5mm_series.zip"):
        assert written.shape == shape
    scan = read_scan(source)
    np.testing.assert_allclose(written.affine, scan.geometry.affine, atol=1e-4)
    assert {1, 2} & set(np.unique(result.labels))
    if name.endswith(".nii.gz"):
        theirs = nibabel.load(source)
        for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "xyzt_units"):
            np.testing.assert_array_equal(written.header[field], theirs.header[field])


@pytest.mark.parametrize(("name", "words"), [("complex.nii.gz", "complex"), ("pcasl.nii.gz", "10")])
def test_what_cannot_be_segmented_ends_with_one_sentence_and_exit_code_2(data_folder, model, tmp_path, name, words):
    done = volseg("predict", data_folder / "wild" / name, "--model", model, "--output", tmp_path / "out.nii.gz")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if "Error:" in line and words in line]
    assert not list(tmp_path.iterdir())


def test_a_dicom_folder_of_several_kinds_of_input_goes_through_one_call(data_folder, model, tmp_path):
    wild = data_folder / "wild"
    inputs = [wild / "mr_hippocampus_series", wild / "mr_oblique_5mm_series.zip", wild / "pcasl.nii.gz"]
    done = volseg("predict", *inputs, "--model", model, "--output", tmp_path / "out", "--json", "--preview")
    assert done.returncode == 3, done.stderr
    cases = {case["name"]: case for case in json.loads(done.stdout)["cases"]}
    assert "error" in cases["pcasl"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}{suffix}"
        for name in ("mr_hippocampus_series", "mr_oblique_5mm_series")
        for suffix in (".nii.gz", ".json", ".png")
    }


def test_the_grid_of_a_dicom_series_is_the_one_simpleitk_reads(data_folder, model, tmp_path):
    folder = data_folder / "wild" / "mr_hippocampus_series"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    series = reader.Execute()
    Segmenter.load(model, precision="fp32")(folder).save(tmp_path / "out.nrrd")
    written = sitk.ReadImage(str(tmp_path / "out.nrrd"))
    assert written.GetSize() == series.GetSize()
    for ours, theirs in (
        (written.GetOrigin(), series.GetOrigin()),
        (written.GetSpacing(), series.GetSpacing()),
        (written.GetDirection(), series.GetDirection()),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
