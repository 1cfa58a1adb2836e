"""The volumes among the frames of one series: what never differs within one volume separates them.

Frames that differ in echo time, time point, b value, image type and the like (`frames.CONTRASTS`) are never slices of
one volume. Frames that differ in acquisition (`frames.RUNS`) are slices of one volume that was scanned in parts, unless
the parts overlap along the stack.
"""

import filecmp
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from volseg.data.io.choice import Choice
from volseg.data.io.dicom.frames import TIMES, Frame
from volseg.data.io.dicom.stack import SAME_PLACE_MM, check_place, height, normal_of
from volseg.data.io.dicom.values import count, text
from volseg.errors import InputError
from volseg.text import first_few

_LOCALISERS = ("LOCALIZER", "SCOUT", "LOCALISER")
# Differences that are named in messages at most.
_NAMED = 3
# The smallest gap between slices that lie beside each other, as a fraction of their thickness.
_FITS = 0.9


class Volume(NamedTuple):
    """The frames of one volume, and in what it differs from the others of its series."""

    frames: list[Frame]
    differs: dict[str, Hashable]

    def __str__(self) -> str:
        named = [f"{name} {_shown(value)}" for name, value in self.differs.items()]
        return f"{first_few(named, _NAMED)}, {len(self.frames)} images" if named else f"{len(self.frames)} images"


def volume_of(frames: Sequence[Frame], choice: Choice, source: str) -> tuple[Volume, list[str]]:
    """The only volume of a series, or the chosen one, and warnings.

    Raises:
        InputError: there are several and none was chosen, or the chosen one does not exist.
    """
    volumes, warnings = volumes_of(frames, source)
    if choice.volume is None and len(volumes) == 1:
        return volumes[0], warnings
    listed = "; ".join(f"{at + 1}: {one}" for at, one in enumerate(volumes[:20]))
    more = f"; and {len(volumes) - 20} more" if len(volumes) > 20 else ""
    if choice.volume is None:
        raise InputError(
            f"{source} is 4-D, with {len(volumes)} volumes ({listed}{more}); choose one with --volume N "
            "(volume=N in Python), or take --volume all."
        )
    if not 1 <= choice.volume <= len(volumes):
        raise InputError(f"{source} has no volume {choice.volume}; it has {len(volumes)} ({listed}{more}).")
    return volumes[choice.volume - 1], warnings


def volumes_of(frames: Sequence[Frame], source: str) -> tuple[list[Volume], list[str]]:
    """The volumes of a series in the order of their differences, and warnings.

    Raises:
        InputError: a frame has no valid position, orientation or spacing, or parts of the series are missing.
    """
    kept, warnings = _without_localisers(frames)
    kept, copies = _without_copies(kept)
    _check_concatenation(kept, source)
    for frame in kept:
        check_place(frame, source)
    found = [part for one in _by_contrast(Volume(list(kept), {})) for part in _by_run(one)]
    return sorted(found, key=lambda one: [_order(value) for value in one.differs.values()]), warnings + copies


def _without_localisers(frames: Sequence[Frame]) -> tuple[list[Frame], list[str]]:
    """The frames that are no localisers, if there are any."""
    kept = [frame for frame in frames if not set(frame.image_type) & set(_LOCALISERS)]
    if not kept or len(kept) == len(frames):
        return list(frames), []
    count = len(frames) - len(kept)
    return kept, [f"{count} localiser image{'s' * (count > 1)} of the series (ImageType) are set aside."]


def _without_copies(frames: Sequence[Frame]) -> tuple[list[Frame], list[str]]:
    """One frame of those whose files are equal byte for byte."""
    kept: dict[tuple[str, int], Frame] = {}
    others: list[Frame] = []
    copies = 0
    for frame in frames:
        key = (text(frame.header.data, "SOPInstanceUID"), frame.index)
        first = kept.setdefault(key, frame) if key[0] else frame
        if first is frame:
            continue
        if filecmp.cmp(first.header.path, frame.header.path, shallow=False):
            copies += 1
        else:
            others.append(frame)
    if not any(text(frame.header.data, "SOPInstanceUID") for frame in frames):
        return list(frames), []
    unnamed = [frame for frame in frames if not text(frame.header.data, "SOPInstanceUID")]
    warnings = [f"{copies} images are there twice (same file); each is used once."] if copies else []
    return [*kept.values(), *others, *unnamed], warnings


def _check_concatenation(frames: Sequence[Frame], source: str) -> None:
    """Reject a volume in several files (DICOM PS3.3 C.7.6.16.2.2.4) if not all are there."""
    for uid in {text(frame.header.data, "ConcatenationUID") for frame in frames} - {""}:
        headers = {frame.header for frame in frames if text(frame.header.data, "ConcatenationUID") == uid}
        total = max(count(one.data, "InConcatenationTotalNumber") for one in headers)
        if total and len(headers) != total:
            raise InputError(
                f"{source} holds {len(headers)} of the {total} files of one volume (a concatenation); add the missing "
                "files."
            )


def _by_contrast(volume: Volume) -> list[Volume]:
    names = {name for frame in volume.frames for name in frame.contrast}
    varying = sorted(name for name in names if len(_values(volume, name)) > 1)
    groups: dict[tuple[Hashable, ...], list[Frame]] = {}
    for frame in volume.frames:
        groups.setdefault(tuple(frame.contrast.get(name) for name in varying), []).append(frame)
    return [Volume(frames, dict(zip(varying, values, strict=True))) for values, frames in groups.items()]


def _values(volume: Volume, name: str) -> set[Hashable]:
    """The values of a contrast; slices without a rescaling have no type of it, which tells nothing."""
    found = {frame.contrast.get(name) for frame in volume.frames}
    return found - {None} if name == "rescale type" else found


def _by_run(volume: Volume) -> list[Volume]:
    """A volume, or its parts if those of one run overlap along the stack."""
    normal = normal_of(volume.frames[0])
    for name in sorted({name for frame in volume.frames for name in frame.run}):
        parts: dict[Hashable, list[Frame]] = {}
        for frame in volume.frames:
            parts.setdefault(frame.run.get(name), []).append(frame)
        heights = [sorted(height(frame, normal) for frame in part) for part in parts.values()]
        timed = name in TIMES and _apart(heights, volume.frames[0].thickness_mm)
        if len(parts) > 1 and _overlap(heights) and not timed:
            found = [Volume(part, volume.differs | {name: value}) for value, part in parts.items()]
            return [one for part in found for one in _by_run(part)]
    return [volume]


def _overlap(parts: list[list[float]]) -> bool:
    """Whether parts of a stack lie at the same places or between each other; single images tell nothing."""
    if len(parts) > 2 and max(map(len, parts)) == 1:
        return False
    ordered = sorted((part[0], part[-1]) for part in parts)
    return any(after[0] <= before[1] + SAME_PLACE_MM for before, after in pairwise(ordered))


def _apart(parts: list[list[float]], thickness: float | None) -> bool:
    """Whether all slices of several parts fit beside each other, as those of one volume do."""
    gaps = np.diff(sorted(height for part in parts for height in part))
    # Two volumes at places between each other would overlap, as their slices are thicker than the gaps.
    return thickness is not None and thickness > 0 and bool(gaps.min(initial=np.inf) >= _FITS * thickness)


def _order(value: Hashable) -> tuple[int, float, str]:
    """A key that sorts numbers by value, before texts; what is absent comes first."""
    first = value[0] if isinstance(value, tuple) and value else value
    if first is None:
        return (0, 0.0, "")
    try:
        return (1, float(first), "")  # type: ignore[arg-type]
    except ValueError:
        return (2, 0.0, str(value))


def _shown(value: Hashable) -> str:
    """A value in a message."""
    parts = value if isinstance(value, tuple) else (value,)
    return "none" if value is None else "\\".join(f"{one:g}" if isinstance(one, float) else str(one) for one in parts)
