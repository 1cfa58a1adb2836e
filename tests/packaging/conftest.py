"""One installation for all tests that run it within limits."""

from pathlib import Path

import pytest

from tests.packaging.contained import installed


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("container"))
