"""Rules: which series a model is for."""

import pytest

from tests.node.world import datasets
from volseg.config import checked
from volseg.errors import ConfigError
from volseg.node.rules import Rule, matching


def rule(**when) -> Rule:
    return checked(Rule, {"model": "hippocampus", "when": when}, "rule")


@pytest.fixture(scope="module")
def header():
    return datasets(1, ImageType="ORIGINAL\\PRIMARY\\M", SeriesDescription="T1 MPRAGE ", SliceThickness="1.50")[0]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, True),
        ({"Modality": "MR"}, True),
        ({"Modality": "mr"}, True),
        ({"Modality": "CT"}, False),
        ({"Modality": ["CT", "MR"]}, True),
        ({"Modality": "MR", "BodyPartExamined": "*"}, False),
        ({"SeriesDescription": "*mprage*"}, True),
        ({"SeriesDescription": "mprage"}, False),
        ({"SeriesDescription": "t? mprage"}, True),
        ({"ImageType": "PRIMARY"}, True),
        ({"ImageType": "DERIVED"}, False),
        ({"SliceThickness": 1.5}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, False),
        ({"SeriesDescription": "20-01-01"}, False),
        ({"SliceThickness": {"at_most": 1.5}}, True),
        ({"SliceThickness": {"at_least": 1.6}}, False),
        ({"SliceThickness": {"at_least": 1, "at_most": 2}}, True),
        ({"SeriesDescription": {"at_least": 0}}, False),
        ({"Rows": 24}, True),
    ],
)
def test_a_rule_matches_by_patterns_lists_and_bounds(header, when, expected):
    assert rule(**when).matches(header) is expected


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"Modalty": "MR"}, "'Modalty' is no keyword of a DICOM attribute"),
        ({"SourceImageSequence": "x"}, "SourceImageSequence is a sequence"),
        ({"Modality": []}, "expected a value, a list of values, or at_least and at_most"),
        ({"Modality": True}, "expected a value, a list of values, or at_least and at_most"),
        ({"Rows": {"min": 3}}, "expected at_least, at_most or both, with numbers"),
        ({"Rows": {"at_least": "three"}}, "expected at_least, at_most or both, with numbers"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_rejected(when, message):
    with pytest.raises(ConfigError, match=message):
        rule(**when)


def test_every_model_whose_rule_matches_has_the_series_by_its_first_rule(header):
    rules = [
        checked(Rule, {"model": model, "to": [to], "when": when}, "rule")
        for model, to, when in (
            ("one", "dicom-seg", {"Modality": "MR"}), ("two", "rtstruct", {"Modality": "CT"}),
            ("one", "rtstruct", {}), ("three", "rtstruct", {}),
        )
    ]  # fmt: skip
    found = matching(rules, header, {"one": "a1", "two": "b2", "three": "c3"})
    assert {sha256: (one.model, one.to) for sha256, one in found.items()} == {
        "a1": ("one", ("dicom-seg",)), "c3": ("three", ("rtstruct",))
    }  # fmt: skip
