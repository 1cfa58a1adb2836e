"""Which axes of an NRRD file lie in space, and where: an affine from what its header states, and from nothing else.

The fields are those of the definition of the format (teem.sourceforge.net/nrrd/format.html, section 4 and 6).
"""

import re
from typing import NamedTuple

import numpy as np

from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.data.io.readers.textheader import LARGEST, absent, integers, millimetres, numbers, wrong
from volseg.errors import InputError

# World axes of RAS+ and their direction by the words and letters of anatomical spaces.
_TOWARDS = {
    "right": (0, 1), "left": (0, -1), "anterior": (1, 1), "posterior": (1, -1), "superior": (2, 1), "inferior": (2, -1)
}  # fmt: skip
# Spaces that do not say how the patient lies.
_NOT_ANATOMICAL = re.compile("(scanner-xyz|3d-right-handed|3d-left-handed)(-time)?|3d[rl]ht?", re.IGNORECASE)
_IN_SPACE = ("domain", "space")
_NOT_IN_SPACE = ("list", "time", "vector", "point", "normal", "covariant-vector")
_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)
_QUOTED = re.compile(r'"([^"]*)"')
_NO_UNIT = ("", "???", "none")


class Axes(NamedTuple):
    """The grid of a file.

    Args:
        in_space: the three axes I, J, K as the file numbers them; fewer if the file has fewer axes.
        others: all other axes.
        affine: 4 x 4 to RAS+ millimetres.
        warnings: what the file does not state.
        unstated: see `volseg.data.io.readers.stored.Stored`.
    """

    in_space: list[int]
    others: list[int]
    affine: np.ndarray
    warnings: list[str]
    unstated: str


class _Space(NamedTuple):
    """The world of a file: its name if it has one, number of axes, 3 x 3 matrix to RAS+, whether that is stated."""

    name: str
    dimension: int
    to_ras: np.ndarray
    anatomical: bool


def axes_of(fields: dict[str, str], sizes: tuple[int, ...], source: str) -> Axes:
    """The grid that a header states.

    Args:
        fields: of the header, by names in lower case without blanks.
        sizes: of all axes.
        source: the file's name for messages.

    Raises:
        InputError: a colour or complex image; no spacing is stated; a direction that is absent, zero or not a number;
            an unknown unit or space; or a field that contradicts another.
    """
    kinds = _kinds(fields, len(sizes), source)
    if len(sizes) < 3:
        # Rejected later, as any image of fewer dimensions.
        return Axes(list(range(len(sizes))), [], np.eye(4), [], "")
    if "spacedirections" in fields:
        return _by_directions(fields, kinds, len(sizes), source)
    if "spacings" in fields:
        return _by_spacings(fields, kinds, sizes, source)
    raise absent("space directions' or 'spacings", source, "without it, the spacing is unknown")


def _kinds(fields: dict[str, str], dimension: int, source: str) -> list[str]:
    """The kind of each axis in lower case, "" where it is not stated."""
    if "kinds" not in fields:
        return [""] * dimension
    kinds = fields["kinds"].split()
    if len(kinds) != dimension:
        raise wrong("kinds", fields["kinds"], f"{dimension} kinds", source)
    for kind in kinds:
        if kind.lower().endswith("-color"):
            raise InputError(
                f"{source}: the voxels are in colour ({kind}), expected one value per voxel; give the original scan."
            )
        if kind.lower() == "complex":
            raise InputError(f"{source}: the voxels are complex, expected one real number per voxel; convert them.")
    return [kind.lower() for kind in kinds]


def _by_directions(fields: dict[str, str], kinds: list[str], dimension: int, source: str) -> Axes:
    """The grid from directions, each with its spacing as its length."""
    directions = _vectors(fields["spacedirections"], "space directions", source)
    if len(directions) != dimension:
        raise wrong("space directions", fields["spacedirections"], f"{dimension} directions", source)
    space = _space(fields, next((len(vector) for vector in directions if vector is not None), 3), source)
    in_space = [axis for axis in range(dimension) if _lies_in_space(directions[axis], kinds[axis], axis, space, source)]
    if len(in_space) != 3:
        raise InputError(
            f"{source}: 'space directions' states directions of {len(in_space)} axes, expected 3; fix the header."
        )
    matrix = np.array([vector[:3] for vector in directions if vector is not None and any(vector[:3])]).T
    _compare_spacings(fields, np.linalg.norm(matrix, axis=0), in_space, dimension, source)
    scale = _space_units(fields, space, source)
    origin, warnings = _origin(fields, space, source)
    if not space.anatomical:
        warnings.insert(0, _orientation_warning(space, fields))
    affine = np.eye(4)
    in_mm = np.ones(3) if scale is None else scale
    affine[:3, :3] = space.to_ras @ (in_mm[:, None] * matrix)
    affine[:3, 3] = space.to_ras @ (in_mm * origin)
    unstated = ""
    if scale is None and not space.anatomical:
        unstated = "The file states neither an anatomical space nor 'space units', so its unit is not known."
    others = [axis for axis in range(dimension) if axis not in in_space]
    return Axes(in_space, others, affine, warnings, unstated)


def _by_spacings(fields: dict[str, str], kinds: list[str], sizes: tuple[int, ...], source: str) -> Axes:
    """The grid from spacings alone: nothing says how the patient lies."""
    spacings = numbers(fields["spacings"], "spacings", source, len(sizes))
    stated = any(kind in _IN_SPACE for kind in kinds)
    in_space = [
        axis
        for axis, kind in enumerate(kinds)
        if (kind in _IN_SPACE if stated else kind not in _NOT_IN_SPACE and not np.isnan(spacings[axis]))
    ]
    if len(in_space) > 3:
        in_space = [axis for axis in in_space if sizes[axis] > 1]
    if len(in_space) != 3:
        raise InputError(
            f"{source}: 'spacings' states the spacing of {len(in_space)} axes, and no field says which three of the "
            f"{len(sizes)} axes of this {len(sizes)}-D file are in space; fix the header."
        )
    steps = np.array([spacings[axis] for axis in in_space])
    if not ((steps > 0) & (steps < LARGEST)).all():
        raise wrong("spacings", fields["spacings"], "positive numbers", source)
    space = _space(fields, 3, source)
    world, units = _space_units(fields, space, source), _units(fields, "units", len(sizes), source)
    scale = world if units is None else _in_millimetres([units[axis] for axis in in_space], "units", source)
    lps = np.diag([*(steps if scale is None else steps * scale), 1.0])
    affine = LPS_FROM_RAS @ lps
    origin, warnings = _origin(fields, space, source)
    affine[:3, 3] = space.to_ras @ (origin if world is None else world * origin)
    warnings.insert(
        0,
        "The header has 'spacings', but no 'space directions', so the patient's orientation is unknown; LPS+ axes are "
        "assumed.",
    )
    unstated = "" if scale is not None else "The file states spacings without a unit and without a space."
    others = [axis for axis in range(len(sizes)) if axis not in in_space]
    return Axes(in_space, others, affine, warnings, unstated)


def _space(fields: dict[str, str], components: int, source: str) -> _Space:
    """The space of a header; without a name, LPS+ is assumed, as ITK does."""
    name = fields.get("space", "")
    to_ras = _to_ras(name)
    if name and to_ras is None and not _NOT_ANATOMICAL.fullmatch(name):
        raise wrong("space", name, "a space such as left-posterior-superior", source)
    timed = re.search("-time$|^(...|3d[rl]h)t$", name, re.IGNORECASE)
    dimension = (4 if timed else 3) if name else components
    if "spacedimension" in fields:
        (said,) = integers(fields["spacedimension"], "space dimension", source, 1)
        if said not in (3, 4) or (name and said != dimension):
            expected = f"{dimension} as in space {name}" if name else "3"
            raise wrong("space dimension", fields["spacedimension"], expected, source)
        dimension = said
    elif dimension not in (3, 4):
        raise wrong("space directions", fields["spacedirections"], "directions of 3 numbers", source)
    lps = LPS_FROM_RAS[:3, :3]
    return _Space(name, dimension, lps if to_ras is None else to_ras, to_ras is not None)


def _to_ras(name: str) -> np.ndarray | None:
    """The matrix from an anatomical space, as "left-posterior-superior" or "LPS", to RAS+; None for another space."""
    words = name.lower().removesuffix("-time").split("-")
    if re.fullmatch("[RLAPSI]{3}T?", name, re.IGNORECASE):
        initials = {word[0]: word for word in _TOWARDS}
        words = [initials[letter] for letter in name.lower()[:3]]
    if len(words) != 3 or not set(words) <= set(_TOWARDS) or len({_TOWARDS[word][0] for word in words}) != 3:
        return None
    matrix = np.zeros((3, 3))
    for column, word in enumerate(words):
        axis, sign = _TOWARDS[word]
        matrix[axis, column] = sign
    return matrix


def _lies_in_space(vector: list[float] | None, kind: str, axis: int, space: _Space, source: str) -> bool:
    """Whether an axis has a direction in the three axes of the world, checked against its kind."""
    if vector is None:
        if kind in _IN_SPACE:
            raise InputError(
                f"{source}: axis {axis + 1} is of kind {kind}, but its space direction is none; fix the header."
            )
        return False
    if len(vector) != space.dimension:
        raise wrong("space directions", str(tuple(vector)), f"{space.dimension} numbers for each axis", source)
    spatial = any(vector[:3])
    finite = bool((np.abs(vector) < LARGEST).all())
    if not finite or not any(vector) or (spatial and any(vector[3:])):
        what = "zero" if not any(vector) else "mixed with time" if finite else "not finite"
        raise InputError(
            f"{source}: the space direction of axis {axis + 1} is {what} "
            f"({', '.join(f'{value:g}' for value in vector)}), so its spacing is unknown; fix the header."
        )
    if spatial and kind in _NOT_IN_SPACE:
        raise InputError(
            f"{source}: axis {axis + 1} is of kind {kind}, but has a space direction, expected none; fix the header."
        )
    return spatial


def _compare_spacings(
    fields: dict[str, str], lengths: np.ndarray, in_space: list[int], dimension: int, source: str
) -> None:
    """Reject spacings beside directions of other lengths."""
    if "spacings" not in fields:
        return
    spacings = np.array(numbers(fields["spacings"], "spacings", source, dimension))[in_space]
    if not np.all(np.isnan(spacings) | (np.abs(spacings - lengths) <= 1e-3 * lengths)):
        expected = f"{' '.join(f'{length:g}' for length in lengths)}, the lengths of 'space directions'"
        raise wrong("spacings", fields["spacings"], expected, source)


def _space_units(fields: dict[str, str], space: _Space, source: str) -> np.ndarray | None:
    """The length in mm of the unit of each world axis (3,); None if it is not stated."""
    units = _units(fields, "space units", space.dimension, source)
    return None if units is None else _in_millimetres(units[:3], "space units", source)


def _units(fields: dict[str, str], field: str, count: int, source: str) -> list[str] | None:
    """The units in a field; None without one."""
    value = fields.get(field.replace(" ", ""))
    if value is None:
        return None
    units = _QUOTED.findall(value) if '"' in value else value.split()
    if len(units) != count:
        raise wrong(field, value, f"{count} units", source)
    return units


def _in_millimetres(units: list[str], field: str, source: str) -> np.ndarray | None:
    """The lengths of units in mm; None if none of them is stated."""
    if all(unit.strip().lower() in _NO_UNIT for unit in units):
        return None
    return np.array([millimetres(unit, field, source) for unit in units])


def _origin(fields: dict[str, str], space: _Space, source: str) -> tuple[np.ndarray, list[str]]:
    """The first voxel's centre in the file's space and unit; 0 with a warning if it is not stated."""
    value = fields.get("spaceorigin")
    if value is None:
        return np.zeros(3), ["The header states no 'space origin', so the position is unknown; 0 is assumed."]
    vectors = _vectors(value, "space origin", source)
    if len(vectors) != 1 or vectors[0] is None or len(vectors[0]) != space.dimension:
        raise wrong("space origin", value, f"({', '.join('xyzt'[: space.dimension])})", source)
    origin = np.array(vectors[0][:3])
    if np.isinf(origin).any():
        raise wrong("space origin", value, "finite numbers", source)
    if np.isnan(origin).any():
        return np.zeros(3), [f"The space origin is not a number {value}, so the position is unknown; 0 is assumed."]
    return origin, []


def _orientation_warning(space: _Space, fields: dict[str, str]) -> str:
    """The warning for a space that is not anatomical."""
    which = f"The space is {fields['space']}" if space.name else "The header names no space"
    return f"{which}, so the patient's orientation is unknown; the directions are taken as LPS+."


def _vectors(value: str, field: str, source: str) -> list[list[float] | None]:
    """The vectors "(x,y,z)" in a field, None for "none"."""
    if _VECTOR.sub("", value).strip():
        raise wrong(field, value, "vectors such as (0,0,1)", source)
    return [
        None if word.lower() == "none" else numbers(word[1:-1].replace(",", " "), field, source)
        for word in _VECTOR.findall(value)
    ]
