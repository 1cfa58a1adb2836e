"""A disk that is really full: a small one in memory, where Linux lets this process mount it."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from tests.pipeline import blob, environment, write_model

MOUNTED = ["unshare", "--mount", "sh", "-c"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "disk").mkdir()
    try:
        tried = subprocess.run([*MOUNTED, f"mount -t tmpfs -o size=64k none {tmp_path}/disk"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("this system has no unshare")
    if tried.returncode:
        pytest.skip("this process may not mount a disk")
    image = nib.Nifti1Image(blob((20, 20, 20)), np.eye(4))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "scan.nii.gz")
    write_model(tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.slow
def test_class_probabilities_on_a_full_disk_are_one_sentence(folder):
    """They are written through mapped pages, so a disk without room for them must be found before."""
    predict = f"{sys.executable} -m volseg predict {folder}/scan.nii.gz --model {folder}/model.safetensors"
    script = (
        f"mount -t tmpfs -o size=64k none {folder}/disk && cd {folder}/disk && head -c 30000 /dev/zero > other && "
        f"{predict} --output out/scan.nii.gz --probabilities; echo code $?; find . -type f; "
        f"{predict} --output out/scan.nii.gz; echo code $?; find . -type f"
    )
    done = subprocess.run([*MOUNTED, script], capture_output=True, text=True, timeout=120, env=environment())
    # 48 kB of probabilities do not fit beside the other file; a label image does.
    lines = [line for line in done.stdout.splitlines() if line.startswith(("code", "./"))]
    assert lines[:2] == ["code 1", "./other"]
    assert lines[2] == "code 0"
    assert sorted(lines[3:]) == ["./other", "./out/scan.json", "./out/scan.nii.gz"]
    assert "scan.probabilities.npy needs" in done.stderr
    assert "Traceback" not in done.stderr
