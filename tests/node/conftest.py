"""Fixtures of the tests of the node."""

import gc
import warnings
from pathlib import Path

import pytest
import torch

from tests.node.orthanc import PROGRAM, Orthanc, free_port
from tests.node.world import add_formats, configure
from tests.pipeline import write_model
from volseg.node.http.monitor import Counters
from volseg.node.store import Store


def pytest_collection_modifyitems(items):
    """pynetdicom leaves the sockets of lost and refused connections to the garbage collector, which warns of them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture(scope="module", autouse=True)
def collected():
    """These sockets are collected before other tests, where their warning would be an error."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Small networks gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    add_formats()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def models(tmp_path_factory):
    """Two tiny models."""
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / f"tiny{seed}.safetensors", seed=seed) for seed in (1, 2)]


@pytest.fixture
def store(tmp_path, models):
    """The store of a node that does not run."""
    found = Store(configure(tmp_path, models[:1]))
    yield found
    found.close()


@pytest.fixture
def counters():
    """Counters of nothing yet."""
    return Counters()


@pytest.fixture
def orthanc(tmp_path):
    """A running Orthanc that knows a node with the port `orthanc.node_port`."""
    if PROGRAM is None:
        pytest.skip("Orthanc is not installed (Debian: orthanc orthanc-dicomweb)")
    node_port = free_port()
    found = Orthanc(tmp_path / "orthanc", ("VOLSEG", node_port))
    found.node_port = node_port
    found.start()
    yield found
    found.stop()
