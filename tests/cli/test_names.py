"""Names of files that are not UTF-8, with control characters or markup, or too long: read, written, shown escaped."""

import io
import json
import logging
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from rich.console import Console

from tests.pipeline import TINY, blob, leftovers, volseg, write_model
from volseg.cli import console
from volseg.data.cases.dataset import open_dataset
from volseg.data.cases.phantom import write_phantoms
from volseg.errors import InputError
from volseg.text import OneLine, printable

BYTES = os.fsdecode(b"M\xfcller \xe9")
SHOWN_BYTES = r"M\xfcller \xe9"
# A line break, an escape sequence, a change of the direction of writing, and markup of rich.
ODD = "\x1b[31m[red]x\ny\u202e[bold]"
SHOWN_ODD = r"\x1b[31m[red]x\ny\u202e[bold]"


def allows(name: str, folder: Path) -> bool:
    try:
        (folder / name).touch()
    except OSError:
        return False
    (folder / name).unlink()
    return True


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder of odd name with scans of odd names, one of them torn."""
    folder = tmp_path_factory.mktemp("names") / BYTES
    if not allows(BYTES, folder.parent):
        pytest.skip("the file system takes UTF-8 alone")
    folder.mkdir()
    image = nibabel.Nifti1Image(blob(), np.diag([1.5, 1.5, 2.0, 1.0]))
    nibabel.save(image, folder / f"{ODD}.nii.gz")
    shutil.copy(folder / f"{ODD}.nii.gz", folder / f"{BYTES}.nii.gz")
    (folder / f"torn{BYTES}.nii.gz").write_bytes((folder / f"{ODD}.nii.gz").read_bytes()[:400])
    return folder


def test_cases_of_any_name_are_segmented_and_shown_escaped(scans, model, tmp_path):
    out = tmp_path / f"out{BYTES}"
    done = volseg("predict", scans, "--model", model, "--output", out, "--device", "cpu", "--preview")
    assert done.returncode == 3
    assert {path.name for path in out.iterdir()} == {
        f"{name}{suffix}" for name in (ODD, BYTES) for suffix in (".nii.gz", ".json", ".png")
    }
    for text in (done.stdout, done.stderr):
        assert SHOWN_ODD in text
        assert SHOWN_BYTES in text
        assert not {"\x1b", "\u202e"} & set(text)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert f"torn{SHOWN_BYTES}: " in errors[0]
    assert "Traceback" not in done.stderr
    assert not leftovers(tmp_path)
    evaluated = volseg("evaluate", out, out, "--output", scans / "report.json")
    assert evaluated.returncode == 0, evaluated.stderr
    report = json.loads((scans / "report.json").read_text())
    assert {case["name"] for case in report["cases"]} == {ODD, BYTES}
    assert SHOWN_BYTES.replace("x", "udc") in (scans / "report.csv").read_text(encoding="utf-8")
    assert volseg("evaluate", out, out, "--json").returncode == 0


def test_json_holds_the_names_that_python_gives(scans, model, tmp_path):
    path = scans / f"{BYTES}.nii.gz"
    done = volseg("predict", path, "--model", model, "--output", tmp_path, "--device", "cpu", "--json")
    (case,) = json.loads(done.stdout)["cases"]
    assert case["name"] == BYTES
    assert case["inputs"] == [str(path)]
    found = volseg("info", path, "--json")
    assert json.loads(found.stdout)["file"] == str(path)
    assert SHOWN_BYTES in volseg("info", path).stdout


@pytest.mark.parametrize("suffix", ["nii", "mgz", "nrrd", "mha"])
def test_results_of_any_format_and_models_lie_in_folders_of_any_name(scans, model, tmp_path, suffix):
    folder = tmp_path / BYTES
    folder.mkdir()
    shutil.copy(model, folder / "m.safetensors")
    for name in (f"{BYTES}.{suffix}", f"plain.{suffix}"):
        done = volseg(
            "predict", scans / f"{BYTES}.nii.gz", "--model", folder / "m.safetensors", "--output", folder / name
        )
        assert done.returncode == 0, done.stderr
        assert (folder / name).stat().st_size > 0
    assert not leftovers(tmp_path)


def test_a_dataset_of_any_name_is_trained_on(tmp_path):
    if not allows(BYTES, tmp_path):
        pytest.skip("the file system takes UTF-8 alone")
    write_phantoms(tmp_path / "phantoms", 4, 1, "mr")
    phantoms, folder = open_dataset(tmp_path / "phantoms"), tmp_path / f"data{BYTES}"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number, case in enumerate(phantoms.cases):
        shutil.copy(case.images[0], folder / "images" / f"{BYTES}{number}.nii.gz")
        shutil.copy(case.label, folder / "labels" / f"{BYTES}{number}.nii.gz")
    planned = volseg("plan", folder)
    assert planned.returncode == 0, planned.stderr
    changes = [word for change in (*TINY, "training.workers=0") for word in ("--set", change)]
    run = tmp_path / f"run{BYTES}"
    trained = volseg(
        "train", folder, "--output", run, "--steps", 2, "--folds", 2, "--device", "cpu", *changes, timeout=120
    )
    assert trained.returncode == 0, trained.stderr
    assert (run / "model.safetensors").exists()
    assert "Logging error" not in trained.stderr
    assert f"data{SHOWN_BYTES}" in (run / "log.txt").read_text(encoding="utf-8")
    assert "UTF-8" not in (run / "report.html").read_text(encoding="utf-8")
    resumed = volseg("train", folder, "--output", run, "--steps", 3, "--resume", "--device", "cpu", timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    (folder / "images" / f"{BYTES}0.nii.gz").write_bytes(b"rubbish")
    refused = volseg("train", folder, "--output", tmp_path / "other", "--folds", 2, timeout=120)
    assert refused.returncode == 2
    assert f"{SHOWN_BYTES}0" in refused.stderr


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", LONG),
        ("info", f"{LONG}.nii.gz"),
        ("evaluate", LONG, LONG),
        ("plan", LONG),
        ("train", LONG, "--output", "run"),
        ("train", "{data}", "--output", LONG),
        ("plan", "{data}", "--output", LONG),
        ("evaluate", "{data}/labelsTr", "{data}/labelsTr", "--output", f"{LONG}.json"),
        ("ensemble", "a.safetensors", "b.safetensors", "--output", f"{LONG}.safetensors"),
        ("import-nnunet", "folder", "--output", f"{LONG}.safetensors"),
        ("predict", "{data}/imagesTr", "--model", LONG, "--output", "out"),
        ("predict", f"{LONG}.nii.gz", "--model", "hippocampus", "--output", "out.nii.gz"),
        ("predict", "{data}/imagesTr", "--model", "{model}", "--output", LONG),
    ],
)
def test_a_name_that_is_too_long_is_a_sentence_and_nothing_is_computed(tmp_path, monkeypatch, model, arguments):
    write_phantoms(tmp_path / "data", 2, 1, "mr")
    monkeypatch.chdir(tmp_path)
    done = volseg(*(one.format(data="data", model=model) for one in arguments))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_names_of_240_letters_are_segmented(tmp_path, model):
    nibabel.save(nibabel.Nifti1Image(blob(), np.diag([1.5, 1.5, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    (tmp_path / "scan.nii.gz").rename(tmp_path / f"{'a' * 240}.nii.gz")
    done = volseg("predict", tmp_path / f"{'a' * 240}.nii.gz", "--model", model, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".gz", ".json"]


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal, and what is written to it."""
    written = io.StringIO()
    monkeypatch.setattr(console, "error_console", Console(file=written, force_terminal=True, width=200, no_color=True))
    return written


def test_progress_bars_and_errors_on_a_terminal_show_names_as_they_are(terminal):
    with console.progress_bar() as progress:
        progress("segment", 0.5, f"{ODD}, window 1 of 2")
        progress("segment", 1.0, f"{ODD}, window 2 of 2")
    console.show_error(InputError(f"{ODD} is {BYTES}"))
    text = terminal.getvalue()
    assert f"{SHOWN_ODD}, window 2 of 2" in text
    assert f"Error: {SHOWN_ODD} is {SHOWN_BYTES}" in text.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert "\u202e" not in text


def test_log_lines_are_one_line_and_tracebacks_keep_theirs():
    try:
        raise ValueError("reason")
    except ValueError as error:
        record = logging.LogRecord(
            "volseg", logging.INFO, "", 0, "%s", (ODD,), (ValueError, error, error.__traceback__)
        )
    first, *rest = OneLine("%(levelname)s %(message)s").format(record).split("\n")
    assert first == f"INFO {SHOWN_ODD}"
    assert rest[0].startswith("Traceback")


def test_lists_of_a_message_keep_their_lines(terminal):
    message = f"a.zip contains 2 DICOM series:\n  number 3: {ODD}\n  number 4: CT"
    shown = ["a.zip contains 2 DICOM series:", f"  number 3: {SHOWN_ODD}", "  number 4: CT"]
    record = logging.LogRecord("volseg", logging.ERROR, "", 0, "%s", (message,), None)
    assert OneLine("%(message)s").format(record).split("\n") == shown
    console.show_error(InputError(message))
    text = terminal.getvalue().replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert text.splitlines() == [f"Error: {shown[0]}", *shown[1:]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("患者-Ä é [x] \\n.nii", "患者-Ä é [x] \\n.nii"),
        (ODD, SHOWN_ODD),
        (BYTES, SHOWN_BYTES),
        ("\t\r\x00\x7f\u2028\ud800\U000e0001", r"\t\r\x00\x7f\u2028\ud800\U000e0001"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()
