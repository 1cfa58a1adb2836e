"""What dataset.json states, in the layouts of the Decathlon, MONAI and nnU-Net v2."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

from volseg.config import Frozen, Name, distinct_names
from volseg.config.plan import MOST_CHANNELS
from volseg.data.folds import Folds, numbered_folds
from volseg.data.io.formats import stem_of
from volseg.errors import InputError
from volseg.files import is_hidden
from volseg.text import counted, first_few

logger = logging.getLogger(__name__)


def _in_order(names: Any) -> list[Any]:
    """The values of {"0": name, "1": name, ...} in the order of their numbers, not of the file."""
    if not isinstance(names, dict) or not names or set(names) != {str(index) for index in range(len(names))}:
        raise ValueError('expected {"0": name, "1": name, ...}, numbered from 0 without a gap')
    return [names[str(index)] for index in range(len(names))]


Channels = Annotated[
    tuple[Name, ...], BeforeValidator(_in_order), Field(max_length=MOST_CHANNELS), AfterValidator(distinct_names)
]
# A group or a case by its name or number; True and 1.0 are neither.
Group = StrictStr | StrictInt


def _ending(text: str) -> str:
    """The end of a file's name with its dot, which must not lead into another folder or stand for any name."""
    ending = text.strip().removeprefix("*").removeprefix(".")
    if not ending or len(ending) > 20 or not ending.isprintable() or set(ending) & set("/\\*?["):
        raise ValueError("expected the end of a file name such as .nii.gz")
    return f".{ending}"


class _Document(Frozen):
    """A part of a JSON file of a dataset; keys that training does not need are ignored."""

    model_config = ConfigDict(extra="ignore")


def _files(stated: Any) -> Any:
    """The files of a scan: one, or, as in MONAI, a list of one per channel."""
    files = stated if isinstance(stated, list) and stated else [stated]
    if not all(isinstance(file, str) for file in files):
        raise ValueError("Input should be a valid string")
    return files


def _label_names(stated: Any) -> Any:
    """The names of labels, as a list."""
    if stated is not None and not (isinstance(stated, list | tuple) and all(isinstance(one, str) for one in stated)):
        raise ValueError('expected a list of label names, such as ["Liver"]')
    return stated


def _by_case(stated: Any) -> Any:
    """The names of labels, of all cases or by case."""
    if isinstance(stated, dict) and (without := [case for case, names in stated.items() if names is None]):
        raise ValueError(f"case {without[0]} has null; leave out the cases of which all labels are annotated")
    return (
        {case: _label_names(names) for case, names in stated.items()}
        if isinstance(stated, dict)
        else _label_names(stated)
    )


class Scan(_Document):
    """One entry of a Decathlon's "training" or "validation"."""

    image: Annotated[tuple[str, ...], BeforeValidator(_files)]
    label: str
    fold: Annotated[StrictInt, Field(ge=0)] | None = None
    group: Group | None = None
    annotated: Annotated[tuple[str, ...] | None, BeforeValidator(_label_names)] = None

    @property
    def name(self) -> str:
        """The name of the case."""
        return stem_of(Path(self.image[0]))


def _labelled(entries: Any) -> Any:
    """The entries of a list that have a label: others, such as paths of scans alone, are there to be segmented."""
    if not isinstance(entries, list):
        raise ValueError('expected a list of {"image": file, "label": file}')
    return [one for one in entries if not isinstance(one, str) and not (isinstance(one, dict) and not one.get("label"))]


class Decathlon(_Document):
    """dataset.json of the Decathlon."""

    modality: Channels | None = None
    training: list[Scan]
    validation: Annotated[list[Scan], BeforeValidator(_labelled)] = Field(default_factory=list)

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels; numbered as the files of a scan where none are stated."""
        scans = [*self.training, *self.validation]
        return self.modality or distinct_names(("image",) * max((len(scan.image) for scan in scans), default=1))


class NnUNet(_Document):
    """dataset.json of nnU-Net v2."""

    channel_names: Channels
    file_ending: Annotated[str, AfterValidator(_ending)] = ".nii.gz"


def _single(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The channel of scans that are one file each."""
    if names and len(names) > 1:
        raise ValueError(
            f"{len(names)} channels, but the scans in the folder images have one; use the layout of nnU-Net for several"
        )
    return names


class Plain(_Document):
    """labels.json of a folder of images/ and labels/, where it is more than the labels."""

    channel_names: Annotated[Channels | None, AfterValidator(_single)] = None
    modality: Annotated[Channels | None, AfterValidator(_single)] = None

    @property
    def channels(self) -> tuple[str, ...]:
        """The name of the channel."""
        return self.channel_names or self.modality or ("image",)


class Groups(_Document):
    """What every layout may state of the groups of its cases."""

    groups: dict[str, Group] = Field(default_factory=dict)


class AnnotatedLabels(_Document):
    """What every layout may state of the labels that somebody looked for: in all cases, or by the name of a case."""

    annotated: Annotated[tuple[str, ...] | dict[str, tuple[str, ...]] | None, BeforeValidator(_by_case)] = None


def shown(scans: Sequence[Scan]) -> list[Scan]:
    """The scans that are no hidden files, which some programs list with the others."""
    seen = [scan for scan in scans if not is_hidden(Path(scan.image[0]).name)]
    if hidden := len(scans) - len(seen):
        logger.warning("dataset.json lists %s, such as macOS makes: passed over", counted(hidden, "hidden file"))
    return seen


def stated_folds(training: Sequence[Scan], validation: Sequence[Scan], source: str) -> Folds | None:
    """The folds of a Decathlon: by the "fold" of each case, or one that validates on "validation".

    Raises:
        InputError: both, a case in both lists, or folds that only some cases have or that are not numbered from 0.
    """
    places = [{os.path.normpath(file) for scan in half for file in scan.image} for half in (training, validation)]
    if both := sorted(places[0] & places[1]):
        raise InputError(
            f'{source} lists {counted(len(both), "file")} under both "training" and "validation": {first_few(both)}. '
            "Remove each from one."
        )
    numbers = {scan.name: scan.fold for scan in training if scan.fold is not None}
    if numbers and validation:
        raise InputError(
            f'{source} states folds twice, by a "validation" list and by a "fold" of {counted(len(numbers), "case")}. '
            "Remove one of them."
        )
    if validation:
        if not training:
            raise InputError(f'"training" in {source} is empty. List the cases to train on.')
        train, val = (sorted({scan.name for scan in half}) for half in (training, validation))
        return Folds([{"train": train, "val": val}], f'"validation" in {source}')
    return numbered_folds(numbers, sorted({scan.name for scan in training}), source) if numbers else None
