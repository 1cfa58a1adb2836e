"""The volumes among the frames of one series: what never differs within one volume separates them.

Frames that differ in echo time, time point, b value, image type and the like (`frames.CONTRASTS`) are never slices of
one volume, but for soft differences, such as a flip angle that rises from slice to slice: what groups the frames into
no stacks of their own separates nothing. Frames that differ in acquisition (`frames.RUNS`) are slices of one volume
that was scanned in parts, unless the parts overlap along the stack and their slices do not fit beside each other.
"""

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from volseg.data.io.choice import Choice
from volseg.data.io.dicom.frames import DIMENSION, INEXACT, RUNS, TIMES, Frame
from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.series import LOCALISERS, SAME_FILE, SAME_PIXELS, in_time, sameness
from volseg.data.io.dicom.stack import SAME_PLACE_MM, check_place, height, normal_of
from volseg.data.io.dicom.values import number, numbers, order_of, shown_mark, text
from volseg.errors import InputError
from volseg.text import first_few

# Differences that are named in messages at most.
_NAMED = 3
# The smallest and largest gap between slices of several parts that lie beside each other, as a fraction of their
# thickness, and the largest one where none is missing.
_FITS, _LOOSE, _WIDE = 0.9, 1.5, 1.75
# Deviation of a gap from the stated one or the mean, as a fraction.
_EVEN = 0.1
# Difference of directions, or of spacings as a fraction, of slices that are parallel.
_PARALLEL = 0.01
# Difference of two numbers that are one value, as a fraction.
_SAME = 0.01
# What may differ between the slices of one volume if it groups them into no stacks of their own.
_RAMPED = ("flip angle", "inversion time")
# What may be stated by some slices alone, of parts that make one even stack.
_STATED_BY_SOME = "frame of reference"
# What is stated wrongly now and then: other values of single slices tell nothing.
_LOOSELY_STATED = ("slice thickness", "series number")
_PHASES = ("cardiac phase", "respiratory phase", "trigger delay")
_SOFT = (*_RAMPED, _STATED_BY_SOME, *_LOOSELY_STATED, *_PHASES)
# What orders the frames of one place in time.
_ORDERED = (*TIMES, *_PHASES)


class Volume(NamedTuple):
    """The frames of one volume, in what it differs from the others of its series, and warnings about it."""

    frames: list[Frame]
    differs: dict[str, Hashable]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = [f"{name} {shown_mark(value).removeprefix('file ')}" for name, value in self.differs.items()]
        return f"{first_few(named, _NAMED)}, {len(self.frames)} images" if named else f"{len(self.frames)} images"


def volume_of(frames: Sequence[Frame], choice: Choice, source: str) -> tuple[Volume, list[str]]:
    """The only volume of a series, or the chosen one, and warnings.

    Raises:
        InputError: there are several and none was chosen, or the chosen one does not exist.
    """
    volumes, warnings = volumes_of(frames, source)
    if choice.volume is None and len(volumes) == 1:
        return volumes[0], [*warnings, *volumes[0].notes]
    listed = "; ".join(f"{at + 1}: {one}" for at, one in enumerate(volumes[:20]))
    more = f"; and {len(volumes) - 20} more" if len(volumes) > 20 else ""
    if choice.volume is None:
        raise InputError(
            f"{source} is 4-D, with {len(volumes)} volumes ({listed}{more}); choose one with --volume N "
            "(volume=N in Python), or take --volume all."
        )
    if not 1 <= choice.volume <= len(volumes):
        raise InputError(f"{source} has no volume {choice.volume}; it has {len(volumes)} ({listed}{more}).")
    chosen = volumes[choice.volume - 1]
    return chosen, [*warnings, *chosen.notes]


def volumes_of(frames: Sequence[Frame], source: str) -> tuple[list[Volume], list[str]]:
    """The volumes of a series in the order of their differences, and warnings.

    Raises:
        InputError: a frame has no valid position, orientation or spacing, or parts of the series are missing.
    """
    kept, warnings = _without_localisers(frames)
    kept, copies = _without_copies(kept)
    unknown = _check_concatenation(kept, source)
    for frame in kept:
        check_place(frame, source)
    found = [part for one in _by_contrast(Volume(list(kept), {})) for part in _parts(one)]
    files = in_time({str(frame.run["file"]): frame.header for frame in kept if "file" in frame.run})

    def place(one: Volume) -> list[tuple[int, float, str]]:
        return [order_of(files[str(value)] if name == "file" else value) for name, value in one.differs.items()]

    ordered = sorted(found, key=place)
    least = min((gap for one in ordered if (gap := _gap(one))), default=0.0)
    most = max((len(one.frames) for one in ordered), default=0)
    return [_judged(one, least, most) for one in ordered], [*warnings, *copies, *unknown]


def _without_localisers(frames: Sequence[Frame]) -> tuple[list[Frame], list[str]]:
    """The frames that are no localisers, if there are any."""
    kept = [frame for frame in frames if not set(frame.image_type) & LOCALISERS]
    if not kept or len(kept) == len(frames):
        return list(frames), []
    count = len(frames) - len(kept)
    return kept, [f"{count} localiser image{'s' * (count > 1)} of the series (ImageType) are set aside."]


def _without_copies(frames: Sequence[Frame]) -> tuple[list[Frame], list[str]]:
    """One frame of those whose files are equal byte for byte, or in place, contrast and pixels."""
    if not any(text(frame.header.data, "SOPInstanceUID") for frame in frames):
        return list(frames), []
    kept: dict[tuple[str, int], Frame] = {}
    others: list[Frame] = []
    copies: list[str] = []
    compared: dict[tuple[Header, Header], str] = {}
    for frame in frames:
        key = (text(frame.header.data, "SOPInstanceUID"), frame.index)
        first = kept.setdefault(key, frame) if key[0] else None
        if first is frame:
            continue
        if first is not None and (first.header, frame.header) not in compared:
            compared[first.header, frame.header] = sameness(first.header, frame.header)
        same = compared[first.header, frame.header] if first is not None else ""
        if first is not None and same and (same == SAME_FILE or _same_slice(first, frame)):
            copies.append(same)
        else:
            others.append(frame)
    counted = [(copies.count(same), same) for same in (SAME_FILE, SAME_PIXELS)]
    return [*kept.values(), *others], [
        f"{n} images are there twice ({same}); each is used once." for n, same in counted if n
    ]


def _same_slice(first: Frame, second: Frame) -> bool:
    """Whether frames of the same pixels lie at one place and mean the same."""
    places = [
        [None if one is None else np.ravel(one).tolist() for one in (frame.position, frame.axes, frame.spacing_mm)]
        for frame in (first, second)
    ]
    return (
        places[0] == places[1]
        and (first.slope, first.intercept, first.contrast) == (second.slope, second.intercept, second.contrast)
        and first.size == second.size
    )


def _check_concatenation(frames: Sequence[Frame], source: str) -> list[str]:
    """Reject a volume in several files (DICOM PS3.3 C.7.6.16.2.2.4) if not all are there; warn if nothing states it."""
    unknown = False
    for uid in {text(frame.header.data, "ConcatenationUID") for frame in frames} - {""}:
        headers = {frame.header for frame in frames if text(frame.header.data, "ConcatenationUID") == uid}
        totals = [one for header in headers for one in numbers(header.data, "InConcatenationTotalNumber")]
        parts = sorted(number(header.data, "InConcatenationNumber") or 0 for header in headers)
        total = max(totals, default=0)
        if total and len(headers) != total:
            raise InputError(
                f"{source} holds {len(headers)} of the {total:g} files of one volume (a concatenation); add the "
                "missing files."
            )
        if parts != list(range(1, len(parts) + 1)):
            named = ", ".join(f"{part:g}" for part in parts[:20])
            raise InputError(
                f"{source}: the files of one volume (a concatenation) have InConcatenationNumber {named}, expected "
                "1, 2, 3 and so on without a gap, each once; give all files of the volume once."
            )
        unknown |= not total
    return ["Nothing states how many files the volume has (a concatenation); some may be missing."] if unknown else []


def _by_contrast(volume: Volume) -> list[Volume]:
    """The volumes that hard contrasts separate."""
    names = sorted({name for frame in volume.frames for name in frame.contrast})
    levels = {name: found for name in names if _is_hard(name, found := _levels(volume.frames, name))}
    groups: dict[tuple[Hashable, ...], list[Frame]] = {}
    for at, frame in enumerate(volume.frames):
        groups.setdefault(tuple(found[at] for found in levels.values()), []).append(frame)
    return [Volume(frames, dict(zip(levels, values, strict=True))) for values, frames in groups.items()]


def _levels(frames: Sequence[Frame], name: str) -> list[Hashable]:
    """The value of each frame; numbers that scanners vary in their last digits are one value."""
    stated = [frame.contrast.get(name, frame.run.get(name)) for frame in frames]
    if name not in INEXACT:
        return stated
    levels: dict[Hashable, Hashable] = {None: None}
    last: tuple[float, ...] = ()
    for value in sorted({one for one in stated if isinstance(one, tuple)}):
        if len(value) != len(last) or not np.allclose(value, last, rtol=_SAME, atol=0):
            last = value
        levels[value] = last
    return [levels[one] for one in stated]


def _is_hard(name: str, levels: Sequence[Hashable]) -> bool:
    """Whether the values of a contrast separate volumes wherever their slices lie."""
    values = set(levels)
    # Slices without a rescaling have no type of it, which tells nothing.
    if len(values - {None} if name == "rescale type" else values) < 2 or name.startswith(DIMENSION):
        return False
    if name == "frame of reference":
        return len(values - {None}) > 1
    if name == "image type":
        # Values beyond those of the others, as the axis.
        return any(a != b for one in values for two in values for a, b in zip(_tuple(one), _tuple(two), strict=False))
    return name not in _SOFT


def _tuple(value: Hashable) -> tuple[Hashable, ...]:
    return value if isinstance(value, tuple) else ()


def _parts(volume: Volume, settled: tuple[str, ...] = ()) -> list[Volume]:
    """A volume, or its parts if something else than hard contrasts or what is `settled` separates them."""
    names = {name for frame in volume.frames for name in (*frame.contrast, *frame.run)} - set(settled)
    ordered = sorted(names, key=lambda name: (name == "file" or name in RUNS, name))
    groups = {name: _groups(volume, name) for name in ordered}
    varying = {name: found for name, found in groups.items() if len(found) > 1}
    notes = list(volume.notes)
    for separate in (_repeating, _ranked, _separated):
        for name, found in varying.items():
            parts, note = separate(volume, name, found)
            notes += [note] if note else []
            if parts:
                made = [Volume(part, volume.differs | {name: value}, tuple(notes)) for value, part in parts.items()]
                done = (*settled, name, *(_ORDERED if separate is _ranked else ()))
                return [one for part in made for one in _parts(part, done)]
    return [Volume(volume.frames, volume.differs, tuple(notes))]


_Groups = dict[Hashable, list[Frame]]
_Found = tuple[_Groups | None, str]


def _groups(volume: Volume, name: str) -> _Groups:
    """The frames by the value of an attribute."""
    groups: _Groups = {}
    for frame, value in zip(volume.frames, _levels(volume.frames, name), strict=True):
        groups.setdefault(value, []).append(frame)
    return {} if name == "rescale type" else groups


def _heights(frames: Sequence[Frame], normal: np.ndarray) -> np.ndarray:
    """The places of slices along the normal in rising order, mm."""
    return np.sort([height(frame, normal) for frame in frames])


def _repeating(volume: Volume, _: str, groups: _Groups) -> _Found:
    """The parts if each has one slice at every place: volumes of one anatomy."""
    normal = normal_of(volume.frames[0])
    parts = [_heights(part, normal) for part in groups.values()]
    same = all(len(part) == len(parts[0]) and np.abs(part - parts[0]).max() <= SAME_PLACE_MM for part in parts)
    single = same and bool(np.all(np.diff(parts[0]) > SAME_PLACE_MM)) and not _turned(groups)
    return (groups, "") if single else (None, "")


def _ranked(volume: Volume, name: str, groups: _Groups) -> _Found:
    """The parts by the order of times at each place, where each place has as many: times vary from slice to slice."""
    if not (name in _ORDERED or name.startswith(DIMENSION)) or _turned(groups):
        return None, ""
    normal = normal_of(volume.frames[0])
    valued = [
        (height(frame, normal), order_of(value), value, frame) for value, part in groups.items() for frame in part
    ]
    valued.sort(key=lambda one: one[:2])
    starts = [0, *(np.flatnonzero(np.diff([one[0] for one in valued]) > SAME_PLACE_MM) + 1), len(valued)]
    places = [sorted(valued[start:end], key=lambda one: one[1]) for start, end in pairwise(starts)]
    count = len(places[0])
    ordered = all(len(one) == count and all(a[1] < b[1] for a, b in pairwise(one)) for one in places)
    if count < 2 or not ordered:
        return None, ""
    note = f"{name.capitalize()} varies from slice to slice; slices belong together by its order at each place."
    return {place[2]: [one[at][3] for one in places] for at, place in enumerate(places[0])}, note


def _separated(volume: Volume, name: str, groups: _Groups) -> _Found:
    """The parts if they are stacks of their own; else none, and a warning where that is not obvious."""
    normal = normal_of(volume.frames[0])
    parts = [_heights(part, normal) for part in groups.values()]
    if _turned(groups):
        return groups, ""
    judge = _judge_run if name in RUNS or name == "file" else _judge_contrast
    return (None, note) if (note := judge(volume, name, parts)) is not None else (groups, "")


def _judge_run(volume: Volume, name: str, parts: list[np.ndarray]) -> str | None:
    """A warning, or nothing in it, if slices of several runs are one volume; None if the runs are volumes."""
    if not _overlap(parts, len(parts) > 2 and max(map(len, parts)) == 1):
        return ""
    if name == "file" or not _apart(volume.frames, parts):
        return None
    return "" if name in TIMES else f"The slices of several values of {name} lie in turn; they are one volume."


def _judge_contrast(volume: Volume, name: str, parts: list[np.ndarray]) -> str | None:
    """The same of slices that differ in a soft contrast."""
    single = all(part[-1] - part[0] <= SAME_PLACE_MM for part in parts) and not _overlap(parts, False)
    note = f"{name[0].upper()}{name[1:]} differs between slices of the volume."
    if single and name.startswith(DIMENSION):
        return ""
    if not _even(volume.frames):
        return None
    stacks = [part for part in parts if len(part) > 1]
    if single or (name in _LOOSELY_STATED and len(stacks) < 2):
        return note
    stated = {frame.contrast.get(name) for frame in volume.frames} - {None}
    if name == _STATED_BY_SOME and len(stated) == 1 and (not _overlap(parts, False) or _apart(volume.frames, parts)):
        return f"{name[0].upper()}{name[1:]} differs between slices that make one even stack; they are one volume."
    if name in _RAMPED and len(parts) > 2 and not _overlap(stacks, len(stacks) < 2):
        return note
    return None


def _turned(groups: _Groups) -> bool:
    """Whether the slices of each part have one size, spacing and orientation, and those of others another."""
    first = [part[0] for part in groups.values()]
    if all(_parallel(first[0], one) for one in first):
        return False
    return all(_parallel(part[0], one) for part in groups.values() for one in part)


def _parallel(first: Frame, second: Frame) -> bool:
    """Whether two slices have one size, spacing and orientation."""
    assert first.axes is not None
    assert second.axes is not None
    return (
        first.size == second.size
        and np.allclose(first.axes, second.axes, atol=_PARALLEL)
        and np.allclose(first.spacing_mm or (), second.spacing_mm or (), rtol=_PARALLEL)
    )


def _overlap(parts: Sequence[np.ndarray], tell_nothing: bool) -> bool:
    """Whether parts of a stack lie at the same places or between each other; single images may tell nothing."""
    ordered = sorted((part[0], part[-1]) for part in parts)
    return not tell_nothing and any(after[0] <= before[1] + SAME_PLACE_MM for before, after in pairwise(ordered))


def _apart(frames: Sequence[Frame], parts: Sequence[np.ndarray]) -> bool:
    """Whether all slices of several parts fit beside each other, as those of one volume do.

    Two volumes at places between each other would overlap, as their slices are thicker than the gaps.
    """
    gaps = np.diff(np.sort(np.concatenate(parts)))
    between, thickness = frames[0].thickness_mm, _thickness(frames[0])
    if thickness is None or gaps.min(initial=np.inf) <= SAME_PLACE_MM:
        return False
    stated = between is not None and bool(np.all(np.abs(gaps - between) <= _EVEN * between))
    return stated or bool(gaps.min() >= _FITS * thickness and gaps.max() <= _LOOSE * thickness)


def _thickness(frame: Frame) -> float | None:
    """The larger of the stated thickness and distance of slices, mm; None if neither is stated."""
    stated = [frame.thickness_mm, *_tuple(frame.contrast.get("slice thickness"))]
    return max((one for one in stated if isinstance(one, float) and 0 < one < np.inf), default=None)


def _even(frames: Sequence[Frame]) -> bool:
    """Whether slices lie at even distances along one line."""
    normal = normal_of(frames[0])
    places = np.array(sorted((frame.position for frame in frames), key=lambda one: float(one @ normal)))
    steps = np.diff(places, axis=0)
    mean = steps.mean(axis=0) if len(steps) else np.zeros(3)
    return bool(mean @ normal > SAME_PLACE_MM and np.linalg.norm(steps - mean, axis=1).max() <= _EVEN * (mean @ normal))


def _judged(volume: Volume, least: float, most: int) -> Volume:
    """A volume with warnings, given the least gap and the most slices of all: of missing slices, and of rescaling."""
    notes = list(volume.notes)
    gap, thickness = _gap(volume), _thickness(volume.frames[0])
    missing = "slices of this volume may be missing"
    if gap and thickness and gap > _WIDE * thickness:
        notes.append(f"Gaps of {gap:.3g} mm, slices are {thickness:.3g} mm thick: {missing}.")
    elif gap and gap > _WIDE * least:
        notes.append(f"Gaps of {gap:.3g} mm, {least:.3g} mm in another volume of the series: {missing}.")
    elif len(volume.frames) < most:
        notes.append(f"{len(volume.frames)} images, {most} in another volume of the series: {missing}.")
    without = sum(frame.slope is None and frame.intercept is None for frame in volume.frames)
    if 0 < without < len(volume.frames):
        notes.append(f"RescaleSlope/RescaleIntercept is absent in {without} of {len(volume.frames)} slices.")
    return volume._replace(notes=tuple(dict.fromkeys(notes)))


def _gap(volume: Volume) -> float:
    """The median gap of a volume, mm; 0 for a single slice."""
    heights = _heights(volume.frames, normal_of(volume.frames[0]))
    return float(np.median(np.diff(heights))) if len(heights) > 1 else 0.0
