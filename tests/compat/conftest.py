"""Training here runs on one thread, as for the other tests that train."""

from tests.api.conftest import one_thread as one_thread
