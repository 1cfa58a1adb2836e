"""What a plan knows of all training scans."""

from dataclasses import replace

import pytest

from tests.planning.test_planner import case, planned
from volseg.config import Channel, ScanRanges
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.ranges import merge_scan_ranges, plan_scan_ranges

PLACES = {"organ": (0.1, -0.2, 0.0), "other": (-0.1, 0.2, 0.0)}
FIRST = case((30, 50, 20), (1.0, 1.0, 2.0), PLACES, "first")
SECOND = case((40, 45, 20), (0.5, 1.0, 3.0), {"organ": (0.2, -0.1, 0.3), "other": (-0.2, 0.1, -0.3)}, "second")


def found(*cases, normalisation="zscore") -> ScanRanges:
    return plan_scan_ranges(Fingerprint(cases, ()), [Channel(normalisation=normalisation, clip=(0, 1), mean=0, std=1)])[
        0
    ]


def test_ranges_are_the_lowest_and_highest_of_all_cases():
    ranges = found(FIRST, SECOND)
    assert ranges.spacing_mm == ((0.5, 1.0), (1.0, 1.0), (2.0, 3.0))
    assert ranges.extent_mm == ((20.0, 30.0), (45.0, 50.0), (40.0, 60.0))
    assert ranges.offsets == {"organ": ((0.1, 0.2), (-0.2, -0.1), (0.0, 0.3)),
                              "other": ((-0.2, -0.1), (0.1, 0.2), (-0.3, 0.0))}  # fmt: skip


def test_quantiles_are_in_deviations_but_where_intensities_have_a_unit():
    low, *_, high = found(FIRST).quantiles[0]
    assert (low, high) == ((-2.0, -2.0), (4.0, 4.0))
    low, *_, high = found(FIRST, normalisation="ct").quantiles[0]
    assert (low, high) == ((80.0, 80.0), (140.0, 140.0))


def test_of_a_masked_scan_zeros_do_not_count():
    whole, _ = FIRST.intensities[0]
    other = replace(FIRST, intensities=((whole, (0.0, 1.0, *range(7))),))
    assert found(other, normalisation="zscore_nonzero").quantiles[0][6] == (6.0, 6.0)
    assert found(other).quantiles[0][6] == (4.0, 4.0)


def test_cases_that_do_not_state_their_size_are_left_out():
    unstated = replace(SECOND, unstated="the header has no unit")
    assert found(FIRST, unstated).spacing_mm == ((1.0, 1.0), (1.0, 1.0), (2.0, 2.0))
    assert found(unstated) is None


def test_offsets_are_of_cases_with_all_labels():
    partial = replace(SECOND, offsets={"organ": (0.0, 0.0, 0.0)})
    assert found(FIRST, partial).offsets == {name: tuple((one, one) for one in place) for name, place in PLACES.items()}
    assert found(partial, replace(partial, volumes_ml={"organ": 1.0, "other": 0.0})).offsets == {}


def test_the_plan_has_them_with_a_reason():
    plan, reasons = planned(FIRST, SECOND)
    assert plan.scan_ranges == found(FIRST, SECOND)
    assert "lowest and highest" in reasons["scan_ranges"]


def test_ranges_of_several_models_are_joined():
    merged = merge_scan_ranges([found(FIRST), found(SECOND)])
    assert merged == found(FIRST, SECOND)
    assert merge_scan_ranges([found(FIRST), None]) is None
    assert merge_scan_ranges([found(FIRST), found(case((9, 9, 9), (1, 1, 1)))]).offsets == {}


def test_a_plan_with_ranges_of_other_channels_is_rejected():
    plan, _ = planned(FIRST, SECOND)
    document = plan.model_dump()
    document["scan_ranges"]["quantiles"] *= 2
    with pytest.raises(ValueError, match="quantiles are of 2 channels, but there are 1"):
        type(plan).model_validate(document)
