"""Labels declared by datasets, and invalid declarations, each rejected in one sentence."""

import pytest

from volseg.data.cases.labels import LabelSet, parse_labels
from volseg.errors import InputError

WHOLE = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3}


def test_plain_labels_are_sorted_by_value_in_either_form():
    expected = LabelSet({"a": 1, "b": 4})
    assert parse_labels({"b": 4, "background": 0, "a": [1]}, None, "x") == expected
    assert parse_labels({"0": "background", "4": "b", "1": "a"}, None, "x") == expected
    assert list(expected.values) == ["a", "b"]
    assert (expected.stored, expected.known) == ({"a": (1,), "b": (4,)}, {1, 4})


def test_names_that_differ_in_case_are_two_labels():
    assert parse_labels({"a": 1, "A": 2}, None, "x").values == {"a": 1, "A": 2}


def test_regions_keep_their_order_and_are_written_by_regions_class_order():
    found = parse_labels({**WHOLE, "ignore": 4}, [1, 2, 3], "x")
    assert list(found.values.items()) == [("whole", 1), ("core", 2), ("rim", 3)]
    assert found.stored == found.parts == {"whole": (1, 2, 3), "core": (2, 3), "rim": (3,)}
    assert (found.ignore, found.known) == (4, {1, 2, 3, 4})


def test_a_repeated_value_in_a_region_counts_once():
    assert parse_labels({"whole": [1, 2, 1], "core": [2, 2]}, [1, 2], "x").parts == {"whole": (1, 2), "core": (2,)}


@pytest.mark.parametrize(
    ("labels", "order", "complaint"),
    [
        (["a", "b"], None, "'labels' in FILE is a list"),
        ({"organ": "one"}, None, "Label 'organ' in FILE has the value 'one', expected an integer from 0 to 65535"),
        ({"organ": True}, None, "has the value True"),
        ({"organ": -1}, None, "has the value -1"),
        ({"organ": 65536}, None, "has the value 65536"),
        ({"organ": []}, None, r"has the value \[\]"),
        ({"organ": [1, "2"]}, [1], r"has the value \[1, '2'\]"),
        ({"organ": [0, 1]}, [1], r"Region 'organ' in FILE is \[0, 1\]; remove 0"),
        ({"background": 0}, None, "FILE has no foreground label"),
        ({"background": 0, "ignore": 1}, None, "FILE has no foreground label"),
        ({"a": 1, "b": 1}, None, "Two labels in FILE share a value"),
        ({"1": "a", "2": "a"}, None, "Two labels in FILE share the name 'a'"),
        ({"left lung": 1, " left  lung": 2}, None, "Two labels in FILE share the name 'left lung'"),
        (
            {"a": 1, "b": 3, "ignore": 2},
            None,
            "'ignore' in FILE has the value 2. Give it a single value above 3, the highest",
        ),
        ({"a": 1, "ignore": [2, 3]}, None, "'ignore' in FILE has the value 2, 3. Give it a single value above 1"),
        ({"a": 1, "ignore": 0}, None, "'ignore' in FILE has the value 0"),
        (WHOLE, None, "FILE has 3 regions, but its regions_class_order has 0 values"),
        (WHOLE, [1, 2], "FILE has 3 regions, but its regions_class_order has 2 values"),
        (WHOLE, [1, 1, 3], r"Region 'core' in FILE is \[2, 3\], but its value in regions_class_order is 1"),
        (WHOLE, [3, 2, 3], "Two labels in FILE share a value"),
        ({**WHOLE, "ignore": 3}, [1, 2, 3], "'ignore' in FILE has the value 3"),
    ],
)
def test_wrong_declarations(labels, order, complaint):
    with pytest.raises(InputError, match=complaint):
        parse_labels(labels, order, "FILE")
