"""Component rules are chosen on the validation cases: of one run, or of all folds of a cross-validation.

A rule is stored only for a label that enough cases have, whose mean Dice it raises, and where no case loses much: what
helps a few validation cases by chance may remove a second lesion from every patient after them. The same holds for the
regions inside a region: the rule may not cost them anything on average, nor much in any case.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, model_validator

from volseg.config import ComponentRule, Frozen, Label, Name, labels_by_rule
from volseg.modelfile.beside import documents_beside
from volseg.postprocessing.tally import CANDIDATES, SIZES_ML, Scores
from volseg.text import first_few

# The least gain in mean Dice: less does not show in four decimals.
GAIN = 1e-4
# The fewest cases with a label that a rule is chosen on, and the most Dice that any of them may lose by it.
ENOUGH_CASES = 10
LARGEST_LOSS = 0.05
# In the folder of a run.
FILE_NAME = "postprocessing.json"

_Dice = Annotated[float, Field(ge=0, le=1)]


class CaseScores(Frozen):
    """The Dice of a validation case after each candidate rule, by label name; one number where no rule changes it."""

    case: str = Field(max_length=4096)
    labels: Annotated[dict[Name, Annotated[tuple[_Dice | None, ...], Field(min_length=1)]], Field(max_length=10_000)]

    @classmethod
    def of(cls, case: str, scores: Scores) -> "CaseScores":
        """The document of these scores."""
        return cls(case=case, labels={name: dice[:1] if len(set(dice)) == 1 else dice for name, dice in scores.items()})

    def scores(self) -> Scores:
        """With a number for each candidate."""
        return {name: dice * len(CANDIDATES) if len(dice) == 1 else dice for name, dice in self.labels.items()}


class RuleScores(Frozen):
    """postprocessing.json of a run: kept beside the model so that an ensemble chooses its rules on all folds."""

    smallest_ml: tuple[float, ...] = Field(description="candidates; then each with the largest component only")
    cases: Annotated[tuple[CaseScores, ...], Field(max_length=100_000)]

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        expected = {1, 2 * len(self.smallest_ml)}
        for case in self.cases:
            if wrong := [name for name, dice in case.labels.items() if len(dice) not in expected]:
                raise ValueError(f"{case.case} has not one number or {max(expected)} for {first_few(wrong)}")
        return self


class Chosen(NamedTuple):
    """Rules, and what they make of the cases that they are chosen on.

    Args:
        rules: by label name, with the mean Dice before and after.
        scores: by name of each label that may have a rule or lies inside one: `dice`, the mean after the rules, None
            if no case has it; `cases`, how many have it.
    """

    rules: dict[str, ComponentRule]
    scores: dict[str, dict[str, Any]]


def choose_rules(cases: Sequence[Mapping[str, Sequence[float | None]]], labels: Sequence[Label]) -> Chosen:
    """The rule of each label that profits from one.

    Candidates are volumes from small to large, then keeping the largest component only, in addition to the best volume
    or, if that is as good, to a smaller one or none. Each has to be better than the best so far by `GAIN`, so that of
    equally good rules the mildest is chosen. A label that fewer than `ENOUGH_CASES` have gets no rule, nor does a
    candidate count by which a case loses more than `LARGEST_LOSS` of this label or of one inside it, or by which the
    mean of one inside it falls.

    Args:
        cases: the scores of each validation case, see `volseg.postprocessing.tally.Scores`.
        labels: of the model.
    """
    chosen = Chosen({}, {})
    for name, inside in labels_by_rule(labels).items():
        tables = {label.name: list(zip(*(case[label.name] for case in cases), strict=True)) for label in inside}
        best = _best(list(tables.values())) if cases else 0
        for label, table in tables.items():
            after = table[best] if table else ()
            count = sum(dice is not None for dice in after)
            chosen.scores[label] = {"dice": _mean(after) if count else None, "cases": count}
        if best:
            means = {"dice_before": _mean(tables[name][0]), "dice_after": _mean(tables[name][best])}
            chosen.rules[name] = CANDIDATES[best].model_copy(update=means)
    return chosen


def choose_rules_of_folds(models: Sequence[Path], labels: Sequence[Label]) -> Chosen | None:
    """The rules of an ensemble, chosen on the validation cases of all its members, each a fold of its own.

    Args:
        models: the model files; postprocessing.json lies beside each.
        labels: of the ensemble.

    Returns:
        None where a member has no such file, or one of other candidates or labels, or two of them a case in common.

    Raises:
        InputError: a postprocessing.json cannot be read.
    """
    documents = documents_beside(models, FILE_NAME, RuleScores)
    if documents is None or any(document.smallest_ml != SIZES_ML for document in documents):
        return None
    found = [case for document in documents for case in document.cases]
    expected = {label.name for inside in labels_by_rule(labels).values() for label in inside}
    if len({case.case for case in found}) < len(found) or any(case.labels.keys() != expected for case in found):
        return None
    return choose_rules([case.scores() for case in found], labels)


def _best(tables: Sequence[Sequence[Sequence[float | None]]]) -> int:
    """The best candidate for a label, 0 if none is better than no rule.

    Args:
        tables: the Dice by candidate and case of the label, and of each one inside it.
    """
    own = tables[0]
    if sum(dice is not None for dice in own[0]) < ENOUGH_CASES:
        return 0
    best, sizes = 0, len(SIZES_ML)
    for candidate in range(1, sizes):
        best = _better(candidate, best, tables)
    largest = _better(best + sizes, best, tables)
    if largest == best:
        return best
    # A volume that gains nothing more is left out: a patient whose only lesion is smaller would be left with none.
    means = [_mean(dice) for dice in own]
    as_good = (one for one in range(sizes, largest) if means[one] >= means[largest] - GAIN and _is_safe(one, tables))
    return next(as_good, largest)


def _better(candidate: int, best: int, tables: Sequence[Sequence[Sequence[float | None]]]) -> int:
    """The candidate if it gains enough over the best so far and is safe, else the best so far."""
    gains = _mean(tables[0][candidate]) > _mean(tables[0][best]) + GAIN
    return candidate if gains and _is_safe(candidate, tables) else best


def _is_safe(candidate: int, tables: Sequence[Sequence[Sequence[float | None]]]) -> bool:
    """Whether no case loses much by a candidate, and the labels inside lose nothing on average."""
    costs = any(_mean(inside[candidate]) < _mean(inside[0]) - GAIN for inside in tables[1:])
    return not costs and all(_largest_loss(table[0], table[candidate]) <= LARGEST_LOSS for table in tables)


def _mean(dice: Sequence[float | None]) -> float:
    """The mean over the cases that have the label in either image; 0 without any."""
    known = [score for score in dice if score is not None]
    return fmean(known) if known else 0.0


def _largest_loss(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    """The most Dice that any case loses; none where neither image has the label any more."""
    pairs = zip(before, after, strict=True)
    return max((one - other for one, other in pairs if one is not None and other is not None), default=0.0)
