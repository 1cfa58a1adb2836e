"""Faults that happen to scans between the scanner and the network, made on purpose."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from volseg.data.grid.geometry import Geometry
from volseg.suspicion.turns import MIRRORED, SAME, Turn, turned, turns

# Crops of another organ hold at least this fraction of the deviation of the whole scan, so that none is empty.
CONTENT = 0.15
TRIES = 50


class Fault(NamedTuple):
    """A scan with a fault.

    Args:
        name: of the kind of fault.
        scan: (I, J, K) float32.
        affine: 4 x 4, as the header states it.
        reference: (I, J, K) uint8; None where the labels are of something else.
    """

    name: str
    scan: np.ndarray
    affine: np.ndarray
    reference: np.ndarray | None


def faults_of(scan: np.ndarray, affine: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> Iterator[Fault]:
    """One fault of each kind; axes, sides and directions are chosen at random."""
    geometry = Geometry(scan.shape, affine)

    def header(name: str, changed: np.ndarray) -> Fault:
        return Fault(name, scan, changed, reference)

    for name, candidates in _turns_by_kind().items():
        header_turn = candidates[rng.integers(len(candidates))]
        yield header(f"header rotated, {name}", turned(geometry, header_turn).affine)
    for factor in (2.0, 0.5):
        scaled = affine.copy()
        scaled[:3, :3] *= factor
        yield header(f"voxel size x {factor:g}", scaled)
    deviation = scan.std()
    for level in (1, 2, 4):
        noisy = scan + rng.normal(0, level * deviation, scan.shape).astype(np.float32)
        yield Fault(f"noise of {level} standard deviations", noisy, affine, reference)
    for width in (2, 3):
        yield Fault(f"blurred by {width} voxels", ndimage.gaussian_filter(scan, width), affine, reference)
    kept, lost = _halves(scan.shape, rng)
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*(one.start or 0 for one in kept), 1])[:3]
    yield Fault("half of the field of view", scan[kept], moved, reference[kept])
    blank = scan.copy()
    blank[lost] = 0
    yield Fault("half of the scan blank", blank, affine, reference)
    yield Fault("inverted contrast", scan.max() + scan.min() - scan, affine, reference)


def mirrored(scan: np.ndarray, affine: np.ndarray, reference: np.ndarray) -> Fault:
    """A header that exchanges left and right."""
    return Fault("header mirrored", scan, turned(Geometry(scan.shape, affine), MIRRORED).affine, reference)


def crop_of_organ(scan: np.ndarray, affine: np.ndarray, extent_mm: np.ndarray, rng: np.random.Generator) -> Fault:
    """A part of a scan of something else with about these edges, in which something is to be seen."""
    wanted = np.maximum(np.round(extent_mm / Geometry(scan.shape, affine).spacing_mm), 2)
    size = np.minimum(wanted, scan.shape).astype(int)
    for _ in range(TRIES):
        start = rng.integers(0, np.array(scan.shape) - size + 1)
        part = scan[tuple(slice(one, one + edge) for one, edge in zip(start, size, strict=True))]
        if part.std() > CONTENT * scan.std():
            break
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*start, 1])[:3]
    return Fault("another organ", part.astype(np.float32), moved, None)


def _turns_by_kind() -> dict[str, list[Turn]]:
    """The 23 rotations by how they change a scan."""
    kinds: dict[str, list[Turn]] = {"by 180 degrees": [], "by 90 degrees": [], "other": []}
    for turn in turns():
        kept = sum(turn[axis][axis] == 1 for axis in range(3))
        trace = sum(turn[axis][axis] for axis in range(3))
        if turn != SAME:
            kinds["other" if kept == 0 else "by 180 degrees" if trace == -1 else "by 90 degrees"].append(turn)
    return kinds


def _halves(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Two halves of a scan along one axis."""
    axis, side = rng.integers(3), rng.integers(2)
    middle = shape[axis] // 2
    halves = [[slice(None)] * 3 for _ in range(2)]
    halves[side][axis], halves[1 - side][axis] = slice(middle), slice(middle, None)
    return tuple(halves[0]), tuple(halves[1])
