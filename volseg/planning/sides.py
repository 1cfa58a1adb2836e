"""Along which axes patches may be flipped, and which labels a flip from left to right exchanges.

Positions are `CaseFingerprint.offsets`: the centre of a label minus that of all labels along R, A, S, as a fraction of
the extent of all labels.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from volseg.config import Axis, PlanChoices, Sides, Triple
from volseg.errors import ConfigError
from volseg.planning.fingerprint import CaseFingerprint, Fingerprint
from volseg.text import first_few

# A label lies on one side of the others when its mean offset exceeds this fraction of the foreground's extent.
ONE_SIDED = 0.1
# Labels that mirror each other: the most that their offsets may differ along A, along S, and along R after the flip,
# and the largest ratio of their volumes. Names with a side allow more than positions alone do: a liver and a spleen,
# or the two ventricles of a heart, are no pair.
LOOSE, STRICT = (0.15, 2.0), (0.05, 1.3)
NO_WHOLE_CASE = (
    "no case has all labels annotated, so nobody knows which lie on one side of the others; plan.mirror_axes sets what "
    "you know"
)
SIDE = {"left": "left", "right": "right", "l": "left", "r": "right", "lh": "left", "rh": "right"}


@dataclass(frozen=True)
class Mirroring:
    """What flips may do, with the reason for each."""

    axes: tuple[Axis, ...]
    why_axes: str
    sides: Sides | None
    why_sides: str


@dataclass(frozen=True)
class _Place:
    """Where a label lies: mean and standard deviation of its offsets along R, A, S; its median volume in mL."""

    mean: np.ndarray
    std: np.ndarray
    volume_ml: float

    def one_sided(self, world: int) -> bool:
        """Whether the mean offset along an axis exceeds a tenth of the extent and twice its deviation over cases."""
        return bool(abs(self.mean[world]) > max(ONE_SIDED, 2 * self.std[world]))


def plan_mirroring(
    fingerprint: Fingerprint, values: Mapping[str, int], regions: bool, order: Triple, choices: PlanChoices
) -> Mirroring:
    """Choose the axes that augmentation and test-time augmentation may flip.

    An axis may be flipped if no label lies on one side of the others along it, because then a flipped scan looks like a
    real one. From left to right it may also be flipped where the labels on one side have partners on the other: the
    flip exchanges them. A label whose name states a side and that has no partner forbids it, wherever it lies: alone in
    a dataset it is in the middle. With partial labels, positions are those of the cases in which all labels are
    annotated, and partners are annotated together in every case, as a flip would exchange a label with one that nobody
    looked for.

    Args:
        fingerprint: of the training cases.
        values: of the labels, by name.
        regions: whether the labels are regions, which have no partners.
        order: world axes (0 R, 1 A, 2 S) of the network axes.
        choices: what the user has fixed.

    Raises:
        ConfigError: the pairs that the user has set are not labels.
    """
    whole = [case for case in fingerprint.cases if len(case.volumes_ml) == len(values)]
    places = _places(whole, values)
    if choices.sides is not None:
        pairs, why = list(choices.sides), "set by the configuration"
        _check_pairs(pairs, values, regions)
        _check_annotated(pairs, fingerprint)
    else:
        pairs, why = _find_pairs(places, regions)
        pairs = [pair for pair in pairs if not _apart(pair, fingerprint)]
    paired = {name for pair in pairs for name in pair}
    sagittal = order.index(0)
    blocked = _blocked(places, paired, order)
    for reason in _not_exchanged(places, values, paired):
        blocked.setdefault(sagittal, reason)
    if not whole:
        # Of labels that no case has together, nobody knows which lie on one side of the others.
        blocked = dict.fromkeys((0, 1, 2), NO_WHOLE_CASE)
    axes: tuple[Axis, ...] = tuple(axis for axis in (0, 1, 2) if axis not in blocked)
    why_axes = "; ".join(dict.fromkeys(blocked.values())) or "no label lies on one side of the others"
    if choices.mirror_axes is not None:
        axes, why_axes = choices.mirror_axes, "set by the configuration"
    if not pairs:
        return Mirroring(axes, why_axes, None, why)
    sides = Sides(axis=sagittal, pairs=tuple((values[one], values[other]) for one, other in pairs))
    return Mirroring(axes, f"{why_axes}; a flip along R exchanges left and right labels", sides, why)


def _blocked(places: Mapping[str, _Place], paired: Collection[str], order: Triple) -> dict[int, str]:
    """The axes along which a label lies on one side of the others, with the first such label as the reason."""
    blocked: dict[int, str] = {}
    for axis, world in enumerate(order):
        for name, place in places.items():
            if place.one_sided(world) and not (world == 0 and name in paired):
                blocked.setdefault(axis, f"{name} lies on one side of the other labels along {'RAS'[world]}")
    return blocked


def _not_exchanged(places: Mapping[str, _Place], names: Iterable[str], paired: Collection[str]) -> Iterator[str]:
    """Why labels forbid a flip from left to right by the side that their names state."""
    for one, other in left_right_pairs(places):
        if not {one, other} <= set(paired):
            yield f"{one} and {other} are no mirror images of each other"
    for name in names:
        if side_of(name) and name not in paired:
            yield f"{name} is of one side by its name and has no partner that a flip exchanges"


def side_of(name: str) -> tuple[str, str] | None:
    """The side that a label's name states, and the name without it: "Left-Kidney" is ("left", "* kidney")."""
    words = re.findall(r"(?<![A-Za-z])[A-Za-z]\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    lower = [word.lower() for word in words]
    found = [index for index, word in enumerate(lower) if word in SIDE]
    if len(found) != 1:
        return None
    rest = ["*" if index == found[0] else word for index, word in enumerate(lower)]
    return SIDE[lower[found[0]]], " ".join(rest)


def _places(cases: Sequence[CaseFingerprint], names: Iterable[str]) -> dict[str, _Place]:
    """Where each label lies that occurs."""
    places = {}
    for name in names:
        having = [case for case in cases if name in case.offsets]
        if having:
            offsets = np.array([case.offsets[name] for case in having])
            volume = float(np.median([case.volumes_ml[name] for case in having]))
            places[name] = _Place(offsets.mean(axis=0), offsets.std(axis=0), volume)
    return places


def left_right_pairs(labels: Iterable[str]) -> list[tuple[str, str]]:
    """The labels that differ only in the side that their names state, the left one first."""
    sides: dict[str, dict[str, list[str]]] = {}
    for name in labels:
        if found := side_of(name):
            sides.setdefault(found[1], {}).setdefault(found[0], []).append(name)
    both = [one for one in sides.values() if len(one.get("left", [])) == len(one.get("right", [])) == 1]
    return [(one["left"][0], one["right"][0]) for one in both]


def _find_pairs(places: Mapping[str, _Place], regions: bool) -> tuple[list[tuple[str, str]], str]:
    """The pairs of labels that mirror each other, by their names or else by their positions."""
    if regions:
        return [], "regions have no sides"
    named = [pair for pair in left_right_pairs(places) if _mirrored(places, pair, *LOOSE)]
    if named:
        return named, f"by their names and positions: {_in_words(named)}"
    left, right = (
        [name for name, place in places.items() if place.one_sided(0) and place.mean[0] * sign > 0] for sign in (-1, 1)
    )
    fitting = [(one, other) for one in left for other in right if _mirrored(places, (one, other), *STRICT)]
    clash = any({*one} & {*other} for one, other in combinations(fitting, 2))
    if not fitting or clash or len(fitting) < max(len(left), len(right)):
        return [], "no labels exist once on the left and once on the right"
    return fitting, f"by their positions: {_in_words(fitting)}"


def _mirrored(places: Mapping[str, _Place], pair: tuple[str, str], distance: float, ratio: float) -> bool:
    """Whether two labels lie and measure as if one were the mirror image of the other across the sagittal plane."""
    one, other = (places[name] for name in pair)
    apart = np.abs(one.mean - other.mean * [-1, 1, 1])
    small, large = sorted([one.volume_ml, other.volume_ml])
    return bool((apart <= distance).all() and large <= ratio * small)


def _in_words(pairs: list[tuple[str, str]]) -> str:
    return first_few([f"{one} and {other}" for one, other in pairs])


def _apart(pair: tuple[str, str], fingerprint: Fingerprint) -> bool:
    """Whether a case has only one of two labels annotated."""
    one, other = pair
    return any((one in case.volumes_ml) != (other in case.volumes_ml) for case in fingerprint.cases)


def _check_annotated(pairs: list[tuple[str, str]], fingerprint: Fingerprint) -> None:
    """Reject pairs that the user has set and of which a case has only one label annotated."""
    if apart := [pair for pair in pairs if _apart(pair, fingerprint)]:
        raise ConfigError(
            f"plan.sides pairs {_in_words(apart)}, but some cases have only one of the two annotated, and a flip would "
            "exchange it with one that nobody looked for. Leave the pair out."
        )


def _check_pairs(pairs: list[tuple[str, str]], values: Mapping[str, int], regions: bool) -> None:
    """Reject pairs that the user has set and the dataset does not have."""
    names = [name for pair in pairs for name in pair]
    unknown = [name for name in names if name not in values]
    if regions and pairs:
        raise ConfigError("plan.sides pairs labels, but the labels of this dataset are regions. Leave it out.")
    if unknown:
        raise ConfigError(f"plan.sides names {first_few(unknown)}, but the labels are {first_few(list(values))}.")
    if len(set(names)) < len(names):
        raise ConfigError("plan.sides names a label twice; give each label at most one partner.")
