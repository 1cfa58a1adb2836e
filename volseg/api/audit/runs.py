"""The runs whose unseen cases are audited: finished, of one dataset and one plan, each case unseen by its own model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.api.ensemble import plan_differences
from volseg.data.cases.dataset import Dataset, TrainingCase
from volseg.data.folds import choose_fold, read_splits
from volseg.data.joining import Source, open_datasets
from volseg.errors import InputError, UsageError
from volseg.files import given_path
from volseg.finetuning.start import read_start
from volseg.modelfile import ModelCard, read_card
from volseg.modelfile.card import RUN_MODEL
from volseg.text import first_few
from volseg.training.run.case_keys import changed_cases, first_difference
from volseg.training.run.folder import run_settings
from volseg.training.run.settings import RunSettings
from volseg.training.run.sources import sources_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditedRun:
    """A finished run and the cases that its model has not seen.

    Args:
        folder: of the run.
        settings: of the run.
        card: of its model.
        cases: those it was validated on.
        kept: labels that it learned from another model, of which the references say nothing.
        changed: the names of cases whose files are not what they were when it began.
    """

    folder: Path
    settings: RunSettings
    card: ModelCard
    cases: tuple[TrainingCase, ...]
    kept: tuple[str, ...]
    changed: frozenset[str]

    def unknown(self, case: TrainingCase) -> list[str]:
        """The labels of the model that nobody looked for in a case."""
        names = [label.name for label in self.card.plan.labels]
        return [name for name in names if name in self.kept or not case.own.has(name)]


def open_runs(
    runs: str | Path | Sequence[str | Path], dataset: Source | None = None
) -> tuple[Dataset, list[AuditedRun], list[str]]:
    """The dataset of some runs, the runs, and warnings, one sentence each.

    Args:
        runs: one run folder, or several, as the folds of a dataset.
        dataset: as for `volseg.train`; None: where the runs say it lies.

    Raises:
        UsageError: no run, one of them twice, a folder that is no run, a run that is not finished, one that was trained
            on all cases, or two that were validated on the same case.
        InputError: their dataset is not where it was, or has other labels or channels; they are of different datasets
            or plans; or a file of a run was changed.
    """
    folders = [given_path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError(f"Give the folder of one run or more, each once; found {first_few(folders) or 'none'}.")
    known = [(folder, run_settings(folder)) for folder in folders]
    cards = [_finished(folder, settings) for folder, settings in known]
    for folder, card in zip(folders[1:], cards[1:], strict=True):
        if found := plan_differences(card, cards[0]):
            raise InputError(
                f"{folder} does not fit {folders[0]}: {first_few(found, 3, '; ')}. Audit runs of one dataset with one "
                "plan together, such as its folds, and others by themselves."
            )
    data = _dataset_of(folders, dataset)
    made = [
        _open(folder, settings, card, data) for (folder, settings), card in zip(known, cards, strict=True)
    ]  # fmt: skip
    _check_apart(made)
    return data, made, _warnings(made)


def _finished(folder: Path, settings: RunSettings) -> ModelCard:
    """The card of the model of a finished run that has not seen all cases."""
    if settings.fold == "all":
        raise UsageError(
            f"{folder} was trained on all cases (--fold all), so its model has seen every reference that it could "
            "question. Train folds (--fold 0, 1, ...), and audit those."
        )
    if not (folder / RUN_MODEL).exists() or not (folder / "validation.json").exists():
        raise UsageError(
            f"{folder} is not finished: it lacks its model or its scores. Resume it with volseg train --resume, or end "
            "it with --finish."
        )
    return read_card(folder / RUN_MODEL)


def _dataset_of(folders: Sequence[Path], dataset: Source | None) -> Dataset:
    """The dataset of the runs."""
    if dataset is not None:
        return open_datasets(dataset)
    stated = [sources_of(folder) for folder in folders]
    for folder, found in zip(folders, stated, strict=True):
        if found is None:
            raise UsageError(
                f"{folder} does not say where its dataset lies: it is of an older version, or of a list of cases. Give "
                "the dataset it was trained on with --dataset, from Python with dataset=."
            )
        if _resolved(found) != _resolved(stated[0] or []):
            raise InputError(
                f"{folder} was trained on {first_few(found)}, but {folders[0]} on {first_few(stated[0] or [])}. Audit "
                "the runs of one dataset at a time; if it is the same that was moved, give its folder with --dataset."
            )
    try:
        return open_datasets([str(path) for path in stated[0] or []])
    except InputError as error:
        raise InputError(
            f"{error} If the dataset of {folders[0]} was moved, give its folder with --dataset."
        ) from error


def _resolved(folders: Sequence[Path]) -> list[Path]:
    return [folder.resolve() for folder in folders]


def _open(folder: Path, settings: RunSettings, card: ModelCard, data: Dataset) -> AuditedRun:
    kept = read_start(folder).labels.kept if settings.from_model else ()
    _check_dataset(folder, card, kept, data)
    split = choose_fold(read_splits(folder / "splits.json", data.names), settings.fold)
    by_name = {case.name: case for case in data.cases}
    cases = tuple(by_name[name] for name in split["val"])
    if not cases:
        raise UsageError(
            f"{folder} was validated on no case, so its model has seen every reference that it could question. Train "
            "a fold that leaves cases out, and audit that."
        )
    return AuditedRun(folder, settings, card, cases, tuple(kept), frozenset(changed_cases(folder, cases, card.plan)))


def _check_dataset(folder: Path, card: ModelCard, kept: Sequence[str], data: Dataset) -> None:
    """Reject a dataset with other labels or channels than those that a run was trained on."""
    if found := first_difference(data, card.plan, kept):
        what, then, now = found
        raise InputError(
            f"{folder} was trained with the {what} {then}, but {data.folder or data.name} has {now}. Give the "
            "dataset it was trained on with --dataset."
        )


def _check_apart(runs: Sequence[AuditedRun]) -> None:
    """Reject runs that were validated on the same case, which would have two scores."""
    first: dict[str, Path] = {}
    for run in runs:
        for case in run.cases:
            if case.name in first:
                raise UsageError(
                    f"{first[case.name]} and {run.folder} were both validated on case {case.name}. Give one run of "
                    "each fold."
                )
            first[case.name] = run.folder


def _warnings(runs: Sequence[AuditedRun]) -> list[str]:
    """What the reader of the ranking has to know."""
    found = []
    if started := sorted({run.settings.from_model for run in runs if run.settings.from_model}):
        found.append(
            f"The training started from {first_few(started)}: if that was trained on these cases, it has seen their "
            "references, and may repeat their errors"
        )
    if changed := sorted(name for run in runs for name in run.changed):
        found.append(
            f"Changed since the run began, and compared as they are now: {first_few(changed)}"
        )  # fmt: skip
    return found
