"""The command line: what it prints, writes and returns."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.pipeline import blob, environment, leftovers, tiny_plan, write_model
from volseg.api import doctor
from volseg.cli import app
from volseg.config import Channel
from volseg.inference.labelling import Wanted
from volseg.progress import silent
from volseg.version import __version__

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def scans(tmp_path):
    """A folder with two good scans and a bad one."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in (1, 2):
        nibabel.save(nibabel.Nifti1Image(blob(seed=seed), AFFINE), folder / f"scan{seed}.nii.gz")
    (folder / "torn.nii.gz").write_bytes((folder / "scan1.nii.gz").read_bytes()[:500])
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_predict_writes_a_label_image_and_its_json_file(tmp_path, model, scans):
    out = tmp_path / "seg.nii.gz"
    result = run("predict", scans / "scan1.nii.gz", "--model", model, "--output", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "ball" in result.stdout
    assert nibabel.load(out).shape == (20, 24, 18)
    assert json.loads((tmp_path / "seg.json").read_text())["model"]["name"] == "tiny"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_table_has_intervals_and_expected_dice_of_a_calibrated_model(tmp_path, model, calibrated):
    scan, out = nibabel.Nifti1Image(blob(seed=1), AFFINE), tmp_path / "seg.nii.gz"
    scan.header.set_xyzt_units("mm")
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    arguments = ("--model", "hippocampus" if calibrated else model, "--output", out, "--device", "cpu")
    result = run("predict", tmp_path / "scan.nii.gz", *arguments)
    assert result.exit_code == 0, result.output
    labels = json.loads((tmp_path / "seg.json").read_text())["labels"]
    for name, found in labels.items():
        (row,) = (line for line in result.stdout.splitlines() if f" {name} " in line)
        cells = [cell.strip() for cell in row.split("│")]
        estimates = []
        if calibrated:
            low, high, dice = (found[key] for key in ("volume_ml_low", "volume_ml_high", "expected_dice"))
            estimates = [f"{low:.4g} to {high:.4g}" if low is not None else "-", f"{dice:.4g}" if dice else "-"]
        assert cells[3:-2] == [str(found["voxels"]), f"{found['volume_ml']:.4g}", *estimates]
    assert ("expected Dice" in result.stdout) == calibrated


def test_one_bad_case_of_several_ends_with_3_and_the_others_are_done(tmp_path, model, scans):
    result = run("predict", scans, "--model", model, "--output", tmp_path / "out", "--device", "cpu", "--json")
    assert result.exit_code == 3
    cases = {case["name"]: case for case in json.loads(result.stdout)["cases"]}
    assert "corrupt" in cases["torn"]["error"]
    labels = np.asarray(nibabel.load(tmp_path / "out" / "scan2.nii.gz").dataobj)
    found = {name: one["voxels"] for name, one in cases["scan2"]["labels"].items()}
    assert found == {"ball": (labels == 1).sum(), "rod": (labels == 2).sum()}
    assert sum(found.values()) > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "scan1.json", "scan1.nii.gz", "scan2.json", "scan2.nii.gz",
    ]  # fmt: skip


def test_a_bad_case_of_several_is_reported_once_and_named_at_the_end(tmp_path, model, scans):
    (scans / "torn.nii.gz").rename(scans / "a_torn.nii.gz")
    result = run("predict", scans, "--model", model, "--output", tmp_path / "out", "--device", "cpu")
    lines = result.stderr.splitlines()
    assert [line[: len("Error: a_torn: ")] for line in lines if "a_torn:" in line] == ["Error: a_torn: "]
    assert lines[-1].endswith(" ERROR 1 of 3 cases failed: a_torn")


def test_the_exit_code_if_all_of_several_cases_fail(tmp_path, model, scans):
    for name in ("scan1", "scan2"):
        (scans / f"{name}.nii.gz").write_bytes((scans / "torn.nii.gz").read_bytes())
    result = run("predict", scans, "--model", model, "--output", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr.count("Error: ") == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", ""),
        ("predict", "", "--model", "hippocampus", "--output", "out"),
        ("predict", "scan1.nii.gz", "--model", "hippocampus", "--output", ""),
    ],
)
def test_an_empty_path_is_not_the_current_folder(monkeypatch, scans, arguments):
    monkeypatch.chdir(scans)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: An empty path was given. Give a file or a folder" in result.stderr


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_says_what_is_done_and_how_to_resume(tmp_path, model, scans, monkeypatch, overwrite, as_json):
    def two_and_then_ctrl_c(self, cases, *_):
        for name in ("torn", "scan2"):
            yield self._outcome((next(cases), Wanted()), partial(self._open, scans / f"{name}.nii.gz"), silent)
        raise KeyboardInterrupt

    monkeypatch.setattr("volseg.api.segmenter.Segmenter.map", two_and_then_ctrl_c)
    options = [*(["--overwrite"] if overwrite else []), *(["--json"] if as_json else [])]
    result = run("predict", scans, "--model", model, "--output", tmp_path / "out", *options)
    assert result.exit_code == 130
    how = "Run the same command again." if overwrite else "Resume with the same command and --skip-existing."
    message = f"Interrupted: the results of 1 of 3 cases are complete, 1 failed. {how}"
    assert message in result.stderr
    if as_json:
        assert result.stdout == json.dumps({"error": message}, indent=2) + "\n"
    else:
        # The same command, continued, says nothing about what it skips.
        assert next(line for line in result.stdout.splitlines() if " ball " in line).split()[1] == "scan2"
    assert "Error: scan1: " in result.stderr


def test_an_interrupt_before_the_first_result_does_not_speak_of_results(tmp_path, model, scans, monkeypatch):
    def ctrl_c(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("volseg.api.segmenter.Segmenter.map", ctrl_c)
    result = run("predict", scans / "scan1.nii.gz", "--model", model, "--output", tmp_path / "seg.nii.gz")
    assert result.exit_code == 130
    message = "Interrupted: the results of 0 of 1 cases are complete, 0 failed. Run the same command again."
    assert message in result.stderr
    assert result.stdout == ""


def test_skipped_cases_are_counted(tmp_path, model, scans):
    arguments = ("predict", scans / "scan1.nii.gz", scans / "scan2.nii.gz", "--model", model, "--output", tmp_path)
    assert run(*arguments, "--device", "cpu").exit_code == 0
    again = run(*arguments, "--skip-existing")
    assert again.exit_code == 0
    assert "Skipping 2 of 2 cases whose result exists" in again.stderr
    for name in ("scan1.nii.gz", "scan1.json"):
        (tmp_path / name).unlink()
    assert "Skipping 1 of 2 cases whose result exists" in run(*arguments, "--skip-existing").stderr


@pytest.mark.parametrize("how", ["refused", "finished"])
def test_a_folder_that_cannot_be_written_to_is_wrong_usage_unless_it_holds_all(
    tmp_path, model, scans, monkeypatch, how
):
    arguments = ("predict", scans / "scan1.nii.gz", "--model", model, "--output", tmp_path / "out" / "seg.nii.gz")
    (tmp_path / "out").mkdir()
    if how == "finished":
        assert run(*arguments, "--device", "cpu").exit_code == 0

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("volseg.data.io.inputs.file_lock", refuse)
    result = run(*arguments, "--skip-existing")
    if how == "finished":
        assert result.exit_code == 0
        assert "Skipping 1 of 1 cases whose result exists" in result.stderr
    else:
        assert result.exit_code == 2
        assert f"{tmp_path / 'out' / 'seg.nii.gz'} cannot be written: Permission denied." in result.stderr


def test_a_preview_is_overwritten_only_with_the_option(tmp_path, model, scans):
    (tmp_path / "seg.png").write_bytes(b"precious")
    arguments = ("predict", scans / "scan1.nii.gz", "--model", model, "--output", tmp_path / "seg.nii.gz", "--preview")
    rejected = run(*arguments)
    assert rejected.exit_code == 2
    assert "seg.png" in rejected.stderr
    assert [path.read_bytes() for path in tmp_path.glob("seg*")] == [b"precious"]
    assert run(*arguments, "--overwrite", "--device", "cpu").exit_code == 0
    assert (tmp_path / "seg.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("kind", "code"), [("nifti", 0), ("obj", 2), ("nifti,stl", 2)])
def test_unknown_output_formats_are_rejected(tmp_path, model, scans, kind, code):
    out = tmp_path / "seg.nii.gz"
    result = run("predict", scans / "scan1.nii.gz", "--model", model, "--output", out, "--to", kind, "--device", "cpu")
    assert result.exit_code == code
    assert (f"There is no output format '{kind.split(',')[-1]}'" in result.stderr) == (code == 2)
    assert out.exists() == (code == 0)


def test_the_version_is_printed():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"volseg {__version__}\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_costs_no_result(tmp_path, model, scans, closed):
    out = tmp_path / "seg.nii.gz"
    command = [sys.executable, "-m", "volseg", "predict", scans / "scan1.nii.gz", "--model", model, "--output", out]
    shell = ["sh", "-c", f'exec "$0" "$@" {closed}', *map(str, command)]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert nibabel.load(out).shape == (20, 24, 18)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_cannot_be_printed_is_one_sentence(tmp_path, model, scans):
    out = tmp_path / "seg.nii.gz"
    command = [sys.executable, "-m", "volseg", "predict", scans / "scan1.nii.gz", "--model", model, "--output", out]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment())
    assert done.returncode == 1
    assert "Could not write to standard output (No space left on device); the result files are complete." in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert out.exists()


def test_one_bad_scan_alone_ends_with_2_and_one_sentence(tmp_path, model, scans):
    result = run("predict", scans / "torn.nii.gz", "--model", model, "--output", tmp_path / "out.nii.gz")
    assert result.exit_code == 2
    assert result.stderr.count("Error:") == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.nii.gz").exists()


def test_an_existing_result_is_rejected_before_any_work(tmp_path, model, scans):
    out = tmp_path / "seg.nii.gz"
    arguments = ("predict", scans / "scan1.nii.gz", "--model", model, "--output", out, "--device", "cpu")
    out.write_bytes(b"precious")
    assert run(*arguments).exit_code == 2
    assert out.read_bytes() == b"precious"
    assert run(*arguments, "--skip-existing").exit_code == 0
    assert out.read_bytes() == b"precious"
    assert run(*arguments, "--overwrite").exit_code == 0
    assert nibabel.load(out).shape == (20, 24, 18)


def test_channels_are_given_by_name(tmp_path, scans):
    network = tiny_plan().network.model_copy(update={"in_channels": 2})
    plan = tiny_plan(channels=(Channel(name="T1"), Channel(name="T2")), network=network)
    model = write_model(tmp_path / "two.safetensors", plan)
    one, two = scans / "scan1.nii.gz", scans / "scan2.nii.gz"
    options = ("--model", model, "--output", tmp_path / "out.nii.gz", "--device", "cpu")
    assert run("predict", "--channel", f"T2={two}", "--channel", f"T1={one}", *options).exit_code == 0
    by_name = np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj)
    stacked = np.stack([nibabel.load(path).get_fdata() for path in (one, two)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(stacked.astype(np.int16), AFFINE), tmp_path / "both.nii.gz")
    assert run("predict", tmp_path / "both.nii.gz", *options, "--overwrite").exit_code == 0
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj), by_name)
    assert run("predict", "--channel", f"T2={two}", *options, "--overwrite").exit_code == 2
    twice = run("predict", "--channel", f"T2={two}", "--channel", f"T2={one}", *options, "--overwrite")
    assert twice.exit_code == 2
    assert "--channel names a channel twice" in twice.stderr
    assert run("predict", one, *options, "--overwrite").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("predict",),
        ("predict", "missing.nii.gz", "--model", "MODEL", "--output", "out.nii.gz"),
        ("predict", "missing.nii.gz", "--model", "nothing", "--output", "out.nii.gz"),
        ("train", "missing", "--output", "run"),
        ("evaluate", "missing", "missing"),
        ("info", "missing"),
        ("plan", "missing"),
        ("profile",),
        ("profile", "--config", "missing.yaml"),
        ("nonsense",),
    ],
)
def test_wrong_usage_ends_with_2_and_no_traceback(arguments, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*(model if argument == "MODEL" else argument for argument in arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_info_describes_models_and_scans(tmp_path, model, scans):
    described = json.loads(run("info", model, "--json").stdout)
    assert described["what"] == "model tiny"
    assert described["labels"] == "1 ball, 2 rod"
    described = json.loads(run("info", scans / "scan1.nii.gz", "--json").stdout)
    assert described["shape"] == "20 x 24 x 18"
    assert described["spacing_mm"] == "1.5 x 1.5 x 2.0"
    # nibabel writes no unit unless it is told to.
    assert (described["voxel_ml"], described["reason"]) == (None, "the header has no spatial unit")
    image = nibabel.Nifti1Image(blob(), AFFINE)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "stated.nii.gz")
    described = json.loads(run("info", tmp_path / "stated.nii.gz", "--json").stdout)
    assert described["voxel_ml"] == pytest.approx(0.0045)
    assert "reason" not in described


def test_evaluate_prints_and_writes_the_same_scores(tmp_path):
    for folder, shift in (("p", 1), ("r", 0)):
        labels = np.zeros((8, 8, 8), np.uint8)
        labels[2 + shift : 6 + shift] = 1
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / folder / "case.nii.gz")
    result = run("evaluate", tmp_path / "p", tmp_path / "r", "--output", tmp_path / "report.json", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["mean"]["foreground_dice"] == pytest.approx(0.75)
    assert json.loads((tmp_path / "report.json").read_text()) == document
    assert (tmp_path / "report.csv").exists()
    assert "mean foreground Dice: 0.7500" in run("evaluate", tmp_path / "p", tmp_path / "r").stdout


def test_profile_of_a_model_adds_up(model):
    document = json.loads(run("profile", "--model", model, "--json").stdout)
    for one in document["blocks"].values():
        *stages, total = one["stages"]
        assert sum(stage["parameters"] for stage in stages) == total["parameters"]


def test_doctor_names_the_device():
    findings = {finding["what"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
    assert findings["device"]["found"]
    assert findings["volseg"]["verdict"] == findings["convolution"]["verdict"] == "ok"


def test_doctor_reports_what_a_device_computes_wrongly(monkeypatch):
    def lacking(*_):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    right = torch.nn.functional.conv3d

    def wrong(image, kernel):
        return right(image, kernel * 1.05)

    for convolution, advice in (
        (wrong, "use --precision fp32"),
        (lacking, "use --device cpu, or install a PyTorch build for this GPU"),
    ):
        calls = iter([right, convolution])
        monkeypatch.setattr(torch.nn.functional, "conv3d", lambda *given, calls=calls: next(calls)(*given))
        found = doctor._convolution(torch.device("cpu"), torch.float32)
        assert found.verdict == advice
    assert found.found == "CUDA error: no kernel image is available"


def test_a_killed_predict_leaves_no_half_written_file(tmp_path, model):
    scans = tmp_path / "scans"
    scans.mkdir()
    for index in range(40):
        nibabel.save(nibabel.Nifti1Image(blob((60, 60, 60), index), AFFINE), scans / f"scan{index}.nii.gz")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "volseg", "predict", str(scans), "--model", str(model), "--output", str(out)]
    # A shell ignores SIGINT in all processes that it starts in the background.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    for stop in (signal.SIGKILL, signal.SIGTERM if ignored else signal.SIGINT):
        process = subprocess.Popen(
            [*command, "--skip-existing"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        before = len(list(out.glob("*.nii.gz"))) if out.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list(out.glob("scan*.nii.gz"))) < before + 3:
            time.sleep(0.01)
        os.kill(process.pid, stop)
        _, errors = process.communicate(timeout=60)
        for path in out.glob("scan*.nii.gz"):
            assert np.asarray(nibabel.load(path).dataobj).shape == (60, 60, 60)
        assert "Traceback" not in errors
    assert process.returncode == 130
    assert "--skip-existing" in errors
