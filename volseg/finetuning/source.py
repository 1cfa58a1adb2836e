"""The model that a run starts from."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from volseg.config import CUSTOM
from volseg.errors import InputError, UsageError
from volseg.files import given_path
from volseg.finetuning.start import Start, plain_name
from volseg.modelfile import ModelCard, bundled_models, find_model, read_card, sha256_of_model
from volseg.modelfile.card import RUN_MODEL, own_network_of
from volseg.networks import Ensemble, open_network
from volseg.training.run.folder import is_run
from volseg.training.run.settings import RunSettings

# The number of folds in the command of a model's card.
_FOLDS = re.compile(r"--folds (\d+)")


@dataclass(frozen=True)
class Source:
    """A model that a run starts from.

    Args:
        path: of the model file.
        name: the bundled name, or that in the card.
        sha256: of the file.
        card: of the model.
        member: the network of an ensemble that the run starts from; 0 for a single network.
    """

    path: Path
    name: str
    sha256: str
    card: ModelCard
    member: int

    def network(self) -> nn.Module:
        """The whole model in evaluation mode, without gradients.

        Raises:
            VolsegError: see `volseg.networks.open_network`.
        """
        return open_network(self.path)[1]

    def member_network(self) -> nn.Module:
        """The network that the run starts from, likewise."""
        network = self.network()
        return network.members[self.member] if isinstance(network, Ensemble) else network

    def ancestry(self) -> tuple[dict[str, Any], ...]:
        """What the card says of the models that this one started from, the youngest first."""
        return tuple(self._training().get("from", ()))

    def seen(self, datasets: Collection[str], fold: int | str, folds: int) -> str:
        """Why the network may have been trained on cases that a run validates on, by its card; "" if nothing says so.

        Args:
            datasets: the names of those of the run.
            fold: of the run; "all" validates on nothing.
            folds: their number.
        """
        record = self._training()
        names = {plain_name(name) for name in datasets}
        of_model = [str(record.get("dataset", "")), *map(str, record.get("datasets") or ())]
        both = [name for name in of_model if plain_name(name) in names]
        number = _FOLDS.search(str(record.get("command", "")))
        same = record.get("fold") == fold and (number is None or int(number[1]) == folds)
        if fold == "all" or not both or same:
            return ""
        known = f"{both[0]}, fold {record.get('fold')}{f' of {number[1]}' if number else ''}"
        return (
            f"validation scores may be too good: the model was trained on {known}, so it may know cases that fold "
            f"{fold} of {folds} validates on. Start each fold from the model of the same fold"
        )

    def _training(self) -> Mapping[str, Any]:
        """The record of the training of the network that the run starts from."""
        training = self.card.training
        members = training.get("members") or ()
        return members[self.member] if self.member < len(members) else training


def _place(path: Path) -> Path:
    """Where a file lies, whatever it leads to."""
    return path.parent.resolve() / path.name


def model_path(model: str | Path) -> Path:
    """The file of a model: that of a run folder, of a bundled name, or `model` itself.

    Raises:
        InputError: there is no such model, or the run has none yet.
    """
    if not is_run(Path(model)):
        return find_model(model)
    path = Path(model) / RUN_MODEL
    if not path.exists():
        raise InputError(f"The run {model} has no model yet. Finish it with volseg train --resume.")
    return path


def start_settings(
    model: str | Path | None, freeze: str | None, keep_labels: bool, label_map: Mapping[str, str] | None
) -> dict[str, Any]:
    """The settings of a run that say what it takes from a model; None where nothing was given.

    Paths become absolute, because the run may be resumed from elsewhere.

    Raises:
        UsageError: an empty path.
    """
    # A run may have the name of a bundled model.
    if model is not None and (str(model) not in bundled_models() or is_run(Path(model))):
        model = given_path(model).absolute()
    return {
        "from_model": None if model is None else str(model),
        "freeze": freeze,
        "keep_labels": keep_labels or None,
        "label_map": _mapping(label_map),
    }


def _mapping(label_map: Any) -> dict[str, str] | None:
    """The label map as it is stored; None without any."""
    if label_map is not None and not isinstance(label_map, Mapping):
        raise UsageError(
            f"label_map has the type {type(label_map).__name__}, expected the names of labels in a dictionary: {{name "
            "in the dataset: name in the model}."
        )
    return dict(label_map) if label_map else None


def find_source(settings: RunSettings, run: Path) -> Source | None:
    """The model that a run of these settings starts from; None if it starts from none.

    Args:
        settings: of the run.
        run: its folder, whose earlier content is about to be removed.

    Raises:
        UsageError: a setting needs a model, and there is none; or it lies in the folder, or has a network of its own.
        InputError: see `open_source`, or its weights do not fit.
        ConfigError: its network is unknown here.
    """
    if settings.from_model:
        source = open_source(settings.from_model, settings.fold)
        # The model itself or a link to it.
        if any(path.is_relative_to(run.resolve()) for path in (source.path.resolve(), _place(source.path))):
            raise UsageError(
                f"{source.path} lies in {run}, which the new run would replace, and the model with it. Choose another "
                "folder for --output."
            )
        if source.card.plan.network.architecture == CUSTOM:
            raise UsageError(
                f"{source.name} was trained with a network of its own ({own_network_of(source.card)}), and --from "
                "starts from networks of volseg alone. Train without it, with network= and a function that gives the "
                "network these weights."
            )
        # Whatever is wrong with its weights is said before a run folder is made.
        source.network()
        return source
    needing = {"freeze": settings.freeze, "keep-labels": settings.keep_labels, "label-map": settings.label_map}
    for option, given in needing.items():
        if given:
            raise UsageError(f"--{option} says what to take from a model. Add --from MODEL, or leave it out.")
    return None


def open_source(model: str | Path, fold: int | str) -> Source:
    """The model that a run of a fold starts from: of an ensemble the member that was trained on the same fold.

    Where no member says so fold K starts from member K, or from the first if there are fewer.

    Raises:
        InputError: there is no such model, or it is not a model file.
    """
    path = model_path(model)
    card = read_card(path)
    name = str(model) if str(model) in bundled_models() and not is_run(Path(model)) else card.name
    member = _member_of(card, fold)
    return Source(path, name, sha256_of_model(path), card, member)


def _member_of(card: ModelCard, fold: int | str) -> int:
    """The member of a model that a fold starts from; the order of members is that in which they were given."""
    folds = [record.get("fold") for record in card.training.get("members") or ()][: card.members]
    if folds.count(fold) == 1:
        return folds.index(fold)
    return fold if isinstance(fold, int) and fold < card.members else 0


def source_of(settings: RunSettings, start: Start) -> Source:
    """The model that a run began with, which is read again.

    Raises:
        InputError: it is no longer there, or has changed since.
    """
    assert settings.from_model
    source = replace(open_source(settings.from_model, settings.fold), member=start.member or 0)
    if source.sha256 != start.sha256:
        raise InputError(
            f"The model {settings.from_model} is not the one that the run was started from: its sha256 is "
            f"{source.sha256}, expected {start.sha256}. Restore it, or start again with --overwrite."
        )
    return source
