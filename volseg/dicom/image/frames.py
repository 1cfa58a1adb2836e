"""The frames of a segmentation: their pixels, and what each says of its place, its segment and its source."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from volseg.dicom.image.references import derivation
from volseg.dicom.source import Source

# Frames of one bit are packed without gaps, so that eight of them end at a whole byte whatever their size is.
_BITS = 8


class Frames(NamedTuple):
    """The frames of an object, in order.

    Args:
        pixels: of all frames, of an even length.
        slices: the slice of each frame, from 0.
        segments: the segment number of each frame; empty for a label map.
        overlap: whether a voxel may be in several segments.
    """

    pixels: bytes
    slices: tuple[int, ...]
    segments: tuple[int, ...]
    overlap: bool


def labelmap_frames(slices: np.ndarray, bits: int, keep_empty: bool) -> Frames:
    """A frame of label values per slice.

    Args:
        slices: (K, J, I) label values.
        bits: of a pixel, 8 or 16.
        keep_empty: also for slices without a label.
    """
    kept = [k for k, plane in enumerate(slices) if keep_empty or plane.any()] or list(range(len(slices)))
    kind = np.dtype("<u1" if bits == 8 else "<u2")
    pixels = b"".join(plane.astype(kind, copy=False).tobytes() for plane in slices[kept])
    return Frames(_even(pixels), tuple(kept), (), False)


def binary_frames(
    slices: np.ndarray, values: Sequence[tuple[int, ...]], keep_empty: bool, check: Callable[[int, float], None]
) -> Frames:
    """A frame of one bit a pixel for each segment and slice, segment by segment.

    Args:
        slices: (K, J, I) label values.
        values: of each segment.
        keep_empty: also for slices without the segment; else those with it, and all where no segment has a voxel.
        check: called with the number of frames and the bytes of a frame before any is made.
    """
    there = _present(slices, 1 + max(value for one in values for value in one))
    holds = [there[:, list(one)].any(axis=1) for one in values]
    if keep_empty or not any(one.any() for one in holds):
        holds = [np.ones(len(slices), dtype=bool) for _ in values]
    places = [(segment, int(k)) for segment, one in enumerate(holds) for k in np.flatnonzero(one)]
    check(len(places), slices[0].size / _BITS)
    masks = (_mask(slices[k], values[segment]) for segment, k in places)
    return Frames(
        _even(b"".join(_packed(masks, slices[0].size))),
        tuple(k for _, k in places),
        tuple(segment + 1 for segment, _ in places),
        len({value for one in values for value in one}) < sum(map(len, values)),
    )


def per_frame(frames: Frames, source: Source) -> list[Dataset]:
    """The functional groups of each frame. Parts that frames have in common are one dataset."""
    kept = sorted(set(frames.slices))
    index = {k: at for at, k in enumerate(kept, start=1)}
    positions = {k: _position(source.positions[k]) for k in kept}
    derivations = {k: derivation(source.references[k]) for k in kept}
    segments = {number: _segment(number) for number in set(frames.segments)}
    found = []
    for at, k in enumerate(frames.slices):
        group = Dataset()
        number = frames.segments[at] if frames.segments else None
        content = Dataset()
        content.add(DataElement(0x00209157, "UL", [index[k]] if number is None else [number, index[k]]))
        group.add(DataElement(0x00089124, "SQ", [derivations[k]]))
        group.add(DataElement(0x00209111, "SQ", [content]))
        group.add(DataElement(0x00209113, "SQ", [positions[k]]))
        if number is not None:
            group.add(DataElement(0x0062000A, "SQ", [segments[number]]))
        found.append(group)
    return found


def _present(slices: np.ndarray, size: int) -> np.ndarray:
    """(K, size) booleans: whether a slice has a value."""
    return np.array([np.bincount(plane.ravel(), minlength=size)[:size] > 0 for plane in slices])


def _mask(plane: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """The pixels of a slice that have one of the values."""
    return plane == values[0] if len(values) == 1 else np.isin(plane, values)


def _packed(masks: Iterator[np.ndarray], size: int) -> Iterator[bytes]:
    """Masks of `size` pixels as bits, the first pixel in the lowest bit, without gaps between them."""
    together = 1 if size % _BITS == 0 else _BITS
    waiting: list[np.ndarray] = []
    for mask in masks:
        waiting.append(mask)
        if len(waiting) == together:
            yield _bits(waiting)
            waiting = []
    if waiting:
        yield _bits(waiting)


def _bits(masks: list[np.ndarray]) -> bytes:
    joined = masks[0] if len(masks) == 1 else np.concatenate([mask.ravel() for mask in masks])
    return np.packbits(joined, bitorder="little").tobytes()


def _even(pixels: bytes) -> bytes:
    """Pixels of an even length, as DICOM requires."""
    return pixels + b"\0" if len(pixels) % 2 else pixels


def _position(position: np.ndarray) -> Dataset:
    made = Dataset()
    made.ImagePositionPatient = [format_number_as_ds(float(value)) for value in position]
    return made


def _segment(number: int) -> Dataset:
    made = Dataset()
    made.ReferencedSegmentNumber = number
    return made
