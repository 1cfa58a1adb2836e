"""Texts that all messages share."""

from volseg.errors import DatasetError, Problem, first_few


def test_the_first_few_of_many_and_the_number_of_the_others() -> None:
    assert first_few([1, 2, 3]) == "1, 2, 3"
    assert first_few("abcde") == "a, b, c, d, e"
    assert first_few("abcdefg") == "a, b, c, d, e, and 2 more"
    assert first_few(["a", "b", "c"], shown=1, separator="; ") == "a; and 2 more"
    assert first_few([]) == ""


def test_a_dataset_error_lists_its_problems() -> None:
    problem = Problem("case_1", "missing file", "case_1.nii.gz is missing", "add it")
    assert str(DatasetError("liver", [problem])).splitlines() == [
        "Dataset liver has 1 problem and cannot be used for training:",
        "  case_1: missing file: case_1.nii.gz is missing; add it.",
    ]
    assert str(DatasetError("liver", [problem] * 32)).splitlines()[-1] == "  and 2 more"
