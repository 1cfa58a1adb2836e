"""Component rules are chosen on the validation cases: of one run, or of all folds of a cross-validation.

A rule is stored only for a label that enough cases have, whose mean Dice it raises, and where no case loses much: what
helps a few validation cases by chance may remove a second lesion from every patient after them.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, TypeAlias

from pydantic import Field

from volseg.config import ComponentRule, Frozen, Label, checked, may_have_rules
from volseg.config.values import Name
from volseg.documents import read_json, read_or
from volseg.errors import InputError
from volseg.postprocessing.tally import CANDIDATES, SIZES_ML

# The least gain in mean Dice: less does not show in four decimals.
GAIN = 1e-4
# The fewest cases with a label that a rule is chosen on, and the most Dice that any of them may lose by it.
ENOUGH_CASES = 10
LARGEST_LOSS = 0.05
# In the folder of a run.
FILE_NAME = "postprocessing.json"

# Of a case, by label name: the Dice after each of `CANDIDATES`, None where neither image has the label.
Scores: TypeAlias = Mapping[str, Sequence[float | None]]

_Dice = Annotated[float, Field(ge=0, le=1)]


class CaseScores(Frozen):
    """The Dice of a validation case after each candidate rule, by label name."""

    case: Name
    labels: Annotated[
        dict[
            Name,
            Annotated[tuple[_Dice | None, ...], Field(min_length=len(CANDIDATES), max_length=len(CANDIDATES))],
        ],
        Field(max_length=10_000),
    ]


class RuleScores(Frozen):
    """postprocessing.json of a run: kept beside the model so that an ensemble chooses its rules on all folds."""

    smallest_ml: tuple[float, ...] = Field(SIZES_ML, description="candidates; then each with the largest only")
    cases: Annotated[tuple[CaseScores, ...], Field(max_length=100_000)]


def choose_rules(cases: Sequence[Scores], labels: Sequence[Label]) -> dict[str, ComponentRule]:
    """The rule of each label that profits from one, by name, with its mean Dice before and after.

    Candidates are volumes from small to large, then keeping the largest component only, in addition to the best volume.
    Each has to be better than the best so far by `GAIN`, so that of equally good rules the mildest is chosen. A label
    that fewer than `ENOUGH_CASES` have gets no rule, nor does a candidate count by which a case loses more than
    `LARGEST_LOSS`.

    Args:
        cases: the scores of the validation cases.
        labels: those to choose rules for; others than `may_have_rules` gives have none.
    """
    chosen = {}
    for label in may_have_rules(labels):
        by_rule = list(zip(*(case[label.name] for case in cases if label.name in case), strict=True))
        if not by_rule or sum(dice is not None for dice in by_rule[0]) < ENOUGH_CASES:
            continue
        means, best = [_mean(dice) for dice in by_rule], 0
        for candidate in range(1, len(SIZES_ML)):
            best = _better(candidate, best, means, by_rule)
        best = _better(best + len(SIZES_ML), best, means, by_rule)
        if means[best] > means[0]:
            scores = {"dice_before": means[0], "dice_after": means[best]}
            chosen[label.name] = CANDIDATES[best].model_copy(update=scores)
    return chosen


def rules_of_folds(models: Iterable[Path], labels: Sequence[Label]) -> dict[str, ComponentRule] | None:
    """The rules of an ensemble, chosen on the validation cases of all its members, each a fold of its own.

    Args:
        models: the model files; postprocessing.json lies beside each.
        labels: of the ensemble.

    Returns:
        None where a member has no such file.

    Raises:
        InputError: a postprocessing.json cannot be read, or was made with other candidates.
    """
    files = [model.with_name(FILE_NAME) for model in models]
    if not all(file.exists() for file in files):
        return None
    cases: list[Scores] = []
    for file in files:
        advice = "Finish the run again: volseg train --resume --finish."
        document = read_or(InputError, partial(read_json, times=4), file, "readable JSON", advice)
        found = checked(RuleScores, document, str(file), InputError)
        if found.smallest_ml != SIZES_ML:
            raise InputError(f"{file} has scores of other volumes than {', '.join(map(str, SIZES_ML))} mL. {advice}")
        cases += [case.labels for case in found.cases]
    return choose_rules(cases, labels)


def _better(candidate: int, best: int, means: Sequence[float], by_rule: Sequence[Sequence[float | None]]) -> int:
    """The candidate if it gains enough over the best so far and no case loses much by it, else the best so far."""
    gains = means[candidate] > means[best] + GAIN
    return candidate if gains and _largest_loss(by_rule[0], by_rule[candidate]) <= LARGEST_LOSS else best


def _mean(dice: Sequence[float | None]) -> float:
    """The mean over the cases that have the label in either image; 0 without any."""
    known = [score for score in dice if score is not None]
    return fmean(known) if known else 0.0


def _largest_loss(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    """The most Dice that any case loses; none where neither image has the label any more."""
    pairs = zip(before, after, strict=True)
    return max((one - other for one, other in pairs if one is not None and other is not None), default=0.0)
