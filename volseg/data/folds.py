"""Folds: which cases are trained on, and which are validated on.

By precedence they come from a file that the user gives, from splits_final.json in the dataset, from what its
dataset.json states, or from volseg: those of nnU-Net, but with the cases of a group, as the scans of one patient, in
one fold.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict

from volseg.config import Frozen, checked
from volseg.data.io.formats import image_suffix, stem_of
from volseg.documents import read_json, read_or
from volseg.errors import InputError, UsageError
from volseg.text import counted, first_few, shortened

logger = logging.getLogger(__name__)

Split = dict[str, list[str]]
SPLITS = "splits_final.json"
# The subject in a name after BIDS, sub-XX[_ses-YY][_...].
_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?:_.*)?")


class _Fold(Frozen):
    """One entry of splits_final.json; other keys of it are ignored."""

    model_config = ConfigDict(extra="ignore")

    train: list[str]
    val: list[str]


@dataclass(frozen=True)
class Folds:
    """Folds, and where they are from in words."""

    splits: list[Split]
    source: str


@dataclass(frozen=True)
class Grouping:
    """The cases that stay in one fold.

    Args:
        groups: case name to its group, for the groups of several cases.
        words: where the folds are from that volseg makes, with how many cases and groups.
    """

    groups: dict[str, str]
    words: str


def numbered_folds(numbers: Mapping[str, int], names: Sequence[str], source: str) -> Folds:
    """The folds of cases that each state the number of the fold that validates on them, as in MONAI.

    Args:
        numbers: case name to its fold.
        names: of all cases, sorted.
        source: the file, for messages.

    Raises:
        InputError: only some cases have one, or they are not numbered from 0.
    """
    if without := [name for name in names if name not in numbers]:
        raise InputError(
            f'{source} has a "fold" for {len(numbers)} of {len(names)} cases, but none for {first_few(without)}. '
            "Give one to every case, or to none."
        )
    found = sorted(set(numbers.values()))
    if len(found) < 2 or found != list(range(len(found))):
        raise InputError(
            f'The values of "fold" in {source} are {first_few(found)}; expected two or more, numbered from 0 without '
            "a gap."
        )
    splits = [_held_out(names, {name for name in names if numbers[name] == fold}) for fold in found]
    return Folds(splits, f'"fold" of each case in {source}')


def own_folds(names: Sequence[str], grouping: Grouping, folds: int) -> Folds:
    """The folds of nnU-Net, scikit-learn's KFold shuffled with random state 12345; with groups, balanced ones.

    Args:
        names: of all cases, sorted.
        grouping: the cases that stay together; without groups, the folds are nnU-Net's.
        folds: their number.

    Raises:
        InputError: fewer cases or groups than folds.
    """
    units = _units(names, grouping.groups)
    if len(units) < folds:
        why = f" ({grouping.words})" if grouping.groups else ""
        raise InputError(
            f"{counted(len(names), 'case')}{why} cannot be split into {folds} folds. "
            "Use fewer --folds, or --fold all to train on every case."
        )
    random = np.random.RandomState(12345)
    if not grouping.groups:
        # As scikit-learn's KFold: a shuffle by NumPy's legacy generator, then parts of which the first are longer.
        parts = np.array_split(random.permutation(len(names)), folds)
        splits = [_held_out(names, {names[number] for number in part}) for part in parts]
        return Folds(splits, grouping.words)
    # The largest group first, each into the fold that has the fewest cases.
    held: list[set[str]] = [set() for _ in range(folds)]
    for number in sorted(random.permutation(len(units)), key=lambda number: -len(units[number])):
        min(held, key=len).update(units[number])
    return Folds([_held_out(names, one) for one in held], grouping.words)


def _units(names: Sequence[str], groups: Mapping[str, str]) -> list[list[str]]:
    """The cases of each group, and each other case alone."""
    units: dict[tuple[bool, str], list[str]] = {}
    for name in names:
        units.setdefault((name in groups, groups.get(name, name)), []).append(name)
    return list(units.values())


def group_cases(names: Sequence[str], stated: Mapping[str, str]) -> Grouping:
    """The groups of several cases: as the dataset states them, else the subjects in names after BIDS."""
    subjects = {name: match[1] for name in names if (match := _SUBJECT.fullmatch(name))}
    groups, what, source = (
        (stated, "group", "the dataset") if stated else (subjects, "subject", "the sub- entity of their names")
    )
    sizes = Counter(groups.values())
    together = {name: group for name, group in groups.items() if sizes[group] > 1}
    if not together:
        return Grouping({}, "the sorted case names, shuffled as by nnU-Net")
    return Grouping(
        together,
        f"{counted(len(groups), 'case')} of {counted(len(sizes), what)} by {source}; the scans of one {what} stay in "
        "one fold",
    )


def warn_of_torn_groups(folds: Folds, grouping: Grouping) -> None:
    """Say how many groups have cases in both halves of a fold, whose scores are then too good."""
    torn = set()
    for split in folds.splits:
        train, val = ({grouping.groups[name] for name in half if name in grouping.groups} for half in split.values())
        torn |= train & val
    if torn:
        logger.warning(
            "%s: the cases of %d of %d groups are in both train and val of a fold, so the scores will be too good: %s",
            folds.source, len(torn), len(set(grouping.groups.values())), first_few(sorted(torn)),
        )  # fmt: skip


def same_folds(one: Folds, other: Folds) -> bool:
    """Whether folds have the same cases, in whatever order."""
    sets = [[[frozenset(split[half]) for half in ("train", "val")] for split in folds.splits] for folds in (one, other)]
    return sets[0] == sets[1]


def read_splits(path: Path, names: Collection[str]) -> Folds:
    """Read folds from a JSON file like nnU-Net's splits_final.json.

    A fold with an empty "val" is trained without validation, like --fold all.

    Args:
        path: of the file.
        names: of all cases of the dataset.

    Raises:
        InputError: not a list of {"train": names, "val": names}, an unknown case, a fold without a case to train on,
            or a case twice in one fold.
    """
    document = read_or(InputError, read_json, path, "readable JSON", "Check its permissions and its disk.")
    if not isinstance(document, list) or not document:
        raise InputError(f'{path} must be a list of {{"train": [names], "val": [names]}}.')
    folds: list[Split] = [
        checked(_Fold, fold, f"{path}, fold {number},", InputError).model_dump() for number, fold in enumerate(document)
    ]
    check_known((name for fold in folds for half in fold.values() for name in half), names, str(path))
    for number, fold in enumerate(folds):
        _check_fold(fold, f"{path}, fold {number}")
    return Folds(folds, str(path))


def check_known(stated: Iterable[str], names: Collection[str], place: str, advice: str = "") -> None:
    """Reject names of cases that are not in a dataset.

    Args:
        stated: the names.
        names: of all cases of the dataset.
        place: where they are stated, for the error.
        advice: how it should look there.

    Raises:
        InputError: there are such names.
    """
    unknown = sorted(set(stated) - set(names))
    if not unknown:
        return
    listed = f"{place} names {counted(len(unknown), 'case')} not in the dataset: {first_few(unknown)}."
    # Names of files in the place of those of cases, with or without the number of nnU-Net's channels.
    files = ((one, stem_of(Path(one))) for one in unknown if image_suffix(Path(one)))
    cases = [(one, case) for one, stem in files for case in (stem, stem.removesuffix("_0000")) if case in names]
    if cases:
        advice = f"Give the names of cases, not of files: {cases[0][1]} for {cases[0][0]}."
    raise InputError(f"{listed} {advice}".rstrip())


def _check_fold(fold: Split, place: str) -> None:
    """Reject a fold without training cases, or one that contains a case twice."""
    if not fold["train"]:
        raise InputError(f"{place}: train is empty. List the cases to train on.")
    for half, names in fold.items():
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"{place}: {half} contains {first_few(twice)} more than once. List each case once.")
    if shared := set(fold["train"]) & set(fold["val"]):
        raise InputError(f"{place}: train and val both contain {first_few(sorted(shared))}. Remove each from one.")


def choose_fold(folds: Folds, fold: int | str) -> Split:
    """One fold by its number; "all" trains on every case and validates on none.

    Raises:
        UsageError: no such fold.
    """
    splits = folds.splits
    if fold == "all":
        return {"train": sorted({name for split in splits for half in split.values() for name in half}), "val": []}
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        numbers = "0" if len(splits) == 1 else f"0 to {len(splits) - 1}"
        raise UsageError(
            f"There is no fold {shortened(str(fold), 100)} among {len(splits)} ({folds.source}). "
            f"Give {numbers}, or all."
        )
    return splits[fold]


def _held_out(names: Sequence[str], validated: Collection[str]) -> Split:
    """The fold that validates on some of the names; both halves keep the order of the names."""
    return {
        "train": [name for name in names if name not in validated],
        "val": [name for name in names if name in validated],
    }
