"""Every error volseg raises on purpose, as one tree.

    VolsegError
    |-- UsageError        the call itself is wrong: an option, a name, an existing result
    |-- InputError        a scan, label image, dataset or model file cannot be used as it is
    |   |-- GridError     grids that have to agree do not
    |   `-- DatasetError  cases of a training dataset cannot be used: all problems at once
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
from collections.abc import Sequence
from typing import NamedTuple

# The exit code after `Stopped` and any other Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT
# Problems of a dataset that a message lists.
SHOWN = 30


class VolsegError(Exception):
    """Base of all errors raised on purpose by volseg."""

    exit_code = 1


class UsageError(VolsegError):
    """The call is wrong: an option, a name, or a result that exists already."""

    exit_code = 2


class InputError(VolsegError):
    """A scan, label image, dataset or model file cannot be used as it is.

    Args:
        found: what was wrong, as a sentence, or as its first half where a remedy follows.
        remedy: its second half, what to do.
        problem: the kind of it in a word or two, for tables.
    """

    exit_code = 2

    def __init__(self, found: str, remedy: str = "", problem: str = "not usable") -> None:
        super().__init__(f"{found}; {remedy}." if remedy else found)
        self.found, self.remedy, self.problem = found, remedy, problem


class GridError(InputError):
    """Two grids that have to agree do not."""


class Problem(NamedTuple):
    """What is wrong with a case of a dataset: a row of a table."""

    case: str
    problem: str
    found: str
    remedy: str


class DatasetError(InputError):
    """A training dataset cannot be used; `problems` are all that were found, the message lists the first ones."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        self.heading = f"{name} cannot be trained on as it is, problems: {len(self.problems)}."
        more = [f"and {len(self.problems) - SHOWN} more"] if len(self.problems) > SHOWN else []
        rows = [f"{row.case}: {row.problem}: {row.found}; {row.remedy}." for row in self.problems[:SHOWN]]
        super().__init__("\n  ".join([self.heading, *rows, *more]))


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
