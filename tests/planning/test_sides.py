"""Which flips a plan allows, and which labels they exchange."""

import numpy as np
import pytest

from tests.planning.test_planner import case, planned
from volseg.config import PlanChoices, Sides
from volseg.data.cases.labels import LabelSet
from volseg.errors import ConfigError
from volseg.planning.sides import side_of

LEFT, RIGHT = (-0.3, 0.0, 0.0), (0.3, 0.01, -0.01)


def dataset(offsets, volumes=None, count=5):
    """Cases of 64 x 64 x 64 with labels at these offsets along R, A, S."""
    cases = [case((64, 64, 64), (1.0, 1.0, 1.0), dict(offsets)) for _ in range(count)]
    for one in cases:
        one.volumes_ml.update(volumes or {})
    return cases


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Left-Hippocampus", ("left", "* hippocampus")),
        ("hippocampus_right", ("right", "hippocampus *")),
        ("kidney left", ("left", "kidney *")),
        ("L_Femur", ("left", "* femur")),
        ("ctx-lh-precuneus", ("left", "ctx * precuneus")),
        ("LeftKidney", ("left", "* kidney")),
        ("rib_left_7", ("left", "rib * 7")),
        ("vertebrae_L1", None),
        ("liver", None),
        ("left of right", None),
        ("Cleft", None),
    ],
)
def test_the_side_that_a_name_states(name, found):
    assert side_of(name) == found


def test_labels_of_both_sides_are_exchanged_by_a_flip():
    cases = dataset({"kidney_right": RIGHT, "spine": (0.0, 0.0, 0.0), "kidney_left": LEFT})
    plan, reasons = planned(*cases)
    # D is S, H is R, W is A.
    assert plan.sides == Sides(axis=1, pairs=((3, 1),))
    assert plan.side_pairs == ((3, 1),)
    assert plan.mirror_axes == (0, 1, 2)
    assert reasons["sides"] == "by their names and positions: kidney_left and kidney_right"
    assert reasons["mirror_axes"].endswith("a flip along R exchanges left and right labels")


def test_labels_without_a_side_in_their_names_are_paired_by_their_positions():
    cases = dataset({"A": (0.3, 0.05, 0.0), "B": (-0.31, 0.07, 0.01), "C": (0.0, -0.4, 0.0)})
    plan, reasons = planned(*cases)
    assert plan.sides == Sides(axis=1, pairs=((2, 1),))
    assert plan.mirror_axes == (0, 1)
    assert reasons["sides"] == "by their positions: B and A"
    assert "C lies on one side of the other labels along A" in reasons["mirror_axes"]


@pytest.mark.parametrize("names", [("kidney_left",), ("left lung", "left kidney"), ("L", "aorta")])
def test_a_label_of_one_side_alone_forbids_the_flip_wherever_it_lies(names):
    """Alone it is the middle of itself; a flip would teach that the right kidney is the left one."""
    plan, reasons = planned(*dataset(dict.fromkeys(names, (0.0, 0.0, 0.0))))
    assert (plan.mirror_axes, plan.sides) == ((0, 2), None)
    assert "is of one side by its name and has no partner that a flip exchanges" in reasons["mirror_axes"]


@pytest.mark.parametrize(
    ("offsets", "volumes"),
    [
        ({"liver": (0.3, 0.0, 0.0), "spleen": (-0.3, 0.0, 0.0)}, {"liver": 1500.0, "spleen": 200.0}),
        ({"LV": (-0.2, -0.15, 0.0), "RV": (0.2, 0.15, 0.0)}, {}),
        ({"right_ventricle": (0.2, 0.15, 0.0), "left_ventricle": (-0.2, -0.15, 0.0)}, {}),
        ({"lung_left": LEFT, "lung_right": RIGHT}, {"lung_left": 10.0, "lung_right": 30.0}),
        # The middle lobe has no partner.
        ({"lobe_left": LEFT, "lobe_right": RIGHT, "middle": (0.3, 0.2, 0.0)}, {}),
    ],
)
def test_labels_that_are_no_mirror_images_forbid_the_flip(offsets, volumes):
    plan, reasons = planned(*dataset(offsets, volumes))
    assert 1 not in plan.mirror_axes
    if plan.sides:
        assert "middle lies on one side" in reasons["mirror_axes"]


def test_labels_named_left_and_right_are_never_flipped_without_exchange():
    """Where the scan shows only one side, no offset says that a label lies on one side."""
    rng = np.random.default_rng(0)
    cases = [
        case((64, 64, 64), (1.0, 1.0, 1.0), {"left": (one, 0.08, 0.0), "right": (-one, -0.08, 0.0)})
        for one in rng.normal(0, 0.3, 20)
    ]
    plan, reasons = planned(*cases)
    assert (plan.mirror_axes, plan.sides) == ((0, 2), None)
    assert reasons["mirror_axes"] == "left and right are no mirror images of each other"


def test_no_flip_along_another_axis_where_a_label_lies_on_one_side():
    plan, reasons = planned(*dataset({"front": (0.0, 0.3, 0.0), "back": (0.0, -0.3, 0.0)}))
    assert (plan.mirror_axes, plan.sides) == ((0, 1), None)
    assert reasons["mirror_axes"] == "front lies on one side of the other labels along A"


def test_the_user_may_pair_labels_or_forbid_it():
    cases = dataset({"left": LEFT, "right": RIGHT})
    plan, reasons = planned(*cases, choices=PlanChoices(sides=[]))
    assert (plan.sides, plan.mirror_axes) == (None, (0, 2))
    odd = dataset({"liver": (0.3, 0.0, 0.0), "spleen": (-0.3, 0.2, 0.0)})
    plan, reasons = planned(*odd, choices=PlanChoices(sides=[("spleen", "liver")]))
    assert (plan.side_pairs, reasons["sides"]) == (((2, 1),), "set by the configuration")
    for pairs, message in (
        ([("spleen", "stomach")], "names stomach, but the labels are liver, spleen"),
        ([("spleen", "liver"), ("liver", "spleen")], "names a label twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            planned(*odd, choices=PlanChoices(sides=pairs))


def test_regions_have_no_sides():
    labels = LabelSet({"left": 1, "right": 2}, {"left": (1,), "right": (2,)})
    cases = dataset({"left": LEFT, "right": RIGHT})
    plan, _ = planned(*cases, labels=labels)
    assert (plan.sides, plan.mirror_axes) == (None, (0, 2))
    with pytest.raises(ConfigError, match="are regions"):
        planned(*cases, labels=labels, choices=PlanChoices(sides=[("left", "right")]))


def partly(names, offsets):
    """A case in which only some labels are annotated; what it says of their positions is of these alone."""
    return case((64, 64, 64), (1.0, 1.0, 1.0), {name: offsets.get(name, (0.0, 0.0, 0.0)) for name in names})


def test_positions_are_those_of_the_cases_with_all_labels():
    offsets = {"liver": (0.3, 0.0, 0.0), "spleen": (-0.2, 0.05, 0.0)}
    labels = LabelSet({"liver": 1, "spleen": 2})
    # Alone in its case, a label is its own middle.
    cases = [partly(["liver"], {}), *dataset(offsets, {"liver": 9.0}, 3), partly(["spleen"], {})]
    plan, reasons = planned(*cases, labels=labels)
    assert plan.mirror_axes == (0, 2)
    assert "liver lies on one side of the other labels along R" in reasons["mirror_axes"]
    assert reasons["labels"].endswith("partial labels, annotated of 5 cases: liver 4, spleen 4")


def test_without_a_case_of_all_labels_nothing_is_flipped_unless_set():
    cases = [partly(["liver"], {}), partly(["spleen"], {})]
    labels = LabelSet({"liver": 1, "spleen": 2})
    plan, reasons = planned(*cases, labels=labels)
    assert plan.mirror_axes == ()
    assert "no case has all labels annotated" in reasons["mirror_axes"]
    plan, _ = planned(*cases, labels=labels, choices=PlanChoices(mirror_axes=(0, 2)))
    assert plan.mirror_axes == (0, 2)


def test_sides_that_a_case_has_only_one_of_are_not_exchanged():
    offsets = {"kidney_left": LEFT, "kidney_right": RIGHT, "spine": (0.0, 0.0, 0.0)}
    labels = LabelSet({"kidney_left": 1, "kidney_right": 2, "spine": 3})
    both = partly(["kidney_left", "kidney_right"], offsets)
    plan, _ = planned(*dataset(offsets), both, labels=labels)
    assert plan.sides == Sides(axis=1, pairs=((1, 2),))
    one = partly(["kidney_left", "spine"], offsets)
    plan, reasons = planned(*dataset(offsets), one, labels=labels)
    assert plan.sides is None
    assert plan.mirror_axes == (0, 2)
    assert "along R" in reasons["mirror_axes"]
    with pytest.raises(ConfigError, match=r"pairs kidney_left and kidney_right, but some cases have only one"):
        planned(*dataset(offsets), one, labels=labels, choices=PlanChoices(sides=(("kidney_left", "kidney_right"),)))
