"""Small tensors are faster on one thread, above all on a busy machine."""

from tests.api.conftest import one_thread

__all__ = ["one_thread"]
