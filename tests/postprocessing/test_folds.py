"""The rules of an ensemble are chosen on the validation cases of all folds: postprocessing.json of each run."""

import json

import pytest

from tests.pipeline import write_model
from volseg import ensemble
from volseg.config import ComponentRule
from volseg.errors import InputError
from volseg.modelfile import load_model, read_card, save_model
from volseg.postprocessing.choosing import FILE_NAME, CaseScores, RuleScores, rules_of_folds
from volseg.postprocessing.tally import CANDIDATES, SIZES_ML

LARGEST = CANDIDATES.index(ComponentRule(largest_only=True))


def case(name, before, after) -> CaseScores:
    """A case whose rod gains by keeping the largest component alone, and whose ball no rule changes."""
    rod = [before] * len(CANDIDATES)
    rod[LARGEST] = after
    return CaseScores(case=name, labels={"ball": (0.9,) * len(CANDIDATES), "rod": tuple(rod)})


def folds_of(tmp_path, *scores, folds=(0, 1)):
    """Two models, each beside the scores of its run, with rules of their own that the folds together do not choose."""
    models = []
    for number, cases in enumerate(scores):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        path = write_model(folder / "model.safetensors", seed=number)
        card, weights = load_model(path)
        own = {"ball": ComponentRule(smallest_ml=0.3)}
        save_model(path, card.model_copy(update={"training": {"fold": folds[number]}, "postprocessing": own}), weights)
        (folder / FILE_NAME).write_text(RuleScores(cases=tuple(cases)).model_dump_json())
        models.append(path)
    return models


FIVE = [case(f"a{number}", 0.8, 0.9) for number in range(5)]
FIVE_MORE = [case(f"b{number}", 0.7, 0.7) for number in range(5)]


def test_rules_are_chosen_on_the_cases_of_all_folds(tmp_path):
    models = folds_of(tmp_path, FIVE, FIVE_MORE)
    rules = read_card(ensemble(models, tmp_path / "all.safetensors")).postprocessing
    assert rules == {"rod": ComponentRule(largest_only=True, dice_before=0.75, dice_after=0.8)}
    # Neither fold alone has enough cases.
    labels = read_card(models[0]).plan.labels
    assert rules_of_folds(models[:1], labels) == {} == rules_of_folds(models[1:], labels)


def test_a_fold_in_which_a_case_loses_much_decides_for_all(tmp_path):
    losing = [*FIVE_MORE[:4], case("b4", 0.9, 0.8)]
    assert read_card(ensemble(folds_of(tmp_path, FIVE, losing), tmp_path / "all.safetensors")).postprocessing == {}


@pytest.mark.parametrize("what", ["the same fold twice", "no scores of one"])
def test_members_that_are_no_cross_validation_keep_what_they_agree_on(tmp_path, what):
    models = folds_of(tmp_path, FIVE, FIVE_MORE, folds=(0, 0) if what == "the same fold twice" else (0, 1))
    if what == "no scores of one":
        models[1].with_name(FILE_NAME).unlink()
    rules = read_card(ensemble(models, tmp_path / "all.safetensors")).postprocessing
    assert rules == {"ball": ComponentRule(smallest_ml=0.3)}


def test_labels_that_a_fold_has_no_scores_of_are_chosen_on_the_others(tmp_path):
    without = [CaseScores(case=one.case, labels={"ball": one.labels["ball"]}) for one in FIVE_MORE]
    ten = [case(f"c{number}", 0.8, 0.9) for number in range(10)]
    rules = read_card(ensemble(folds_of(tmp_path, ten, without), tmp_path / "all.safetensors")).postprocessing
    assert rules["rod"].dice_after == pytest.approx(0.9)


def damaged(change) -> str:
    document = json.loads(RuleScores(cases=tuple(FIVE_MORE)).model_dump_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cases": [', "is not readable JSON"),
        (damaged(lambda one: one["cases"][0]["labels"]["rod"].pop()), r"labels\.rod.*not 21"),
        (damaged(lambda one: one["cases"][0]["labels"]["rod"].append(0.5)), r"labels\.rod.*at most 22"),
        (damaged(lambda one: one["cases"][0]["labels"].update(rod=[1.5] * 22)), "less than or equal to 1"),
        (damaged(lambda one: one.update(smallest_ml=[0, *range(1, 11)])), "scores of other volumes than 0.0, 0.001"),
        (damaged(lambda one: one.pop("cases")), "cases"),
    ],
)
def test_damaged_scores_of_a_member_are_named(tmp_path, text, message):
    models = folds_of(tmp_path, FIVE, FIVE_MORE)
    models[1].with_name(FILE_NAME).write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        ensemble(models, tmp_path / "all.safetensors")
    assert str(models[1].with_name(FILE_NAME)) in str(raised.value)
    assert not (tmp_path / "all.safetensors").exists()


def test_the_first_candidate_changes_nothing():
    assert CANDIDATES[0] == ComponentRule()
    assert len(set(CANDIDATES)) == len(CANDIDATES) == 2 * len(SIZES_ML)
