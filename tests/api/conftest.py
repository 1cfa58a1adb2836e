"""Fixtures of the tests that train."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Small networks gain nothing from threads, and sums are made in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
