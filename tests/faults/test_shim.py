"""The shim counts what it should, fails what it should, and is silent elsewhere; the checks of a trial can fail."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults.client import MODES, Call, Ended, Fault
from tests.faults.trials import _about_exit, _about_files, faults_at, kills_at

SCRIPT = """
import ctypes, os, shutil, sys
shim, folder, elsewhere, mode, at, error = sys.argv[1:]
log = os.open(elsewhere + ".log", os.O_WRONLY | os.O_CREAT)
library = ctypes.CDLL(shim)
library.faults_arm(folder.encode(), int(mode), int(at), int(error), log)
for name in (elsewhere, folder + "/file"):
    try:
        with open(name, "w") as file:
            file.write("12345678")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, name + ".new")
    except OSError as found:
        print(found.errno)
os.mkdir(folder + "/inner")
shutil.rmtree(folder + "/inner")
"""


def run(shim: Path, folder: Path, mode: str = "count", at: int = 0, error: int = 0):
    """Run the script; its process, the names of the counted calls, and the errors that it met."""
    (folder / "counted").mkdir()
    elsewhere = folder / "elsewhere"
    command = [sys.executable, "-c", SCRIPT, shim, folder / "counted", elsewhere, str(MODES[mode]), str(at), str(error)]
    done = subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(shim)}, capture_output=True, text=True)
    lines = [line.split("\t") for line in (folder / "elsewhere.log").read_text().splitlines()]
    assert [int(line[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert all(line[2].startswith(str(folder / "counted")) for line in lines)
    assert (folder / "elsewhere.new").read_text() == "12345678"
    return done, [line[1] for line in lines], [int(line) for line in done.stdout.split()]


def test_calls_below_the_folder_count_and_no_others(shim, tmp_path):
    done, calls, errors = run(shim, tmp_path)
    assert (done.returncode, done.stderr, errors) == (0, "", [])
    assert calls[:5] == ["open+", "write", "fsync", "close", "rename"]
    assert calls[5] == "mkdir"
    assert calls[-1] == "unlink"


@pytest.mark.parametrize(
    ("at", "call", "error"),
    [(1, "open+", errno.EACCES), (2, "write", errno.ENOSPC), (3, "fsync", errno.EIO), (4, "close", errno.ENOSPC),
     (5, "rename", errno.ENOSPC)],
)  # fmt: skip
def test_the_nth_call_fails_with_its_error(shim, tmp_path, at, call, error):
    done, calls, errors = run(shim, tmp_path, "fail", at, error)
    assert (done.returncode, calls[at - 1], errors) == (0, call, [error])
    assert (tmp_path / "counted" / "file.new").exists() is False


def test_a_call_never_gives_an_error_that_it_cannot_give(shim, tmp_path):
    _, calls, errors = run(shim, tmp_path, "fail", 3, errno.EACCES)
    assert (calls[2], errors) == ("fsync", [errno.EIO])


def test_a_full_disk_stays_full(shim, tmp_path):
    done, _, errors = run(shim, tmp_path, "sticky", 2, errno.ENOSPC)
    assert errors == [errno.ENOSPC]
    assert "No space left" in done.stderr
    assert "inner" in done.stderr


def test_a_kill_comes_before_the_call_and_a_torn_write_in_its_middle(shim, tmp_path):
    done, calls, _ = run(shim, tmp_path, "torn", 2)
    assert (done.returncode, calls) == (-9, ["open+", "write"])
    assert (tmp_path / "counted" / "file").read_text() == "1234"
    other = tmp_path / "other"
    other.mkdir()
    done, calls, _ = run(shim, other, "kill", 2)
    assert (done.returncode, calls) == (-9, ["open+", "write"])
    assert (other / "counted" / "file").read_text() == ""


def test_every_call_has_its_faults():
    names = ["open+", "open", "write", "fsync", "close", "rename", "mkdir", "unlink", "fallocate", "ftruncate", "msync"]
    for name in names:
        faults = list(faults_at(7, Call(name, "")))
        assert faults
        assert all(one.at == 7 and one.errno for one in faults)
        assert Fault("kill", 7) in kills_at(7, Call(name, ""))
    assert [one.errno for one in faults_at(1, Call("ftruncate", ""))] == [errno.EIO]


@pytest.fixture
def stage(tmp_path):
    """A scene whose command turns a report "old" into "new"."""
    (tmp_path / "trial" / "tmp").mkdir(parents=True)
    return SimpleNamespace(
        trial=tmp_path / "trial",
        scene=SimpleNamespace(replaced=""),
        before={"report.json": b"old", "report.csv": b"old"},
        after={"report.json": b"new", "report.csv": b"new"},
    )


@pytest.mark.parametrize(
    ("files", "code", "found"),
    [
        ({"report.json": "old", "report.csv": "old"}, 1, ""),
        ({"report.json": "new", "report.csv": "new"}, 1, ""),
        ({"report.json": "new", "report.csv": "new"}, 0, ""),
        ({"report.json": "old", "report.csv": "old", ".0123abcd.tmp.report.json": "n"}, -9, ""),
        ({"report.json": "new", "report.csv": "old", ".0123abcd.tmp.ready/report.csv": "new"}, -9, ""),
        ({"report.json": "new", "report.csv": "old"}, -9, "half old and half new"),
        ({"report.json": "new", "report.csv": "old"}, 1, "half old and half new"),
        ({"report.json": "ne", "report.csv": "old"}, -9, "neither old nor new"),
        ({"report.csv": "old"}, 1, "half old and half new"),
        ({"report.json": "old", "report.csv": "old"}, 0, "without the result"),
        ({"report.json": "old", "report.csv": "old", ".0123abcd.tmp.report.json": "n"}, 1, "left behind"),
        ({"report.json": "old", "report.csv": "old", "report.part": "n"}, -9, "unknown files"),
        ({"report.json": "old", "report.csv": "old", "tmp/x": "n"}, 1, "temporary folder"),
    ],
)
def test_what_is_half_or_left_is_a_finding(stage, files, code, found):
    for name, text in files.items():
        path = stage.trial / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    problems = list(_about_files(stage, Ended(code, "", "", ()), Fault("fail", 1, errno.EIO), Call("write", "")))
    assert any(found in one for one in problems) if found else problems == []


@pytest.mark.parametrize(
    ("files", "found"),
    [({}, ""), ({"report.csv": "old"}, ""), ({"report.csv": "new"}, "half old and half new")],
)
def test_what_a_command_removes_first_may_be_gone(stage, files, found):
    stage.scene.replaced = "^report"
    for name, text in files.items():
        (stage.trial / name).write_text(text)
    problems = list(_about_files(stage, Ended(1, "", "", ()), Fault("fail", 1, errno.EIO), Call("write", "")))
    assert any(found in one for one in problems) if found else problems == []


@pytest.mark.parametrize(
    ("code", "stderr", "found"),
    [
        (0, "", ""),
        (1, "Error: Could not write report.json: No space left on device.", ""),
        (1, "", "no sentence"),
        (1, "Traceback (most recent call last):\nError: x", "a traceback"),
        (-11, "", "exit code -11"),
        (None, "", "hung"),
    ],
)
def test_an_ending_without_its_sentence_is_a_finding(stage, code, stderr, found):
    problems = list(_about_exit(stage, Ended(code, "", stderr, ()), Fault("fail", 1, errno.EIO)))
    assert any(found in one for one in problems) if found else problems == []
