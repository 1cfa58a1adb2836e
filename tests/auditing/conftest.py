"""Fixtures of the tests of audits, which train."""

from tests.api.conftest import one_thread

__all__ = ["one_thread"]
