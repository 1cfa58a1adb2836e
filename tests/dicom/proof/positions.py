"""How far what other software reads is from the phantom."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from tests.dicom.proof.other_software import Found
from tests.dicom.proof.phantom_series import LABELS, ORIENTATIONS, SPACINGS, Series

# Voxels are equal where the format holds voxels; contours have to be filled first.
LEAST_DICE = {"source": 1.0, "dicom-seg": 1.0, "rtstruct": 0.98}


class Agreement(NamedTuple):
    """One label: distance of the centres of mass in millimetres and, along the worst axis, in voxels; Dice."""

    label: str
    millimetres: float
    voxels: float
    dice: float


def all_series(modalities=("CT", "MR")) -> Iterator[Series]:
    """Every orientation, slice direction, spacing, kind of file and modality."""
    for chosen in product(ORIENTATIONS, ("up", "down"), SPACINGS, ("classic", "enhanced"), modalities):
        yield Series(*chosen)


def agreements(found: Found, series: Series) -> list[Agreement]:
    """Each label as found against the phantom itself, in patient space.

    Grids may differ in extent and in the order of their axes, but not in the places of their voxels.
    """
    truth, matrix = series.labels, series.matrix
    to_found = np.linalg.solve(found.matrix, matrix)
    compared = on_grid(found, to_found, truth.shape)
    measured = []
    for label in LABELS:
        expected, got = truth == label.value, found.labels == label.value
        if not got.any():
            measured.append(Agreement(label.name, np.inf, np.inf, 0.0))
            continue
        apart = centre(got, found.matrix) - centre(expected, matrix)
        millimetres, in_voxels = centre_distance(apart, matrix)
        both = np.count_nonzero(expected & (compared == label.value))
        # What lies outside the grid of the phantom counts as wrong.
        dice = 2 * both / (np.count_nonzero(expected) + np.count_nonzero(got))
        measured.append(Agreement(label.name, millimetres, in_voxels, float(dice)))
    return measured


def centre_distance(apart: np.ndarray, matrix: np.ndarray) -> tuple[float, float]:
    """A shift (3,) in LPS+ mm as its length in mm, and in voxels of a grid along the axis where it is largest."""
    return float(np.linalg.norm(apart)), float(np.abs(np.linalg.solve(matrix[:3, :3], apart)).max())


def centre(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Centre of mass of a mask (I, J, K) in LPS+ millimetres."""
    return matrix[:3, :3] @ np.argwhere(mask).mean(0) + matrix[:3, 3]


def on_grid(found: Found, to_found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The labels at the voxels of another grid, 0 where there are none.

    Args:
        to_found: 4 x 4, from voxels of that grid to those of `found`.
        shape: of that grid.
    """
    where = np.moveaxis(np.indices(shape), 0, -1) @ to_found[:3, :3].T + to_found[:3, 3]
    nearest = np.rint(where).astype(int)
    # A voxel that lies between others is none of them.
    valid = (np.abs(where - nearest).max(-1) < 0.1) & ((nearest >= 0) & (nearest < found.labels.shape)).all(-1)
    result = np.zeros(shape, np.uint8)
    result[valid] = found.labels[tuple(nearest[valid].T)]
    return result
