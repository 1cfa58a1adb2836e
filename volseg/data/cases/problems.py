"""All problems that prevent training on the cases of a dataset, not only the first one that reading reports."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np

from volseg.data.cases.dataset import TrainingCase
from volseg.data.grid.intensities import as_exact_float
from volseg.data.io.dicom_labels.label_names import Table
from volseg.data.io.formats import is_dicom
from volseg.data.io.reading import Scan, compare_grids, read_label_of, read_scan
from volseg.errors import InputError, Problem


def case_problems(case: TrainingCase, channels: int, known: Collection[int], labels: Table) -> list[Problem]:
    """All problems of the files of a case. It reads every file again, so call it only for cases that failed.

    Args:
        case: to check.
        channels: expected number.
        known: the label values allowed apart from 0.
        labels: name to values, for labels in DICOM.
    """
    each = channels if len(case.images) == 1 else 1
    checks: list[Callable[[], object]] = [
        *(partial(read_scan, path, each) for path in case.images),
        partial(case.own.read, read_label_of, case.label, case.images[0], known, labels),
        *(partial(compare_grids, path, case.images[0], "the first channel") for path in case.images[1:]),
        # DICOM is placed on the image, or rejected, when it is read.
        *(partial(compare_grids, case.label, one, "its image") for one in case.images[:1] if not is_dicom(case.label)),
    ]
    problems = []
    for check in checks:
        try:
            check()
        except InputError as error:
            remedy = error.remedy or "fix it, or remove the case"
            problems.append(Problem(case.name, error.problem, error.found.removesuffix("."), remedy))
    # A file that cannot be read fails two checks.
    return list(dict.fromkeys(problems))


def duplicate_problems(digests: Mapping[str, str]) -> list[Problem]:
    """Cases with the same voxels as an earlier one.

    Args:
        digests: case name to `voxel_digest`.
    """
    first: dict[str, str] = {}
    return [
        Problem(name, "duplicate", f"it has the same voxels as {first[digest]}", "keep one of the two")
        for name, digest in digests.items()
        if first.setdefault(digest, name) != name
    ]


def voxel_digest(scan: Scan) -> str:
    """SHA-256 of the voxels and the shape, independent of dtype, memory order and affine."""
    digest = hashlib.sha256(repr((len(scan.channels), scan.geometry.shape)).encode())
    for channel in scan.channels:
        for plane in range(channel.shape[2]):
            digest.update(np.ascontiguousarray(as_exact_float(channel[..., plane])).data)
    return digest.hexdigest()
