"""Component rules: counted and chosen on images made by hand, then from a training run to a scan's JSON file."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline import TINY, tiny_plan
from volseg import Segmenter, evaluate, train
from volseg.api.describe import describe
from volseg.config import ComponentRule, Label, rules_in_words
from volseg.data.cases.phantom import write_phantoms
from volseg.errors import ResourceError
from volseg.evaluation.overlap import label_overlaps
from volseg.modelfile import load_model, read_card, save_model
from volseg.postprocessing import choosing, components
from volseg.postprocessing.applying import postprocess
from volseg.postprocessing.choosing import RuleScores, choose_rules
from volseg.postprocessing.tally import CANDIDATES, SIZES_ML, Scores, rule_scores

pytestmark = pytest.mark.usefixtures("one_thread")
BALL, ROD = tiny_plan().labels
ORGAN = (Label(name="organ", value=1),)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    order=st.sampled_from(["C", "F"]),
    ignore=st.sampled_from([None, 3]),
    candidate=st.integers(0, len(CANDIDATES) - 1),
)
def test_dice_after_a_rule_is_that_of_the_image_after_the_rule(seed, order, ignore, candidate) -> None:
    generator = np.random.default_rng(seed)
    labels, reference = (
        (generator.integers(1, top, (7, 8, 9)) * (generator.random((7, 8, 9)) < 0.15))
        .astype(np.uint8)
        .copy(order=order)
        for top in (3, 4)
    )
    plan = tiny_plan(ignore=ignore)
    scores = rule_scores(labels, reference, plan, 0.002)
    for label in plan.labels:
        cleaned = labels.copy()
        postprocess(cleaned, plan.labels, {label.name: CANDIDATES[candidate]}, 0.002)
        overlap = label_overlaps(cleaned, reference, {label.name: label.value}, 0.002, ignore)
        assert scores[label.name][candidate] == overlap[label.name].dice


def rules_for(cases: list[Scores]) -> dict[str, ComponentRule]:
    return choose_rules(cases, ORGAN).rules


def found(*components: tuple[int, int], true: int) -> Scores:
    """A case of 1 mm3 voxels with components of an organ, as (voxels, correct voxels)."""
    dice = []
    for rule in CANDIDATES:
        large = [one for one in components if one[0] >= 1000 * rule.smallest_ml]
        largest = max(large, default=(0, 0))[0]
        kept = [one for one in large if one[0] == largest or not rule.largest_only]
        sizes = sum(voxels for voxels, _ in kept) + true
        dice.append(2 * sum(correct for _, correct in kept) / sizes if sizes else None)
    return {"organ": tuple(dice)}


def test_small_components_give_the_mildest_size_that_drops_them() -> None:
    # The first has 2 * 900 of 1000 + 1000 and a component of 20; the second has nothing to drop.
    rules = rules_for([found((1000, 900), (20, 0), true=1000), found((500, 500), true=500)] * 5)
    assert list(rules) == ["organ"]
    assert rules["organ"].model_dump() == pytest.approx(
        {
            "smallest_ml": 0.03,
            "largest_only": False,
            "dice_before": (1800 / 2020 + 1) / 2,
            "dice_after": (1800 / 2000 + 1) / 2,
        }
    )


def test_components_that_no_size_separates_give_the_largest_only() -> None:
    # The wrong component of the first case is larger than the correct one of the second.
    rules = rules_for([found((1000, 900), (700, 0), true=1000), found((600, 600), true=600)] * 5)
    assert (rules["organ"].smallest_ml, rules["organ"].largest_only) == (0, True)
    assert rules["organ"].dice_after == pytest.approx((0.9 + 1) / 2)


def test_the_largest_component_needs_no_size_that_gains_nothing_more() -> None:
    """A size drops the small false components; then the largest drops them and a large one: a size is left out."""
    cases = [found((1000, 900), (20, 0), true=1000), found((1000, 900), (700, 0), true=1000)]
    cases += [found((800, 800), true=800)]
    rule = rules_for(cases * 4)["organ"]
    assert (rule.smallest_ml, rule.largest_only) == (0, True)
    assert rule.dice_after == pytest.approx((0.9 + 0.9 + 1) / 3)


def test_an_absent_label_needs_a_size_and_others_the_largest_as_well() -> None:
    cases = [found((50, 0), true=0), found((1000, 900), (700, 0), true=1000), found((600, 600), true=600)]
    rule = rules_for(cases * 4)["organ"]
    assert (rule.smallest_ml, rule.largest_only) == (0.1, True)
    # A case without the label in both images does not count.
    assert (rule.dice_before, rule.dice_after) == pytest.approx(((0 + 1800 / 2700 + 1) / 3, (0.9 + 1) / 2))


@pytest.mark.parametrize(
    "cases",
    [
        [found((1000, 900), true=1000)],
        [found((1000, 900), (20, 20), true=1000)],  # two correct components
        [found((1000, 900), (20, 20), true=1000), found((1000, 900), (20, 0), true=1000)],  # as much lost as gained
        [found((100_000, 100_000), (5, 0), true=100_000)],  # does not show in four decimals
        [found(true=1000)],
        [found((1000, 0), true=0)],
        [found(true=0)],
        [],
    ],
)
def test_where_nothing_helps_there_is_no_rule(cases: list[Scores]) -> None:
    assert rules_for(cases * 10) == {}


def test_few_cases_give_no_rule() -> None:
    cases = [found((1000, 900), (20, 0), true=1000)] * 10
    assert rules_for(cases)
    # Cases without the label say nothing about it.
    assert rules_for([*cases[:9], found(true=0), found(true=0)]) == {}


def test_a_rule_by_which_one_case_loses_much_is_none() -> None:
    """A second correct component is removed from one case, by which it loses 0.04 or 0.06."""
    gaining = [found((1000, 1000), (300, 0), true=1000)] * 20
    for second, chosen in ((80, True), (120, False)):
        losing = found((1000, 1000), (second, second), true=1000 + second)
        assert bool(rules_for([*gaining, losing])) == chosen


def test_sizes_are_tried_from_small_to_large() -> None:
    assert list(SIZES_ML) == sorted(SIZES_ML)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (ComponentRule(smallest_ml=0.03), "a: components of at least 0.03 mL"),
        (ComponentRule(largest_only=True), "a: only the largest component"),
        (ComponentRule(smallest_ml=1, largest_only=True), "a: only the largest component, if of at least 1 mL"),
        (
            ComponentRule(largest_only=True, dice_before=0.5, dice_after=0.62344),
            "a: only the largest component (Dice 0.5000 before, 0.6234 after)",
        ),
    ],
)
def test_rules_in_words(rule: ComponentRule, words: str) -> None:
    assert rules_in_words({"a": rule}) == words
    assert rules_in_words({"a": rule, "b": ComponentRule(smallest_ml=3)}) == f"{words}; b: components of at least 3 mL"
    assert rules_in_words({}) == "none"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, count=5, seed=3, kind="mr", tests=1)
    return folder


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory) -> Path:
    """So few steps that the network still labels small false components."""
    overrides = [*TINY, "training.workers=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "ENOUGH_CASES", 2)
        patch.setattr(choosing, "LARGEST_LOSS", 1.0)
        return train(
            phantoms, tmp_path_factory.mktemp("runs") / "run", folds=2, steps=12, overrides=overrides, device="cpu"
        )


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory) -> Segmenter:
    """The run's model without its rules."""
    card, weights = load_model(run / "model.safetensors")
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    save_model(path, card.model_copy(update={"postprocessing": {}}), weights)
    return Segmenter.load(path, device="cpu")


def load(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_run_stores_the_rules_that_helped_with_the_scores_before_and_after(run, phantoms, plain, tmp_path) -> None:
    scores = json.loads((run / "validation.json").read_text())
    rules = read_card(run / "model.safetensors").postprocessing
    assert rules
    assert scores["postprocessing"] == {name: rule.model_dump() for name, rule in rules.items()}
    for case in scores["cases"]:
        plain(phantoms / "imagesTr" / f"{case['name']}.nii.gz").save(tmp_path / f"{case['name']}.nii.gz")
    before = evaluate(tmp_path, phantoms / "labelsTr", phantoms / "dataset.json")["mean"]
    after = evaluate(run / "validation", phantoms / "labelsTr", phantoms / "dataset.json")["mean"]
    assert scores["mean"] == after
    for name in ("ball", "rod"):
        if name in rules:
            assert rules[name].dice_before == before["labels"][name]["dice"]
            assert rules[name].dice_after == after["labels"][name]["dice"]
            assert rules[name].dice_after > rules[name].dice_before
        else:
            assert before["labels"][name] == after["labels"][name]


def test_a_run_keeps_the_dice_of_each_case_after_every_rule(run, phantoms, plain) -> None:
    document = RuleScores.model_validate_json((run / "postprocessing.json").read_text())
    assert document.cases
    for case in document.cases:
        raw = plain(phantoms / "imagesTr" / f"{case.case}.nii.gz")
        reference = load(phantoms / "labelsTr" / f"{case.case}.nii.gz")
        scores = case.scores()
        assert scores.keys() == {"ball", "rod"}
        for label in (BALL, ROD):
            for rule, dice in zip(CANDIDATES, scores[label.name], strict=True):
                cleaned = raw.labels.copy()
                postprocess(cleaned, (BALL, ROD), {label.name: rule}, raw.scan.geometry.voxel_ml)
                overlap = label_overlaps(cleaned, reference, {label.name: label.value}, 1.0, None)
                assert dice == overlap[label.name].dice


def test_prediction_applies_the_stored_rules_and_records_them(run, phantoms, plain, tmp_path) -> None:
    scan = next((phantoms / "imagesTs").iterdir())
    segmenter = Segmenter.load(run / "model.safetensors", device="cpu")
    rules = segmenter.card.postprocessing
    result, raw = segmenter(scan), plain(scan)
    expected = raw.labels.copy()
    applied = postprocess(expected, (BALL, ROD), rules, raw.scan.geometry.voxel_ml)
    np.testing.assert_array_equal(result.labels, expected)
    result.save(tmp_path / "seg.nii.gz")
    record = json.loads((tmp_path / "seg.json").read_text())
    assert record["postprocessing"] == applied
    for label in (BALL, ROD):
        final = int((load(tmp_path / "seg.nii.gz") == label.value).sum())
        assert record["labels"][label.name]["voxels"] == final
        removed = applied[label.name]["voxels_removed"] if label.name in applied else 0
        assert removed == int((raw.labels == label.value).sum()) - final
    assert sum(entry["voxels_removed"] for entry in applied.values()) > 0
    assert raw.record["postprocessing"] == {}


def test_components_above_the_memory_limit_are_rejected(run, phantoms, monkeypatch) -> None:
    scan = next((phantoms / "imagesTs").iterdir())
    limited = Segmenter.load(run / "model.safetensors", device="cpu", max_memory="64G")
    assert limited(scan).record["postprocessing"]
    monkeypatch.setattr(components, "COMPONENT_BYTES", 1 << 40)
    with pytest.raises(ResourceError, match="--max-memory leaves"):
        limited(scan)


def test_validation_files_are_the_results_of_the_model(run, phantoms) -> None:
    segmenter = Segmenter.load(run / "model.safetensors", device="cpu")
    for path in (run / "validation").iterdir():
        np.testing.assert_array_equal(load(path), segmenter(phantoms / "imagesTr" / path.name).labels)


def test_info_shows_the_rules_of_the_model_and_of_the_run(run) -> None:
    rules = read_card(run / "model.safetensors").postprocessing
    for path in (run, run / "model.safetensors"):
        assert describe(path)["postprocessing"] == rules_in_words(rules)
    assert " after)" in rules_in_words(rules)


def test_a_case_in_which_nobody_looked_for_a_label_decides_nothing_about_it(monkeypatch) -> None:
    monkeypatch.setattr(choosing, "ENOUGH_CASES", 2)
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0], labels[3, 3, 3] = 1, 1
    reference = np.zeros_like(labels)
    reference[0, 0] = 1
    plan = tiny_plan()
    known = rule_scores(labels, reference, plan, 0.001)
    unknown = rule_scores(labels, np.zeros_like(labels), plan, 0.001, ["ball"])
    assert set(unknown["ball"]) == {None}
    assert known["ball"][0] == pytest.approx(8 / 9)
    assert choose_rules([known, unknown], plan.labels).rules == {}
    chosen = choose_rules([known, known, unknown], plan.labels)
    assert list(chosen.rules) == ["ball"]
    assert chosen.scores == {"ball": {"dice": 1.0, "cases": 2}, "rod": {"dice": None, "cases": 0}}
