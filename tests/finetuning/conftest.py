"""Fixtures of the tests that start from a model."""

import json

import pytest
import torch

from volseg.data.cases.phantom import write_phantoms


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Five MR phantoms with a ball and a rod."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, count=5, seed=3, kind="mr", tests=1)
    return folder


@pytest.fixture
def renamed(phantoms, tmp_path):
    """A function that gives the phantoms with other entries of dataset.json."""

    def make(**changes):
        folder = tmp_path / f"renamed{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in ("imagesTr", "labelsTr"):
            (folder / name).symlink_to(phantoms / name)
        document = json.loads((phantoms / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(document | changes))
        return folder

    return make


@pytest.fixture
def one_thread():
    """Run on one thread, so that sums are computed in a fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
