"""The rules of an ensemble are chosen on the validation cases of all folds: postprocessing.json of each run."""

import json

import pytest

from tests.pipeline import write_model
from volseg import ensemble
from volseg.config import ComponentRule
from volseg.errors import InputError
from volseg.modelfile import load_model, read_card, save_model
from volseg.postprocessing.choosing import FILE_NAME, CaseScores, RuleScores, choose_rules_of_folds
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
        (folder / FILE_NAME).write_text(RuleScores(smallest_ml=SIZES_ML, cases=tuple(cases)).model_dump_json())
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
    assert choose_rules_of_folds(models[:1], labels).rules == {} == choose_rules_of_folds(models[1:], labels).rules


def test_a_fold_in_which_a_case_loses_much_decides_for_all(tmp_path):
    losing = [*FIVE_MORE[:4], case("b4", 0.9, 0.8)]
    assert read_card(ensemble(folds_of(tmp_path, FIVE, losing), tmp_path / "all.safetensors")).postprocessing == {}


def without_rod(cases):
    return [CaseScores(case=one.case, labels={"ball": one.labels["ball"]}) for one in cases]


@pytest.mark.parametrize(
    ("cases", "folds"),
    [
        (FIVE_MORE, (0, 0)),  # two models of one fold
        (FIVE_MORE[:4] + FIVE[:1], (0, 1)),  # a case of both folds
        (without_rod(FIVE_MORE), (0, 1)),  # of another dataset
        (None, (0, 1)),  # of a run before there were such files
    ],
)
def test_members_that_are_no_cross_validation_keep_what_they_agree_on(tmp_path, cases, folds):
    models = folds_of(tmp_path, FIVE, cases or FIVE_MORE, folds=folds)
    if cases is None:
        models[1].with_name(FILE_NAME).unlink()
    rules = read_card(ensemble(models, tmp_path / "all.safetensors")).postprocessing
    assert rules == {"ball": ComponentRule(smallest_ml=0.3)}


def test_scores_of_other_candidates_leave_what_the_members_agree_on(tmp_path):
    models = folds_of(tmp_path, FIVE, FIVE_MORE)
    document = json.loads(models[1].with_name(FILE_NAME).read_text())
    document["smallest_ml"].append(100.0)
    for one in document["cases"]:
        one["labels"] = {name: dice + dice[:2] for name, dice in one["labels"].items()}
    models[1].with_name(FILE_NAME).write_text(json.dumps(document))
    rules = read_card(ensemble(models, tmp_path / "all.safetensors")).postprocessing
    assert rules == {"ball": ComponentRule(smallest_ml=0.3)}


def test_out_of_fold_scores_are_those_after_the_rules_of_the_ensemble(tmp_path):
    models = folds_of(tmp_path, FIVE, FIVE_MORE)
    for path in models:
        card, weights = load_model(path)
        row = {"dice": 0.5, "cases": 5}
        scores = {"labels": {"ball": row, "rod": row}, "foreground_dice": 0.5, "cases": 5}
        save_model(path, card.model_copy(update={"scores": scores}), weights)
    found = read_card(ensemble(models, tmp_path / "all.safetensors")).scores["out_of_fold"]
    assert found["labels"] == {
        "ball": {"dice": pytest.approx(0.9), "cases": 10},
        "rod": {"dice": pytest.approx(0.8), "cases": 10},
    }
    assert found["foreground_dice"] == pytest.approx(0.85)


def test_a_label_that_no_rule_changes_takes_one_number(tmp_path):
    plain = {"ball": (0.9,) * len(CANDIDATES), "rod": (None,) * len(CANDIDATES)}
    short = CaseScores.of("a", plain)
    assert short.labels == {"ball": (0.9,), "rod": (None,)}
    assert short.scores() == plain
    changed = {"rod": (0.5,) + (0.6,) * (len(CANDIDATES) - 1)}
    assert CaseScores.of("a", changed).scores() == changed


def damaged(change) -> str:
    document = json.loads(RuleScores(smallest_ml=SIZES_ML, cases=tuple(FIVE_MORE)).model_dump_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cases": [', "is not readable JSON"),
        (damaged(lambda one: one["cases"][0]["labels"]["rod"].pop()), "b0 has not one number or 22 for rod"),
        (damaged(lambda one: one["cases"][0]["labels"]["rod"].append(0.5)), "b0 has not one number or 22 for rod"),
        (damaged(lambda one: one["cases"][0]["labels"].update(rod=[])), "rod"),
        (damaged(lambda one: one["cases"][0]["labels"].update(rod=[1.5] * 22)), "less than or equal to 1"),
        (damaged(lambda one: one.pop("smallest_ml")), "smallest_ml"),
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
