"""`volseg convert`."""

import json

import nibabel
import numpy as np
from typer.testing import CliRunner

from tests.data.io.dicom.writers import write
from tests.data.io.dicom_labels.writers import blocks, segmentation, series
from volseg.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_labels_are_written_and_shown(tmp_path):
    path = write(segmentation(blocks()), tmp_path / "seg.dcm")
    out = tmp_path / "out.nii.gz"
    done = run("convert", path, "--output", out, "--like", series(tmp_path / "ct"))
    assert done.exit_code == 0, done.output
    assert "Part 2" in done.stdout
    assert np.array_equal(
        np.asanyarray(nibabel.load(out).dataobj), sum(n * mask.astype(np.uint8) for n, mask in blocks().items())
    )
    again = run("convert", path, "--output", out)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_json_is_the_record(tmp_path):
    ct = series(tmp_path / "ct")
    done = run("convert", ct, "--output", tmp_path / "out.mha", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "out.json").read_text())


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
    path = write(segmentation(blocks(), change=lambda data: setattr(data, "SegmentationType", "X")), tmp_path / "s.dcm")
    done = run("convert", path, "--output", tmp_path / "out.nii.gz")
    assert done.exit_code == 2
    assert "SegmentationType is X" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s.dcm"]
