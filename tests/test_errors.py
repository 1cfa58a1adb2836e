"""Texts that all messages share, and errors that travel between processes."""

import copy
import pickle

import pytest

from volseg.errors import (
    DatasetError,
    GridError,
    InputError,
    OtherProcessError,
    Problem,
    Stopped,
    UsageError,
    VolsegError,
)
from volseg.text import first_few


def test_the_first_few_of_many_and_the_number_of_the_others() -> None:
    assert first_few([1, 2, 3]) == "1, 2, 3"
    assert first_few("abcde") == "a, b, c, d, e"
    assert first_few("abcdefg") == "a, b, c, d, e and 2 more"
    assert first_few(["a", "b", "c"], shown=1, separator="; ") == "a; and 2 more"
    assert first_few([]) == ""


def test_a_dataset_error_lists_its_problems() -> None:
    problem = Problem("case_1", "missing file", "case_1.nii.gz is missing", "add it")
    assert str(DatasetError("liver", [problem])).splitlines() == [
        "Dataset liver has 1 problem and cannot be used for training:",
        "  case_1: missing file: case_1.nii.gz is missing; add it.",
    ]
    assert str(DatasetError("liver", [problem] * 32)).splitlines()[-1] == "  and 2 more"


def kinds(of: type[VolsegError]) -> set[type[VolsegError]]:
    return {of}.union(*map(kinds, of.__subclasses__()))


MADE = {
    DatasetError: DatasetError("liver", [Problem("case_1", "missing file", "case_1.nii.gz is missing", "add it")]),
    OtherProcessError: OtherProcessError(3),
    InputError: InputError("it is empty", "copy it again", "empty"),
    GridError: GridError("grids differ", "resample it"),
}


@pytest.mark.parametrize("kind", sorted(kinds(VolsegError), key=lambda kind: kind.__name__))
def test_every_error_survives_pickle(kind) -> None:
    error = MADE[kind] if kind in MADE else kind("what was wrong")
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(copied) is kind
        assert str(copied) == str(error)
        assert copied.__dict__ == error.__dict__
        assert copied.exit_code == error.exit_code


def test_the_interruption_of_a_run_survives_pickle() -> None:
    for copied in (pickle.loads(pickle.dumps(Stopped("saved"))), copy.deepcopy(Stopped("saved"))):
        assert (type(copied), str(copied)) == (Stopped, "saved")


def test_an_error_raised_in_another_process_is_that_error() -> None:
    with pytest.raises(UsageError, match="wrong"):
        raise pickle.loads(pickle.dumps(UsageError("wrong")))
