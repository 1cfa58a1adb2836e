"""Standard streams that are closed, full or without a reader: the files are complete, and the command ends."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress

import nibabel as nib
import numpy as np
import pytest

from tests.pipeline import blob, environment

CONVERT = [sys.executable, "-m", "volseg", "convert", "scan.nii.gz", "--output", "out.mha", "--json"]
NUMBERS = """
import os, volseg.cli.console
print(os.open("file", os.O_CREAT), [os.fstat(number).st_rdev == os.stat(os.devnull).st_rdev for number in (0, 1, 2)],
      file=open("found", "w"))
"""


@pytest.fixture
def folder(tmp_path):
    nib.save(nib.Nifti1Image(blob(), np.eye(4)), tmp_path / "scan.nii.gz")
    return tmp_path


def run(folder, redirection, command=CONVERT):
    words = " ".join(f"'{word}'" for word in command)
    return subprocess.run(
        ["sh", "-c", f"{words} {redirection}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "2>/dev/full"])
def test_results_are_complete_without_streams(folder, redirection):
    done = run(folder, redirection)
    assert done.returncode == 0
    assert (folder / "out.mha").stat().st_size > 1000
    assert (folder / "out.json").exists()


def test_a_full_disk_below_standard_output_is_one_sentence(folder):
    done = run(folder, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: Could not write to standard output (No space left on device); the result files are complete."
    )
    assert "Traceback" not in done.stderr


def test_a_pipe_without_a_reader_ends_quietly(folder):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(CONVERT, cwd=folder, stdout=writing, stderr=-1, text=True, timeout=60, env=environment())
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert (folder / "out.mha").exists()


def test_a_full_pipe_that_does_not_block_gets_the_whole_document(folder):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    full = 0
    with suppress(BlockingIOError):
        while True:
            full += os.write(writing, bytes(1024))
    with subprocess.Popen(CONVERT, cwd=folder, stdout=writing, env=environment()) as process:
        os.close(writing)
        until = time.monotonic() + 60
        while not (folder / "out.mha").exists() and time.monotonic() < until:
            time.sleep(0.1)
        with open(reading, "rb") as pipe:
            found = pipe.read()[full:]
    assert process.returncode == 0
    assert json.loads(found) == json.loads((folder / "out.json").read_text())


def test_no_file_gets_the_number_of_a_closed_stream(folder):
    (folder / "program.py").write_text(NUMBERS)
    done = run(folder, "<&- >&- 2>&-", [sys.executable, "program.py"])
    assert done.returncode == 0
    number, rest = (folder / "found").read_text().split(maxsplit=1)
    assert int(number) > 2
    assert rest == "[True, True, True]\n"
