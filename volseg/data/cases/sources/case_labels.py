"""What the label image of one case says of the labels of its dataset: all of them, or only those that are annotated.

Partial labels: a label that nobody looked for in a case is no background there. In a dataset that is joined from
several, each case also has the values of its own dataset.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volseg.config import checked
from volseg.data.cases.labels import IGNORE
from volseg.data.dataset_json import AnnotatedLabels
from volseg.data.folds import check_known
from volseg.data.io.dicom_labels.label_names import Table, renumbered
from volseg.data.io.reading import Scan
from volseg.errors import InputError
from volseg.text import counted, first_few

# `read_label` or `read_label_of`: of the path, a grid or an image, the allowed values, and the values of labels.
Reader = Callable[[Path, Any, Collection[int] | None, Table | None], Scan]


@dataclass(frozen=True)
class CaseLabels:
    """How the label image of a case is read. The default: all labels are annotated, with the values of the dataset.

    Args:
        annotated: the names of the labels that somebody looked for, in the order of the dataset; None: all.
        stored: in a joined dataset, name to values in the label image, those of the ignore label included; None: those
            of the dataset.
        values: with `stored`, pairs of a value in the label image and its value in the joined dataset.
    """

    annotated: tuple[str, ...] | None = None
    stored: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    values: tuple[tuple[int, int], ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What the key of a cached case depends on; {} for the default, whose keys are older than this."""
        if self == ALL_LABELS:
            return {}
        return {"own_labels": [self.annotated, self.stored, self.values]}

    def has(self, name: str) -> bool:
        """Whether somebody looked for a label."""
        return self.annotated is None or name in self.annotated

    def flags(self, names: Iterable[str]) -> list[bool]:
        """`has` of each name."""
        return [self.has(name) for name in names]

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names of the labels that nobody looked for."""
        return [name for name in names if not self.has(name)]

    def read(self, reader: Reader, path: Path, place: Any, known: Collection[int] | None, labels: Table) -> Scan:
        """Read a label image of the case; its values become those of the dataset.

        Args:
            reader: `volseg.data.io.reading.read_label` or `read_label_of`.
            path: of the label image.
            place: the second argument of the reader.
            known: the values of the dataset that are allowed apart from 0; None: any.
            labels: name to values in the dataset, those of the ignore label included.

        Raises:
            InputError: as the reader; or the image has voxels of a label that is not annotated.
        """
        if self.stored is None:
            scan = reader(path, place, known, labels)
        else:
            own = dict(self.stored)
            scan = reader(path, place, None if known is None else dict(self.values).keys(), own)
            scan = replace(scan, channels=(renumbered(scan.channels[0], dict(self.values)),))
        self._check(scan, labels)
        return scan

    def _check(self, scan: Scan, labels: Table) -> None:
        """Reject an image with voxels of a label that nobody is said to have looked for: one of the two is wrong.

        A voxel of several regions may be there if one of them is annotated.
        """
        if self.annotated is None:
            return
        allowed = {value for name, values in labels.items() if name == IGNORE or self.has(name) for value in values}
        for name in self.missing(labels):
            values = sorted(set(labels[name]) - allowed)
            voxels = int(np.count_nonzero(np.isin(scan.channels[0], values))) if values else 0
            if voxels:
                raise InputError(
                    f"{scan.source} has {counted(voxels, 'voxel')} of {name}, which is not among the annotated labels "
                    f"of the case ({first_few(list(self.annotated or ()))})",
                    'add it to "annotated", or set these voxels to 0',
                    "label not annotated",
                )


ALL_LABELS = CaseLabels()


def annotated_cases(labels: Iterable[CaseLabels], names: Sequence[str]) -> dict[str, int] | None:
    """In how many of some cases each label is annotated, by name; None where all are in all cases."""
    cases = list(labels)
    if all(one.annotated is None for one in cases):
        return None
    return {name: sum(one.has(name) for one in cases) for name in names}


def stated_annotated(
    document: Mapping[str, Any],
    own: Mapping[str, Sequence[str]],
    cases: Sequence[str],
    names: Sequence[str],
    source: str,
) -> dict[str, CaseLabels]:
    """The labels of the cases of which only some are annotated, by case name.

    Args:
        document: dataset.json or the like.
        own: the annotated labels that are stated with each case.
        cases: the names of all cases.
        names: of all labels.
        source: the file, for messages.

    Raises:
        InputError: "annotated" is of another form or stated in two ways; an unknown case or label, or a case without an
            annotated label.
    """
    stated = checked(AnnotatedLabels, document, source, InputError).annotated
    if stated is not None and own:
        raise InputError(f'{source} states "annotated" twice, for the dataset and with its cases. Remove one.')
    by_case = dict(own) if stated is None else stated if isinstance(stated, dict) else dict.fromkeys(cases, stated)
    check_known(by_case, cases, f'"annotated" in {source}', 'Give {"case": ["label"]}.')
    return {case: _one_case(case, listed, names, source) for case, listed in by_case.items()}


def _one_case(case: str, listed: Sequence[str], names: Sequence[str], source: str) -> CaseLabels:
    if unknown := [name for name in listed if name not in names]:
        raise InputError(
            f'"annotated" of case {case} in {source} names {first_few(unknown)}, but the labels are '
            f"{first_few(list(names))}. Correct the name."
        )
    if not listed:
        raise InputError(
            f'"annotated" of case {case} in {source} is empty: without an annotated label the case teaches nothing. '
            "Name those that somebody looked for, or remove the case."
        )
    return CaseLabels(tuple(name for name in names if name in listed)) if set(listed) < set(names) else ALL_LABELS
