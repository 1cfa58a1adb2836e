"""The shim and the server of trials, started once."""

import pytest

from tests.faults.client import Server, build_shim


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    library = build_shim(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("faults need Linux and a C compiler (cc)")
    return library


@pytest.fixture(scope="session")
def server(shim):
    with Server(shim) as started:
        yield started
