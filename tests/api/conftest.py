"""Fixtures of the tests that train."""

import pytest
import torch

from volseg.data.cases.phantom import write_phantoms


@pytest.fixture(scope="module")
def one_thread():
    """Run on one thread: small networks gain nothing from more, and sums are computed in a fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A dataset of five cases to train on, and a scan without labels."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, count=5, seed=3, kind="mr", tests=1)
    return folder
