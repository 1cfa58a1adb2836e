"""Fixtures of the tests that train."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Run on one thread: small networks gain nothing from more, and sums are computed in a fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
