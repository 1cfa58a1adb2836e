"""A volume in the world, and whether a scan is that volume."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (7, 6, 5)
SPACING = (0.8, 1.5, 3.0)


@dataclass(frozen=True, eq=False)
class Volume:
    """What is right.

    Args:
        voxels: (I, J, K), the values that the file means.
        affine: 4 x 4 to RAS+ millimetres; None if the file states no place or orientation.
        spacing: in millimetres in the order of the axes, where `affine` is None; None if that is unknown as well.
    """

    voxels: np.ndarray
    affine: np.ndarray | None = None
    spacing: tuple[float, ...] | None = None


def sample(dtype: Any = np.int16, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Whole numbers 1 to 120 in no symmetric order, so that every flip and transposition shows."""
    values = np.random.default_rng(seed).integers(1, 121, shape)
    return values.astype(dtype)


def rotation(degrees: float) -> np.ndarray:
    """3 x 3 rotation about the axis (1, 2, 3)."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    angle = np.radians(degrees)
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) * np.cos(angle) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)


def grid(spacing: tuple[float, ...] = SPACING, degrees: float = 0.0, order: int = 0) -> np.ndarray:
    """An affine: axes turned by some degrees, in one of the 48 orders and directions."""
    axes, signs = ORDERS[order]
    turned = rotation(degrees)[:, list(axes)] * np.array(signs, dtype=float)
    affine = np.eye(4)
    affine[:3, :3] = turned * np.array(spacing)
    affine[:3, 3] = [-11.5, 23.25, -7.75]
    return affine


ORDERS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def upright(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The volume in the order and direction nearest to RAS+: all voxels stay at their places."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(itertools.permutations(range(3)), key=lambda one: sum(abs(axes[w, a]) for w, a in enumerate(one)))
    turned = affine.copy()
    turned[:3, :3] = affine[:3, list(order)]
    voxels = voxels.transpose(order)
    for axis in range(3):
        if turned[axis, axis] < 0:
            turned[:3, 3] += turned[:3, axis] * (voxels.shape[axis] - 1)
            turned[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    return voxels, turned


def difference(voxels: np.ndarray, affine: np.ndarray, right: Volume) -> str:
    """How a volume that was read differs from the right one, in world space; empty if it does not."""
    if right.affine is None:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if right.spacing is not None and (wrong := _unequal("spacing", spacing, np.array(right.spacing), 1e-4)):
            return wrong
        return _voxels_differ(voxels, right.voxels)
    if not np.isfinite(right.affine).all() or not np.isfinite(affine).all():
        return "the affine is not finite"
    found, place = upright(voxels, affine)
    expected, at = upright(right.voxels, right.affine)
    if wrong := _voxels_differ(found, expected):
        return wrong
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, size - 1) for size in found.shape))]).T
    # A quaternion in float32 is that coarse near half a turn.
    reach = np.abs(at[:3]).max()
    return _unequal("places of the corners", (place @ corners)[:3], (at @ corners)[:3], 1e-3 + 2e-4 * reach)


def _voxels_differ(found: np.ndarray, expected: np.ndarray) -> str:
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    wide = np.float64 if expected.dtype.kind == "f" or found.dtype.kind == "f" else object
    if wide is object:
        return "" if np.array_equal(found, expected) else _largest(found.astype(float), expected.astype(float))
    largest = float(np.abs(expected.astype(np.float64)).max(initial=0))
    return _unequal("voxels", found.astype(np.float64), expected.astype(np.float64), 2e-6 * largest)


def _unequal(what: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> str:
    close = np.allclose(found, expected, rtol=1e-5, atol=tolerance)
    return "" if close else f"{what}: {_largest(found, expected)}"


def _largest(found: np.ndarray, expected: np.ndarray) -> str:
    with np.errstate(all="ignore"):
        at = np.unravel_index(int(np.argmax(np.nan_to_num(np.abs(found - expected), nan=np.inf))), found.shape)
    return f"found {found[at]:.6g} at {tuple(map(int, at))}, expected {expected[at]:.6g}"
