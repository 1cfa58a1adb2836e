"""Every error volseg raises on purpose, as one tree.

    VolsegError
    |-- UsageError        the call is wrong: an option, a name, an existing result
    |-- InputError        a scan, label image, dataset or model file cannot be used
    |   |-- GridError     the grids of two images differ
    |   `-- DatasetError  cases of a training dataset cannot be used; lists all problems
    |-- ConfigError       an invalid configuration or plan
    |-- TrainingError     training cannot continue: the loss is not finite, a process was lost
    |-- ResourceError     not enough memory or disk space
    `-- OtherProcessError another rank of the same run has reported the error
    KeyboardInterrupt
    `-- Stopped           Ctrl-C or SIGTERM; finished work is saved

A message says what was wrong, what was found against what was expected, and what to do. The command
line prints it without a traceback and ends with `exit_code`.
"""

import signal
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from volseg.text import LISTED, first_few, shortened

# The exit code after `Stopped` or any other Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT
# The number of problems of a dataset that a message lists.
SHOWN = 30
# Characters of a sentence, so that it holds the longest path of a file, and sentences of a message. What a message
# quotes may come from a file and be of any length.
LONGEST, MOST = 5000, 60


class VolsegError(Exception):
    """Base of all errors raised on purpose by volseg."""

    exit_code = 1

    def __str__(self) -> str:
        """The message; what is too long for a person to read is left out."""
        return LISTED.join(shortened(line, LONGEST) for line in super().__str__().split(LISTED)[:MOST])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without calling the constructor, whose arguments are not those of `Exception`."""
        return _unpickled, (type(self), self.args, self.__dict__)


class UsageError(VolsegError):
    """The call is wrong: an option, a name, or a result that exists already."""

    exit_code = 2


class InputError(VolsegError):
    """A scan, label image, dataset or model file cannot be used.

    Args:
        found: what was wrong, as a sentence; with a remedy, its first half.
        remedy: what to do, as the second half of the sentence.
        problem: the kind of problem in a word or two, for tables.
    """

    exit_code = 2

    def __init__(self, found: str, remedy: str = "", problem: str = "not usable") -> None:
        super().__init__(f"{found}; {remedy}." if remedy else found)
        self.found, self.remedy, self.problem = found, remedy, problem


class GridError(InputError):
    """The grids of two images differ, but must be equal."""


class Problem(NamedTuple):
    """What is wrong with a case of a dataset: a row of a table."""

    case: str
    problem: str
    found: str
    remedy: str


class DatasetError(InputError):
    """A training dataset cannot be used; `problems` has every problem, the message the first `SHOWN`."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        self.heading = f"Dataset {name} has {count} and cannot be used for training:"
        rows = [f"{row.case}: {row.problem}: {row.found}; {row.remedy}." for row in self.problems]
        super().__init__("\n  ".join([self.heading, first_few(rows, SHOWN, separator="\n  ")]))


class ConfigError(VolsegError):
    """A configuration or plan is invalid."""

    exit_code = 2


class TrainingError(VolsegError):
    """Training cannot continue."""


class ResourceError(VolsegError):
    """Not enough memory or disk space."""


class OtherProcessError(VolsegError):
    """Another rank of the same run has reported the error; this process only ends, with `exit_code`."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("Stopped because another rank failed or was interrupted; see its message.")
        self.exit_code = exit_code


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the message says what was saved and how to resume."""


def _unpickled(kind: type[VolsegError], args: tuple[Any, ...], state: dict[str, Any]) -> VolsegError:
    """An error as it was pickled."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def release_frames(error: BaseException | None) -> None:
    """Release the local variables of the functions that an error and its causes came through."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
