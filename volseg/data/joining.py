"""Several datasets as one: labels joined by name, the folds of each kept.

A label that one dataset has and another lacks is one that nobody looked for in the cases of the other, see
`volseg.data.cases.sources.case_labels`. The values of the labels are assigned anew, in the order in which they appear
first; the label images keep theirs. A case is called DATASET_CASE.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import TypeAlias, cast

from volseg.config import LabelCode, distinct_names
from volseg.data.cases.dataset import (
    LONGEST_NAME,
    LONGEST_TEXT,
    Dataset,
    TrainingCase,
    folds_in_files,
    grouping_of,
    open_dataset,
    split_folds,
)
from volseg.data.cases.labels import LabelSet, with_ignore
from volseg.data.cases.sources.case_labels import CaseLabels
from volseg.data.folds import Folds, own_folds
from volseg.data.records import Records, open_cases
from volseg.errors import InputError, UsageError
from volseg.files import common_folder
from volseg.text import counted, first_few, shortened

logger = logging.getLogger(__name__)

# A folder, several folders, or a list of cases.
Source: TypeAlias = str | Path | Sequence[str | Path] | Records

# Characters of a dataset's name in the names of its cases.
LONGEST_PREFIX = 60
# The labels that a value in label images stands for, one or several regions, and its value in the joined dataset.
Numbers = dict[frozenset[str], int]


def open_datasets(source: Source) -> Dataset:
    """Open one training dataset, or join several.

    Args:
        source: a folder, see `volseg.data.cases.dataset.open_dataset`; a list of folders; or a list of cases, see
            `volseg.data.records`.

    Raises:
        UsageError: none of these, or a folder given twice.
        InputError: a dataset cannot be used, they do not fit together, see `join`, or a label is annotated in no case.
    """
    folders = folders_of(source)
    dataset = open_cases(cast(Records, source)) if folders is None else _open_folders(folders)
    if never := [name for name in dataset.labels.values if not any(case.own.has(name) for case in dataset.cases)]:
        raise InputError(
            f'{first_few(never)} is "annotated" in no case of {dataset.name}, so it cannot be learned. Remove it from '
            "the labels, name the cases in which somebody looked for it, or add a dataset that has it."
        )
    return dataset


def folders_of(source: Source) -> list[str | Path] | None:
    """One folder or several as a list; None of a list of cases."""
    if isinstance(source, str | os.PathLike):
        return [source]
    if isinstance(source, list | tuple) and source and all(isinstance(one, str | os.PathLike) for one in source):
        return cast(list[str | Path], list(source))
    return None


def _open_folders(folders: Sequence[str | Path]) -> Dataset:
    """The dataset of one folder, or those of several joined."""
    paths = [Path(one) for one in folders]
    resolved = [path.resolve() for path in paths]
    if twice := [str(path) for path, one in zip(paths, resolved, strict=True) if resolved.count(one) > 1]:
        raise UsageError(f"The dataset {twice[0]} was given twice. Give each dataset once.")
    parts = [open_dataset(path) for path in paths]
    return join(parts) if len(parts) > 1 else parts[0]


def join(parts: Sequence[Dataset]) -> Dataset:
    """Several datasets as one.

    Args:
        parts: the datasets, in the order in which their labels get values.

    Raises:
        InputError: other channels, regions in one and plain labels in another, regions whose order or values contradict
            each other, a label with two codes, or two cases of one name.
    """
    names = distinct_names([_prefix(part.name) for part in parts])
    by_name = dict(zip(names, parts, strict=True))
    channels = parts[0].channels
    labels, numbers = _joined_labels(by_name)
    _warn_of_similar(by_name)
    cases = [
        replace(
            case,
            name=_case_name(name, case.name),
            images=_images(name, part, case, names[0], channels),
            own=_own_labels(case, part, labels, numbers),
            source=name,
        )
        for name, part in by_name.items()
        for case in part.cases
    ]
    cases.sort(key=lambda case: case.name)
    for one, other in pairwise(cases):
        if one.name == other.name:
            raise InputError(
                f"A case of {one.source} and one of {other.source} are both called {one.name}. Rename one of them."
            )
    return Dataset(
        name=" + ".join(names)[:LONGEST_NAME],
        folder=common_folder([part.folder.absolute().parent for part in parts if part.folder]),
        channels=channels,
        labels=labels,
        cases=tuple(cases),
        licence=_each({name: part.licence for name, part in by_name.items()}),
        description=_each({name: part.description for name, part in by_name.items()}),
        problems=tuple(
            one._replace(case=_case_name(name, one.case)) for name, part in by_name.items() for one in part.problems
        ),
        groups={
            _case_name(name, case): f"{name}: {group}"
            for name, part in by_name.items()
            for case, group in part.groups.items()
        },
        parts=by_name,
    )


def folds_of(dataset: Dataset, folds: int = 5) -> Folds:
    """The folds of a dataset, see `split_folds`; fold K of a joined one is the folds K of its datasets together.

    Of datasets that state different numbers of folds, the smallest counts, and those that state none are split into
    as many.

    Raises:
        InputError: as `split_folds`.
    """
    if not dataset.parts or dataset.splits:
        return split_folds(dataset, folds)
    stated = {name: folds_in_files(part) for name, part in dataset.parts.items()}
    counts = {name: len(found.splits) for name, found in stated.items() if found}
    number = min(counts.values(), default=folds)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        logger.warning(
            "The datasets state different numbers of folds (%s), so there are %d: the folds after it are not used.",
            listed, number,
        )  # fmt: skip
    elif number != folds:
        logger.warning("The datasets state %s, so there are not %d", counted(number, "fold"), folds)
    each = {name: stated[name] or _own(name, part, max(number, 2)) for name, part in dataset.parts.items()}
    splits = [
        {
            half: sorted(_case_name(name, case) for name, found in each.items() for case in found.splits[fold][half])
            for half in ("train", "val")
        }
        for fold in range(number)
    ]
    return Folds(splits, "; ".join(f"{name}: {found.source}" for name, found in each.items()))


def folds_in_words(dataset: Dataset) -> str:
    """Where the folds of a dataset are from, for the plan."""
    if dataset.parts and not dataset.splits:
        return "; ".join(f"{name}: {folds_in_words(part)}" for name, part in dataset.parts.items())
    stated = folds_in_files(dataset)
    return f"{len(stated.splits)}, {stated.source}" if stated else grouping_of(dataset).words


def datasets_in_words(dataset: Dataset, shares: Mapping[str, float] | None) -> list[str]:
    """A line for each of the datasets that are joined; none for a single one."""
    share = dict.fromkeys(dataset.parts, "as many samples as cases") if shares is None else {
        name: f"{100 * one:.3g} % of the samples" for name, one in shares.items()
    }  # fmt: skip
    return [
        f"dataset {name}: {len(part.cases)} cases, {share[name]}, labels {first_few(list(part.labels.values), 20)}"
        for name, part in dataset.parts.items()
    ]


def _own(name: str, part: Dataset, folds: int) -> Folds:
    try:
        return own_folds(part.names, grouping_of(part), folds)
    except InputError as error:
        raise InputError(f"Dataset {name}: {error}") from error


def _prefix(name: str) -> str:
    """A dataset's name as a part of file names."""
    return re.sub(r"[^\w.-]+", "_", name)[:LONGEST_PREFIX].strip("._") or "dataset"


def _case_name(dataset: str, case: str) -> str:
    return f"{dataset}_{case}"


def _each(texts: Mapping[str, str]) -> str:
    """What each dataset states, as one text."""
    if not any(texts.values()):
        return ""
    return shortened("; ".join(f"{name}: {text or 'not stated'}" for name, text in texts.items()), LONGEST_TEXT)


def _images(name: str, part: Dataset, case: TrainingCase, first: str, channels: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of a case in the order of the joined channels.

    Raises:
        InputError: it has other channels, or the same ones in another order within one file.
    """
    if part.channels == channels:
        return case.images
    if sorted(part.channels) != sorted(channels) or len(case.images) != len(channels):
        raise InputError(
            f"{name} has the channels {', '.join(part.channels)}, but {first} has {', '.join(channels)}. Datasets are "
            "joined by the names of their channels: give equal scans equal names in dataset.json, in the same order "
            '(of a plain folder "channel_names" in labels.json, beside its "labels").'
        )
    return tuple(case.images[part.channels.index(one)] for one in channels)


def _meaning(labels: LabelSet) -> dict[int, frozenset[str]]:
    """The labels that each value in label images stands for."""
    return {
        value: frozenset(name for name, values in labels.stored.items() if value in values)
        for value in sorted({value for values in labels.stored.values() for value in values})
    }


def _joined_labels(parts: Mapping[str, Dataset]) -> tuple[LabelSet, Numbers]:
    """The labels of all datasets, and the value of each combination of names that a label image may have."""
    kinds = {name: bool(part.labels.parts) for name, part in parts.items()}
    if len(set(kinds.values())) > 1:
        regions, plain = ([name for name, kind in kinds.items() if kind is wanted] for wanted in (True, False))
        raise InputError(
            f"{first_few(regions)} has regions, which may overlap, but {first_few(plain)} has plain labels, so they "
            "cannot be one model. Join datasets of one kind."
        )
    numbers: Numbers = {}
    written: dict[str, int] = {}
    for part in parts.values():
        meaning = _meaning(part.labels)
        for names in meaning.values():
            numbers.setdefault(names, len(numbers) + 1)
        for label, value in part.labels.values.items():
            written.setdefault(label, numbers[meaning[value]])
    if any(kinds.values()):
        _check_regions(parts, written)
    stored = {label: tuple(number for names, number in numbers.items() if label in names) for label in written}
    ignore = len(numbers) + 1 if any(part.labels.ignore for part in parts.values()) else None
    return LabelSet(written, stored if any(kinds.values()) else {}, ignore, _codes(parts)), numbers


def _check_regions(parts: Mapping[str, Dataset], written: Mapping[str, int]) -> None:
    """Reject regions that are written over each other in another order, or with one value."""
    for name, part in parts.items():
        order = [label for label in written if label in part.labels.values]
        if order != list(part.labels.values) or len(set(written.values())) < len(written):
            raise InputError(
                f"The regions of {name} ({first_few(list(part.labels.values))}) do not fit those of the other datasets "
                f"({first_few(list(written))}): their order or their values contradict each other. Make "
                "regions_class_order agree."
            )


def _codes(parts: Mapping[str, Dataset]) -> dict[str, LabelCode]:
    """The codes of all labels."""
    codes: dict[str, LabelCode] = {}
    for name, part in parts.items():
        for label, code in part.labels.codes.items():
            if codes.setdefault(label, code) != code:
                raise InputError(
                    f"{label} is {codes[label]} in one dataset and {code} in {name}, so it is not the same label. "
                    "Correct label_codes, or rename one of the labels."
                )
    return codes


def _own_labels(case: TrainingCase, part: Dataset, joined: LabelSet, numbers: Numbers) -> CaseLabels:
    """How the label image of a case speaks of the labels of the joined dataset."""
    annotated = tuple(name for name in joined.values if name in part.labels.values and case.own.has(name))
    values = {value: numbers[names] for value, names in _meaning(part.labels).items()}
    if part.labels.ignore is not None and joined.ignore is not None:
        values[part.labels.ignore] = joined.ignore
    own = CaseLabels(None if len(annotated) == len(joined.values) else annotated)
    stored = with_ignore(part.labels.stored, part.labels.ignore)
    if stored == joined.table and all(value == number for value, number in values.items()):
        return own
    return replace(own, stored=tuple(stored.items()), values=tuple(values.items()))


def _warn_of_similar(parts: Mapping[str, Dataset]) -> None:
    """Say which labels of two datasets may be the same under two names; they are not joined."""
    similar = {}
    for (one, first), (other, second) in combinations(parts.items(), 2):
        for left in first.labels.values.keys() - second.labels.values.keys():
            for right in second.labels.values.keys() - first.labels.values.keys():
                words = [frozenset(re.findall(r"[^\W_]+", name.casefold())) for name in (left, right)]
                if words[0] <= words[1] or words[1] <= words[0]:
                    similar[left, right] = f"{left} of {one} and {right} of {other}"
    if similar:
        logger.warning(
            "Labels are joined by name alone. These have similar names and stay apart; if two are the same, rename one "
            "in its dataset: %s.",
            first_few([similar[pair] for pair in sorted(similar)]),
        )
