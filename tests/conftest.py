"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real scans; a test that asks for it is skipped where VOLSEG_DATA is not set."""
    folder = os.environ.get("VOLSEG_DATA")
    if not folder:
        pytest.skip("needs real scans: set VOLSEG_DATA to their folder")
    return Path(folder)
