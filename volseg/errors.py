"""Every error volseg raises on purpose, as one tree.

    VolsegError
    |-- UsageError        the call itself is wrong: an option, a name, an existing result
    |-- InputError        a scan, label image, data set or model file cannot be used as it is
    |   `-- GridError     grids that have to agree do not
    |-- ConfigError       a configuration or plan that does not hold together
    |-- TrainingError     training could not go on: loss not finite, a worker lost
    |-- ResourceError     memory or disk is not enough
    `-- OtherProcessError another process of the same run has said what is wrong
    KeyboardInterrupt
    `-- Stopped           Ctrl-C or SIGTERM came, and what was reached is safe on disk

A message says what was wrong, what was found against what was expected, and what to do. The command
line prints it without a traceback; `exit_code` is what the process then ends with.
"""

import signal

# The exit code after `Stopped` and any other Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT


class VolsegError(Exception):
    """Base of all errors raised on purpose by volseg."""

    exit_code = 1


class UsageError(VolsegError):
    """The call is wrong: an option, a name, or a result that exists already."""

    exit_code = 2


class InputError(VolsegError):
    """A scan, label image, data set or model file cannot be used as it is."""

    exit_code = 2


class GridError(InputError):
    """Two grids that have to agree do not."""


class ConfigError(VolsegError):
    """A configuration or plan does not hold together."""

    exit_code = 2


class TrainingError(VolsegError):
    """Training could not go on."""


class ResourceError(VolsegError):
    """Memory or disk is not enough for the work asked for."""


class OtherProcessError(VolsegError):
    """Another process of the same run has said what is wrong; this one only ends, with `exit_code`."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("Another process of this run has said why it ends.")
        self.exit_code = exit_code


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; the message says what is safe on disk and how to go on."""
