"""Pipes and devices where files are expected: a pipe without a writer blocks, and /dev/zero has no end."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import volseg.api.describe
import volseg.api.train  # noqa: F401 - so that no trial waits for torch
from tests.pipeline import blob
from tests.strangers.trials import check_refusal, check_words, command, run
from volseg.config import load_config
from volseg.errors import ConfigError, UsageError
from volseg.training.run.folder import _require_own_files

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names on this system")
KINDS = ("pipe", "device")


def special(path: Path, kind: str) -> Path:
    """A pipe that nobody writes to, or a link to an endless device, in the place of `path`."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mhd", "a.dcm", "a.zip", "DICOMDIR", "a"])
@pytest.mark.parametrize("verb", ["info", "convert"])
def test_an_image(tmp_path, verb, name, kind):
    path = special(tmp_path / name, kind)
    trial = run(command(verb, path, *(["--output", tmp_path / "b.nii.gz"] if verb == "convert" else [])), tmp_path)
    check_refusal(trial)
    assert "neither a file nor a folder" in trial.error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["images/b.nii.gz", "labels/b.nii.gz", "dataset.json"])
def test_a_part_of_a_dataset(tmp_path, name, kind):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for case in ("a", "b", "c"):
            image = nib.Nifti1Image((blob() > 0.5).astype(np.uint8), np.eye(4))
            nib.save(image, tmp_path / folder / f"{case}.nii.gz")
    special(tmp_path / name, kind)
    trial = run(command("plan", tmp_path), tmp_path)
    assert trial.code == 2
    check_words(trial)
    assert any(words in trial.error for words in ("not a regular file", "neither a file nor", "a pipe or a device"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration(tmp_path, kind):
    path = special(tmp_path / "own.yaml", kind)
    with pytest.raises(ConfigError, match="it is a pipe or a device"):
        load_config(path)


def test_a_checkpoint_of_a_run(tmp_path):
    for name, words in (("checkpoint", "is not a folder"), ("splits.json", "is not a file")):
        run_folder = tmp_path / name.replace(".", "_")
        run_folder.mkdir()
        special(run_folder / name, "pipe")
        with pytest.raises(UsageError, match=words):
            _require_own_files(run_folder)
