"""Whether a scan looks as if its header stated another orientation than the patient had.

A network that was trained on scans in one orientation is unsure of others. So the middle of a scan whose result is poor
is segmented under each of the 24 headers that differ by quarter turns, with windows that do not overlap, and the
expected Dice of these results is compared. Nothing of this changes the labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import TypeAlias

import numpy as np
import torch

from volseg.config import Plan
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network
from volseg.data.io.reading import Scan
from volseg.inference.budget import ChunkSize, MemoryEstimate
from volseg.inference.labelling import Labeller, computing, predictor_of
from volseg.inference.stream import Engine, stream_logits, stream_order
from volseg.inference.windows import Windows
from volseg.planning.sides import left_right_pairs
from volseg.suspicion.finding import Finding

# How much higher the expected Dice of another orientation has to be, and that of a mirrored one against all others.
CLEARLY = 0.02
DIRECTIONS = (("left", "right"), ("back", "front"), ("foot", "head"))
AXES = ("left-right", "back-front", "foot-head")
SAME = np.eye(3, dtype=int)
# How much of its longest edge the middle of a scan keeps at a time, until it is small enough.
SHRINK = 0.9
Turn: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Search:
    """What a search needs.

    Args:
        labeller: the network, and the windows of the first result.
        need: the memory that was planned for the first result.
        chunk: how much is computed at a time.
        temperature: of the calibrated probabilities.
        good: the expected Dice from which on a result is not poor.
    """

    labeller: Labeller
    need: MemoryEstimate
    chunk: ChunkSize
    temperature: float
    good: float

    @property
    def plan(self) -> Plan:
        """The plan of the model."""
        return self.labeller.plan


def question_orientation(search: Search) -> list[Finding]:
    """`orientation_suspect` if another orientation of the scan gives a clearly better result, and not a poor one.

    It computes no more windows than the first result took, or one per orientation, and takes no more memory. Mirrored
    orientations are tried only for models with left and right labels: of others, a mirrored scan looks like a scan.
    """
    scan = middle(search)
    found = {turn: expected_dice(search, scan, np.array(turn)) for turn in turns()}
    here = found[_key(SAME)]
    turn = max(found, key=found.__getitem__)
    if left_right_pairs([label.name for label in search.plan.labels]):
        mirrored = {one: expected_dice(search, scan, np.array(one)) for one in turns(mirrored=True)}
        best = max(mirrored, key=mirrored.__getitem__)
        if mirrored[best] > found[turn] + CLEARLY:
            found, turn = mirrored, best
    if found[turn] < max(here + CLEARLY, search.good):
        return []
    sentence = (
        f"The scan looks {in_words(np.array(turn))}: so its expected Dice is {found[turn]:.2f} instead of {here:.2f}. "
        "The header seems to state a wrong orientation; the labels are as it states."
    )
    return [Finding("orientation_suspect", sentence)]


def turns(mirrored: bool = False) -> Iterator[Turn]:
    """The 24 rotations by quarter turns, as rows of 3 x 3 matrices of patient axes R, A, S; or their mirror images."""
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            matrix = np.zeros((3, 3), int)
            matrix[range(3), order] = signs
            if (np.linalg.det(matrix) < 0) == mirrored:
                yield _key(matrix)


def turned(geometry: Geometry, turn: np.ndarray) -> Geometry:
    """The geometry of a scan whose header states what `turn` (3 x 3) makes of its patient axes; its centre stays."""
    centre = geometry.affine[:3, :3] @ ((np.array(geometry.shape) - 1) / 2) + geometry.affine[:3, 3]
    change = np.eye(4)
    change[:3, :3] = turn
    change[:3, 3] = centre - turn @ centre
    return Geometry(geometry.shape, change @ geometry.affine)


def in_words(turn: np.ndarray) -> str:
    """What has happened to a scan that `turn` sets right."""
    if np.array_equal(turn, np.diag([-1, 1, 1])):
        return "mirrored left-right"
    ends = []
    for axis in range(3):
        world, is_forward = int(np.abs(turn[:, axis]).argmax()), int(turn[:, axis].max())
        if turn[axis, axis] != 1:
            ends.append(f"its {DIRECTIONS[axis][1]} is the patient's {DIRECTIONS[world][is_forward]}")
    if np.linalg.det(turn) < 0:
        return f"mirrored and rotated ({', '.join(ends)})"
    fixed = [axis for axis in range(3) if turn[axis, axis] == 1]
    if not fixed:
        return f"rotated ({', '.join(ends)})"
    degrees = 180 if np.trace(turn) == -1 else 90
    return f"rotated by {degrees} degrees about the {AXES[fixed[0]]} axis ({', '.join(ends)})"


def middle(search: Search) -> Scan:
    """The middle of the scan: as much as can be segmented in every orientation within the windows and the memory that
    the first result took; views of its channels."""
    need = search.need
    scan, most = need.scan, _peak(search, need)
    windows = max(1, need.window_count // 24)
    coarse = replace(need, windows=_coarse(need.windows), probabilities=False)
    extent = np.multiply(scan.geometry.shape, scan.geometry.spacing_mm)
    while True:
        part = _cropped(scan, extent)
        # A change of sign changes neither the grid nor the memory.
        orders = {tuple(map(tuple, np.abs(turn))): np.abs(turn) for turn in turns()}.values()
        every = [replace(coarse, scan=replace(part, geometry=turned(part.geometry, order))) for order in orders]
        if (
            all(one.window_count <= windows and _peak(search, one) <= most for one in every)
            or max(part.geometry.shape) == 1
        ):
            return part
        extent[extent.argmax()] *= SHRINK


def expected_dice(search: Search, scan: Scan, turn: np.ndarray) -> float:
    """The expected Dice of all labels together, if the header of `scan` were that after `turn`; 0 without labels."""
    labeller = search.labeller
    geometry = turned(scan.geometry, turn)
    volume, _ = image_to_network(scan.channels, geometry, search.plan, device=labeller.device)
    predictor = predictor_of(labeller.network, labeller.device, labeller.dtype)
    engine = Engine(predictor, _coarse(labeller.windows), labeller.device)
    d, h, w = volume.shape[1:]
    both, sizes = 0.0, 0.0
    with torch.inference_mode(), computing(labeller.device, labeller.dtype, search.chunk.keep_freed):
        for _, logits in stream_logits(volume, engine, stream_order((d, h, w))):
            found = _overlap(logits / search.temperature, search.plan.regions)
            both, sizes = both + found[0], sizes + found[1]
    return 2 * both / sizes if both else 0.0


def _overlap(logits: torch.Tensor, regions: bool) -> tuple[float, float]:
    """The overlap of masks with their probabilities, and the size of both, over all labels.

    Soft Dice confidence is twice the first by the second, see arXiv 2402.10665.
    """
    if regions:
        probabilities = torch.sigmoid(logits)
        inside = logits > 0
        return float(probabilities[inside].sum()), float(inside.sum() + probabilities.sum())
    probabilities = torch.softmax(logits, 0)
    top, winner = probabilities.max(0)
    inside = winner > 0
    return float(top[inside].sum()), float(inside.sum() + (1 - probabilities[0]).sum())


def _coarse(windows: Windows) -> Windows:
    """Windows that do not overlap, without flips."""
    return replace(windows, overlap=0.0, mirror_axes=())


def _cropped(scan: Scan, extent_mm: np.ndarray) -> Scan:
    """The middle of a scan with about these edges along I, J and K, at least a voxel."""
    whole = np.array(scan.geometry.shape)
    size = np.clip(np.round(extent_mm / scan.geometry.spacing_mm), 1, whole).astype(int)
    start = (whole - size) // 2
    affine = scan.geometry.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    part = tuple(slice(one, one + count) for one, count in zip(start, size, strict=True))
    channels = tuple(channel[part] for channel in scan.channels)
    return replace(scan, channels=channels, geometry=Geometry((size[0], size[1], size[2]), affine))


def _peak(search: Search, need: MemoryEstimate) -> int:
    """Bytes that are needed at most at a time, in memory and on a GPU."""
    return max(need.parts(search.chunk).values()) + (need.gpu_bytes if need.device.type == "cuda" else 0)


def _key(turn: np.ndarray) -> Turn:
    """A 3 x 3 matrix as rows, for keys."""
    first, second, third = (tuple(map(int, row)) for row in turn)
    return first, second, third
