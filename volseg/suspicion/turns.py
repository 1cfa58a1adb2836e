"""The orientations that a scan may have in place of the one that its header states.

A turn is a 3 x 3 matrix with one 1 or -1 per row and column: what the header calls a direction along R, A, S is that
direction of the patient.
"""

from collections.abc import Iterator
from itertools import permutations, product
from typing import TypeAlias

import numpy as np

from volseg.data.grid.geometry import Geometry

Turn: TypeAlias = tuple[tuple[int, ...], ...]
SAME: Turn = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
MIRRORED: Turn = ((-1, 0, 0), (0, 1, 0), (0, 0, 1))
DIRECTIONS = (("left", "right"), ("back", "front"), ("foot", "head"))
AXES = ("left-right", "back-front", "foot-head")


def turns(mirrored: bool = False) -> Iterator[Turn]:
    """The 24 rotations by quarter turns, the fewest changed axes first; or their mirror images."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            matrix = np.zeros((3, 3), int)
            matrix[range(3), order] = signs
            if (np.linalg.det(matrix) < 0) == mirrored:
                found.append(tuple(tuple(int(one) for one in row) for row in matrix))
    yield from sorted(found, key=lambda turn: sum(turn[axis][axis] != 1 for axis in range(3)))


def turned(geometry: Geometry, turn: Turn) -> Geometry:
    """The geometry of a scan whose header states what `turn` makes of its patient axes; its centre stays."""
    matrix = np.array(turn)
    centre = geometry.affine[:3, :3] @ ((np.array(geometry.shape) - 1) / 2) + geometry.affine[:3, 3]
    change = np.eye(4)
    change[:3, :3] = matrix
    change[:3, 3] = centre - matrix @ centre
    return Geometry(geometry.shape, change @ geometry.affine)


def in_words(turn: Turn) -> str:
    """What has happened to a scan that `turn` sets right, such as "rotated by 90 degrees about the foot-head axis"."""
    if turn == MIRRORED:
        return "mirrored left-right"
    matrix = np.array(turn)
    ends = []
    for axis in range(3):
        world, is_forward = int(np.abs(matrix[:, axis]).argmax()), int(matrix[:, axis].max())
        if turn[axis][axis] != 1:
            ends.append(f"its {DIRECTIONS[axis][1]} is the patient's {DIRECTIONS[world][is_forward]}")
    listed = f"({', '.join(ends)})"
    if np.linalg.det(matrix) < 0:
        return f"mirrored and rotated {listed}"
    fixed = [axis for axis in range(3) if turn[axis][axis] == 1]
    if not fixed:
        return f"rotated {listed}"
    degrees = 180 if np.trace(matrix) == -1 else 90
    return f"rotated by {degrees} degrees about the {AXES[fixed[0]]} axis {listed}"
