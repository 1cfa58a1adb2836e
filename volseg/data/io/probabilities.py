"""Class probabilities in image space: into an array, or streamed to disk and never held in memory."""

import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from volseg.config import Triple
from volseg.data.grid.geometry import GridMap
from volseg.files import require_disk_space, whole_file

# Bytes of the file's pages that are touched between two times that they are handed back to the system.
HELD_BYTES = 1 << 28
_ZEROS = bytes(1 << 20)

# Called with a plane, its rows, and their logits (C, rows, columns) float32.
Write: TypeAlias = Callable[[int, slice, torch.Tensor], None]


@contextmanager
def probability_file(path: Path, grid: GridMap, order: Triple, classes: int, regions: bool) -> Iterator[Write]:
    """Open `path`, a .npy file of (C, I, J, K) float16, which appears whole or not at all.

    Args:
        path: where it goes.
        grid: the mapping from network space, on whose cut-out the logits are, to image space.
        order: axes of the cut-out in the order the planes come in.
        classes: C; the first is the background, unless they are regions.
        regions: whether the classes overlap: a sigmoid each, else a softmax over them.

    Yields:
        What writes the probabilities of logits. Outside the cut-out all is background.

    Raises:
        ResourceError: the disk lacks the room, which is checked before anything is computed.
    """
    shape = (classes, *grid.stored_shape)
    size = 2 * math.prod(shape)
    fortran = _fortran_order(shape, 1 + grid.axes[order[0]])
    with whole_file(path) as temporary:
        require_disk_space(path, size)
        stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape, fortran_order=fortran)
        _reserve(temporary, stored.offset, size)
        pages = _Pages(stored)
        if not regions and math.prod(grid.box_shape) < math.prod(grid.stored_shape):
            for outside in np.moveaxis(stored[0], 2 if fortran else 0, 0):
                pages.write(outside, np.float16(1))
        planes = grid.into(stored).transpose(0, *(axis + 1 for axis in order))

        def write(plane: int, rows: slice, logits: torch.Tensor) -> None:
            pages.write(planes[:, plane, rows], _probabilities(logits, regions))

        yield write
        stored.flush()


def probability_array(grid: GridMap, order: Triple, classes: int, regions: bool) -> tuple[np.ndarray, Write]:
    """An array (C, I, J, K) float16 in memory, and what writes the probabilities of logits to it.

    Args:
        grid: as of `probability_file`.
        order: likewise.
        classes: likewise.
        regions: likewise.
    """
    shape = (classes, *grid.stored_shape)
    stored = np.zeros(shape, np.float16, order="F" if _fortran_order(shape, 1 + grid.axes[order[0]]) else "C")
    if not regions:
        stored[0] = 1
    planes = grid.into(stored).transpose(0, *(axis + 1 for axis in order))

    def write(plane: int, rows: slice, logits: torch.Tensor) -> None:
        planes[:, plane, rows] = _probabilities(logits, regions)

    return stored, write


def _probabilities(logits: torch.Tensor, regions: bool) -> np.ndarray:
    """(C, rows, columns) float16."""
    probabilities = torch.sigmoid(logits) if regions else torch.softmax(logits, 0)
    return probabilities.to(torch.float16).cpu().numpy()


class _Pages:
    """Writes to a mapped file, and hands its pages back to the system before many of them are held.

    Args:
        stored: all of the file's values.
    """

    def __init__(self, stored: np.memmap) -> None:
        self.stored = stored
        self.held = 0
        # Otherwise the system maps up to 2 MB around each byte that is written.
        self._advise("MADV_RANDOM")

    def write(self, part: np.ndarray, values: np.ndarray | np.float16) -> None:
        """Set a part of the file."""
        part[...] = values
        self.held += _touched_bytes(part.shape, part.strides)
        if self.held > HELD_BYTES:
            self.held = 0
            self._hand_back()

    def _hand_back(self) -> None:
        """Let the system keep what was written, instead of this process."""
        self.stored.flush()
        self._advise("MADV_DONTNEED")

    def _advise(self, name: str) -> None:
        """Tell the system how the pages are used, where it can be told."""
        if hasattr(mmap, name):
            self.stored._mmap.madvise(getattr(mmap, name))  # type: ignore[attr-defined]  # numpy has no public way


def _fortran_order(shape: Sequence[int], axis: int) -> bool:
    """Whether planes across `axis` of a float16 array touch fewer pages where its last axis is the slowest one."""

    def touched(fortran: bool) -> int:
        sizes = shape if fortran else shape[::-1]
        strides = [2 * math.prod(sizes[:faster]) for faster in range(len(sizes))]
        both = list(zip(shape, strides if fortran else strides[::-1], strict=True))
        del both[axis]
        return _touched_bytes(*zip(*both, strict=True))

    return touched(True) < touched(False)


def _touched_bytes(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Bytes of the pages that writing a float16 array touches: those of every run without a gap of a page.

    A run begins and ends within a page, which on average makes one page more than its own bytes.
    """
    run, runs = 2, 1
    for stride, size in sorted((abs(stride), size) for stride, size in zip(strides, shape, strict=True)):
        if stride <= max(run, mmap.PAGESIZE):
            run += (size - 1) * stride
        else:
            runs *= size
    return runs * (run + mmap.PAGESIZE)


def _reserve(path: Path, offset: int, size: int) -> None:
    """Take the room of a file's `size` bytes after `offset`, which it lacks until then and reads as zeros.

    A full disk is an error here, and a crash where a mapped page finds no room.
    """
    with open(path, "r+b") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), offset, size)
            return
        handle.seek(offset)
        for start in range(0, size, len(_ZEROS)):
            handle.write(_ZEROS[: size - start])
