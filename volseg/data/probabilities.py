"""Probabilities of all classes onto disk, written a few rows at a time and never held in memory."""

import math
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from volseg.config import Triple
from volseg.data.geometry import GridMap
from volseg.files import room_for, whole_file

# Bytes written between two times that the file's pages are handed back to the system.
_PAGES = 1 << 28


@contextmanager
def probability_file(
    path: Path, grid: GridMap, order: Triple, classes: int, regions: bool
) -> Iterator[Callable[[int, slice, torch.Tensor], None]]:
    """Open `path`, a .npy file of (C, I, J, K) float16, which appears whole or not at all.

    Args:
        path: where it goes.
        grid: leads from the network's grid, whose cut-out the logits lie on, to the stored one.
        order: axes of the cut-out in the order the planes come in.
        classes: C; the first is the background, unless they are regions.
        regions: whether the classes overlap: a sigmoid each, else a softmax over them.

    Yields:
        A function of a plane, its rows, and their logits (C, rows, columns) float32. Outside the cut-out all is
        background.

    Raises:
        ResourceError: the disk lacks the room, which is found out before anything is computed.
    """
    shape = (classes, *grid.stored_shape)
    size = 2 * math.prod(shape)
    with whole_file(path) as temporary:
        room_for(path, size)
        # The plane's axis is the slowest in the file where it can be, so that a plane is written in one piece.
        stored = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float16, shape=shape, fortran_order=grid.axes[order[0]] == 2
        )
        with open(temporary, "r+b") as handle:
            # A full disk is an error here, and a crash where a mapped page finds no room.
            os.posix_fallocate(handle.fileno(), 0, stored.offset + size)
        if not regions and grid.box_shape != grid.stored_shape:
            stored[0] = 1
        planes = grid.into(stored).transpose(0, *(axis + 1 for axis in order))
        written = 0

        def write(plane: int, rows: slice, logits: torch.Tensor) -> None:
            nonlocal written
            probabilities = torch.sigmoid(logits) if regions else torch.softmax(logits, 0)
            planes[:, plane, rows] = probabilities.to(torch.float16).cpu().numpy()
            written += 2 * probabilities.numel()
            if written > _PAGES:
                _hand_back(stored)
                written = 0

        yield write
        stored.flush()


def _hand_back(stored: np.memmap) -> None:
    """Let the system keep what was written, instead of this process."""
    pages = stored._mmap  # type: ignore[attr-defined]  # numpy has no public way to it
    if hasattr(mmap, "MADV_DONTNEED"):
        stored.flush()
        pages.madvise(mmap.MADV_DONTNEED)
