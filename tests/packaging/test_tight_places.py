"""Places with next to nothing: tiny /dev/shm and temporary folders, one core, odd umasks; see also test_container.py.

All run as an ordinary user without a name, without HOME and network, from a read-only installation.
"""

import json
import os
import stat
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.packaging.contained import contained, volseg
from tests.packaging.installing import ROOT
from tests.reading import dicom
from tests.reading.volume import Volume, grid, sample

PHANTOMS = ROOT / "data_samples" / "phantoms"
TINY = {"shm": "64k", "tmp": "16m"}


@pytest.fixture(scope="module")
def scan(work: Path) -> Path:
    path = work / "input" / "tight.nii.gz"
    nibabel.save(nibabel.load(PHANTOMS / "imagesTs" / "phantom_013.nii.gz").slicer[8:36, 8:36, 2:26], path)
    return path


def test_prediction_needs_neither_shared_memory_nor_a_temporary_folder(work: Path, scan: Path) -> None:
    folder = work / "output" / "tiny"
    options = ("--model", "hippocampus", "--to", "nifti,preview", "--probabilities", "--output", folder)
    done = volseg(work, "predict", scan, *options, **TINY)
    assert done.returncode == 0, done.stderr
    labels = np.asarray(nibabel.load(folder / "tight.nii.gz").dataobj)
    record = json.loads((folder / "tight.json").read_text())
    assert record["labels"]["Anterior"]["voxels"] == int((labels == 1).sum()) > 0


def test_training_goes_on_without_shared_memory(work: Path) -> None:
    """A batch that does not fit into /dev/shm would be waited for without end."""
    run = work / "output" / "run"
    fast = ("plan.features=[4,8]", "plan.patch_size=[32,32,32]", "training.validations=0")
    options = (word for one in fast for word in ("--set", one))
    done = volseg(work, "train", PHANTOMS, "--output", run, "--steps", "2", *options, **TINY, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "/dev/shm" in done.stderr
    assert (run / "model.safetensors").exists()


def test_a_zip_that_the_temporary_folder_cannot_hold_is_refused_in_one_sentence(work: Path) -> None:
    path = work / "input" / "large.zip"
    volume = Volume(sample("u2", (1024, 1024, 12)), grid())
    dicom.save_zip(dicom.slices(volume), path)
    with zipfile.ZipFile(path) as archive:
        assert sum(member.file_size for member in archive.infolist()) > 20 * 2**20
    done = volseg(work, "predict", path, "--model", "hippocampus", "--output", work / "output" / "large", **TINY)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "temporary folder" in done.stderr or "disk has" in done.stderr
    assert not (work / "output" / "large").exists()


@pytest.mark.parametrize("umask", [pytest.param("000", marks=pytest.mark.long), "077", "027"])
def test_files_have_the_permissions_that_the_umask_leaves(work: Path, scan: Path, umask: str) -> None:
    folder = work / "output" / f"umask{umask}"
    options = ("--model", "hippocampus", "--to", "nifti,preview", "--output", folder)
    done = volseg(work, "predict", scan, *options, umask=umask)
    assert done.returncode == 0, done.stderr
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert len(files) > 2
    left = 0o666 & ~int(umask, 8)
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {
        path.name: oct(left) for path in files
    }


def test_a_umask_that_leaves_nothing_ends_in_one_sentence(work: Path, scan: Path) -> None:
    done = volseg(work, "predict", scan, "--model", "hippocampus", "--output", work / "output" / "x" / "y", umask="777")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 400


def test_one_core_is_one_thread(work: Path, scan: Path) -> None:
    """Of a process that may use one core of several, not of a machine that has one."""
    code = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from volseg.cli import app; app()"
    options = ("--model", "hippocampus", "--output", work / "output" / "core")
    done = contained(work, sys.executable, "-c", code, "predict", scan, *options)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(work / "output" / "core" / "tight.json")
