"""Whether the dataset of a run is the one that it began with: labels, channels, and cases, kept in RUN/cases.json."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from volseg.config import Plan
from volseg.data.cases.cache import CachedCase, cache_key
from volseg.data.cases.dataset import Dataset, TrainingCase
from volseg.data.io.itk_files import files_of
from volseg.documents import read_json, read_or
from volseg.errors import InputError
from volseg.files import write_json
from volseg.text import first_few

logger = logging.getLogger(__name__)

FILE_NAME = "cases.json"


class Stamps(NamedTuple):
    """Sizes and times of the files of training cases, taken before they are preprocessed."""

    taken: dict[str, tuple[tuple[int, int], ...]]

    @classmethod
    def of(cls, cases: Sequence[TrainingCase]) -> "Stamps":
        """Those of now."""
        return cls({case.name: _stamp(case) for case in cases})

    def warn_of_changes(self, cached: Sequence[CachedCase]) -> None:
        """Say which cases a run has trained on that are not what they were; only those with other times are read."""
        changed = [
            one.case.name for one in cached if _stamp(one.case) != self.taken[one.case.name] and not _is_as_cached(one)
        ]
        if changed:
            logger.warning(
                "The dataset has changed while the run trained: %s. The model was trained on what was there before.",
                first_few(changed),
            )


def check_unchanged(run: Path, training: Sequence[CachedCase], validation: Sequence[CachedCase]) -> None:
    """Check that the cases of a run are those that it began with; write them down where it begins.

    Raises:
        InputError: a case has changed; the message names it.
    """
    keys = {one.case.name: one.stem.name.rpartition(".")[2] for one in (*training, *validation)}
    began = _read(run)
    if began is None:
        write_json(run / FILE_NAME, keys)
        return
    changed = [
        one.case.name for one in training if began.get(one.case.name, keys[one.case.name]) != keys[one.case.name]
    ]
    if changed:
        raise InputError(
            f"Since the run in {run} began, the training cases have changed: {first_few(changed)}. Restore their files "
            "and resume, or start again with --overwrite."
        )
    _check_validation(run, began, {one.case.name: keys[one.case.name] for one in validation})


def check_validation(run: Path, validation: Sequence[TrainingCase], plan: Plan) -> None:
    """Check that the cases that a run is scored on are those that it began with.

    Raises:
        InputError: a case has changed, or cannot be read; the message names it.
    """
    _check_validation(run, _read(run) or {}, {case.name: cache_key(case, plan) for case in validation})


def changed_cases(run: Path, cases: Sequence[TrainingCase], plan: Plan) -> list[str]:
    """The cases that are not what they were when a run began, by name; what cannot be read is not among them."""
    began = _read(run) or {}
    changed = []
    for case in cases:
        with suppress(InputError):
            key = cache_key(case, plan)
            if began.get(case.name, key) != key:
                changed.append(case.name)
    return changed


def require_same_datasets(data: Dataset, started: Sequence[str]) -> None:
    """Reject other datasets than those that a run was started with, or the same in another order.

    Raises:
        InputError: they differ, so the cases would be others.
    """
    if tuple(data.parts) != tuple(started):
        then, now = (" and ".join(names) or "a single dataset" for names in (started, tuple(data.parts)))
        raise InputError(
            f"The run was started with {then}, found {now}. Resume it with the same datasets in the same order, or "
            "start another run."
        )


def require_annotated(training: Sequence[TrainingCase], labels: Iterable[str]) -> None:
    """Reject a fold that trains on no case in which a label is annotated.

    Raises:
        InputError: nothing would tell such a label from the background.
    """
    if never := [name for name in labels if not any(case.own.has(name) for case in training)]:
        raise InputError(
            f"{first_few(never)} is annotated in no case that this fold trains on, so it cannot be learned. Choose "
            "another fold, or folds in which each label is annotated in a training case (--splits)."
        )


def require_same_labels(data: Dataset, plan: Plan, kept: Collection[str] = ()) -> None:
    """Reject a dataset whose labels or channels differ from those the run was started with.

    Labels that are `kept` from another model are none of the dataset's.

    Raises:
        InputError: they differ, so the network would be trained and scored on other labels.
    """
    if found := first_difference(data, plan, kept):
        what, then, now = found
        raise InputError(
            f"The run was started with the {what} {then}, but {data.folder or data.name} has {now}. "
            "Resume it with the same dataset, or start another run."
        )


def first_difference(data: Dataset, plan: Plan, kept: Collection[str]) -> tuple[str, Any, Any] | None:
    """What differs first between a plan and a dataset, labels or channels: its name, the plan's, the dataset's.

    Labels that are `kept` from another model are none of the dataset's.
    """
    labels = {label.name: label.stored_values for label in plan.labels if label.name not in kept}
    planned = (labels, plan.ignore, tuple(channel.name for channel in plan.channels))
    found = (data.labels.stored, data.labels.ignore, data.channels)
    names = ("labels", "ignore label", "channels")
    return next((one for one in zip(names, planned, found, strict=True) if one[1] != one[2]), None)


def _check_validation(run: Path, began: Mapping[str, str], keys: Mapping[str, str]) -> None:
    changed = [name for name, key in keys.items() if began.get(name, key) != key]
    if changed:
        raise InputError(
            f"Since the run in {run} began, the cases that it is scored on have changed: {first_few(changed)}. Restore "
            f"their files and resume; or remove {run / FILE_NAME}, and the run is scored on them as they are now."
        )


def _read(run: Path) -> dict[str, str] | None:
    """The keys of the cases that a run began with, by name; None where it has not begun."""
    path = run / FILE_NAME
    if not path.exists():
        return None
    document = read_or(InputError, read_json, path, "readable JSON", "Restore it, or remove it.")
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, expected cases by name. Restore it, or remove it.")
    return document


def _stamp(case: TrainingCase) -> tuple[tuple[int, int], ...]:
    """Size and time of each file of a case; of what is not there, nothing."""
    found = []
    try:
        for path in (*case.images, case.label):
            for file in files_of(path):
                state = file.stat()
                found.append((state.st_size, state.st_mtime_ns))
    except (OSError, InputError):
        return ()
    return tuple(found)


def _is_as_cached(cached: CachedCase) -> bool:
    """Whether the files of a case still have the bytes that it was preprocessed from."""
    try:
        return cached.stem.name.endswith(f".{cache_key(cached.case, cached.plan)}")
    except InputError:
        return False
