"""A scan whose file does not state its size in millimetres: labels as ever, no volumes, and the reason everywhere."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.pipeline import blob, write_model
from volseg import Segmenter
from volseg.api import describe
from volseg.cli import app
from volseg.config import ComponentRule
from volseg.data.io import reading
from volseg.data.io.reading import scan_from_array

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
REASON = "the header has no spatial unit"
WARNING = "The header has no spatial unit; millimetres are assumed."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def segmenter(model):
    return Segmenter.load(model, device="cpu", precision="fp32")


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file that is read as one without a unit."""
    nibabel.save(nibabel.Nifti1Image(blob(), AFFINE), tmp_path / "scan.nii.gz")
    read = reading.read_stored

    def unstated(path, *choice):
        return read(path, *choice)._replace(unstated=REASON, warnings=[WARNING])

    for module in (reading, describe):
        monkeypatch.setattr(module, "read_stored", unstated)
    return tmp_path / "scan.nii.gz"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_a_result_has_voxels_and_a_reason_in_place_of_volumes(segmenter):
    stated = scan_from_array(blob(), AFFINE)
    usual, result = segmenter(stated), segmenter(replace(stated, unstated=REASON, warnings=(WARNING,)))
    np.testing.assert_array_equal(result.labels, usual.labels)
    assert result.volumes_ml == dict.fromkeys(usual.volumes_ml)
    assert None not in [volume for volume in usual.volumes_ml.values() if volume]
    for name, label in result.record["labels"].items():
        assert (label["volume_ml"], label["reason"]) == (None, REASON)
        assert label["voxels"] == usual.record["labels"][name]["voxels"]
    assert result.warnings == (WARNING,)
    assert result.record["warnings"] == [WARNING]
    assert "-" in repr(result)
    assert "mL" not in repr(result)


def test_component_rules_go_by_the_assumed_size_as_the_network_did(segmenter):
    """So the label image does not depend on whether the file states what is assumed."""
    stated = scan_from_array(blob(), AFFINE)
    names = [label.name for label in segmenter.card.plan.labels]
    rules = {name: ComponentRule(smallest_ml=0.02) for name in names}
    ruled = replace(segmenter, card=segmenter.card.model_copy(update={"postprocessing": rules}))
    usual, result = ruled(stated), ruled(replace(stated, unstated=REASON))
    assert any(rule["voxels_removed"] for rule in usual.record["postprocessing"].values())
    assert result.record["postprocessing"] == usual.record["postprocessing"]
    np.testing.assert_array_equal(result.labels, usual.labels)


def test_the_command_line_says_it_once_per_case_and_shows_no_volume(path, model, tmp_path):
    out = tmp_path / "out" / "seg.nii.gz"
    result = run("predict", path, "--model", model, "--output", out, "--device", "cpu", "--preview")
    assert result.stderr.count(WARNING) == 1
    rows = [line for line in result.stdout.splitlines() if "ball" in line]
    assert len(rows) == 1
    assert " - " in rows[0].replace("│", " ")
    record = json.loads(out.with_name("seg.json").read_text())
    assert {label["volume_ml"] for label in record["labels"].values()} == {None}
    assert {label["reason"] for label in record["labels"].values()} == {REASON}
    assert (tmp_path / "out" / "seg.png").exists()


def test_the_json_document_has_null_and_the_reason(path, model, tmp_path):
    result = run("predict", path, "--model", model, "--output", tmp_path / "seg.nii.gz", "--device", "cpu", "--json")
    (case,) = json.loads(result.stdout)["cases"]
    assert {(label["volume_ml"], label["reason"]) for label in case["labels"].values()} == {(None, REASON)}
    assert case["warnings"] == [WARNING]


def test_info_has_no_voxel_volume_but_the_reason(path):
    document = json.loads(run("info", path, "--json").stdout)
    assert (document["voxel_ml"], document["reason"]) == (None, REASON)
    assert document["spacing_mm"] == "1.5 x 1.5 x 2.0"
    assert WARNING in document["warnings"]
