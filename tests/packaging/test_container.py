"""The entry point of the container in an ordinary process, under what the container imposes.

No container can be built where there is no container engine. Here a namespace has the same limits: the installation
and the whole root are read-only, there is no HOME and no network, /dev/shm has 64 MiB, and the user is an ordinary one
without an entry in /etc/passwd.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np

from tests.packaging.contained import contained, volseg
from tests.packaging.installing import ROOT

PHANTOM = ROOT / "data_samples" / "phantoms" / "imagesTs" / "phantom_013.nii.gz"
RECIPE = (ROOT / "deploy" / "Containerfile").read_text()
# What a process finds there; each line is a limit that would otherwise not be tested.
LIMITS = """
import errno, os, shutil, socket, volseg
def refused(do, *numbers):
    try:
        do()
    except OSError as error:
        return error.errno in numbers
print("volseg", os.path.dirname(volseg.__file__))
print("read-only install", refused(lambda: open(volseg.__file__ + ".new", "w"), errno.EROFS))
print("read-only root", refused(lambda: open("/new", "w"), errno.EROFS))
print("no network", refused(lambda: socket.create_connection(("192.0.2.1", 80), 1), errno.ENETUNREACH))
print("small shm", shutil.disk_usage("/dev/shm").total == 64 * 2**20)
print("no home", "HOME" not in os.environ)
print("ordinary user", os.getuid() == 10001)
"""


def test_the_limits_hold(work: Path) -> None:
    done = contained(work, sys.executable, "-c", LIMITS)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == f"volseg {work}/app/volseg"
    assert [line.rpartition(" ")[2] for line in others] == ["True"] * 6, done.stdout


def test_the_entry_point_segments_images(work: Path) -> None:
    scan = nibabel.load(PHANTOM).slicer[8:36, 8:36, 2:26]
    for slug, name in (("mr", "a.nii.gz"), ("more", "b.nii.gz")):
        folder = work / "input" / "images" / slug
        folder.mkdir(parents=True)
        nibabel.save(scan, folder / name)
    (work / "input" / "images" / "mr" / "torn.mha").write_bytes(b"no image")
    done = contained(work, sys.executable, work / "app" / "entrypoint.py")
    assert done.returncode == 3, done.stderr
    assert "torn: " in done.stderr
    images = work / "output" / "images" / "segmentation"
    assert sorted(path.name for path in images.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    labels = np.asarray(nibabel.load(images / "a.nii.gz").dataobj)
    assert labels.shape == scan.shape
    cases = {case["inputs"][0]["filename"]: case for case in json.loads((work / "output" / "results.json").read_text())}
    assert {name: len(case["error_messages"]) for name, case in cases.items()} == {
        "a.nii.gz": 0, "b.nii.gz": 0, "torn.mha": 1,
    }  # fmt: skip
    record = cases["a.nii.gz"]["record"]
    assert record["labels"]["Anterior"]["voxels"] == int((labels == 1).sum()) > 0
    assert list((work / "tmp").iterdir()) == []


def test_the_command_line_works_as_well(work: Path) -> None:
    scans = work / "input" / "scans"
    scans.mkdir()
    nibabel.save(nibabel.load(PHANTOM).slicer[8:36, 8:36, 2:26], scans / "c.nii.gz")
    done = volseg(work, "predict", scans, "--model", "hippocampus", "--output", work / "output" / "plain")
    assert done.returncode == 0, done.stderr
    assert (work / "output" / "plain" / "c.json").exists()


def test_without_images_the_entry_point_says_so(work: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "VOLSEG_INPUT": str(tmp_path), "VOLSEG_OUTPUT": str(tmp_path / "out")}
    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "entrypoint.py"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "ERROR Nothing to segment. Give a scan or a folder of scans.\n")


def test_the_recipe_names_files_that_exist_and_an_ordinary_user() -> None:
    copied = [source for line in re.findall(r"^COPY (.*)$", RECIPE, re.MULTILINE) for source in line.split()[:-1]]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", RECIPE, re.MULTILINE)
    pins = (ROOT / "deploy" / "predict.txt").read_text()
    assert re.findall(r"^torch==[^ \n]*", pins, re.MULTILINE), "the recipe takes the version of torch from there"
