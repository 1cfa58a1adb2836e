"""What keeps the cases of a dataset from being trained on: all of it, not only what reading stumbles over first."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np

from volseg.data.cases.dataset import TrainingCase
from volseg.data.io.reading import Scan, compare_grids, read_label, read_scan
from volseg.errors import InputError, Problem


def case_problems(case: TrainingCase, channels: int, known: Collection[int]) -> list[Problem]:
    """All that is wrong with the files of a case; each is read anew, which only bad cases are worth.

    Args:
        case: to look at.
        channels: how many it has to have.
        known: the label values it may hold beside 0.
    """
    each = channels if len(case.images) == 1 else 1
    looks: list[Callable[[], object]] = [
        *(partial(read_scan, path, each) for path in case.images),
        partial(read_label, case.label, known=known),
        *(partial(compare_grids, path, case.images[0], "the first channel") for path in case.images[1:]),
        partial(compare_grids, case.label, case.images[0], "its image"),
    ]
    problems = []
    for look in looks:
        try:
            look()
        except InputError as error:
            remedy = error.remedy or "mend it, or leave out the case"
            problems.append(Problem(case.name, error.problem, error.found.removesuffix("."), remedy))
    # A file that cannot be read is met twice.
    return list(dict.fromkeys(problems))


def duplicate_problems(digests: Mapping[str, str]) -> list[Problem]:
    """Cases with the voxels of an earlier one.

    Args:
        digests: `voxel_digest` by the name of the case.
    """
    first: dict[str, str] = {}
    return [
        Problem(name, "duplicate", f"its voxels are those of {first[digest]}", "keep one of the two")
        for name, digest in digests.items()
        if first.setdefault(digest, name) != name
    ]


def voxel_digest(scan: Scan) -> str:
    """A SHA-256 of the voxels and their arrangement, whatever their dtype, their order in memory and the affine."""
    digest = hashlib.sha256(repr((len(scan.channels), scan.geometry.shape)).encode())
    for channel in scan.channels:
        for plane in range(channel.shape[2]):
            digest.update(np.ascontiguousarray(channel[..., plane], dtype=np.float32).data)
    return digest.hexdigest()
