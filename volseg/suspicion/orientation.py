"""Whether a scan looks as if its header stated another orientation than the patient had.

A network that was trained on scans in one orientation is unsure of others. So the middle of a scan whose result is poor
is segmented under each of the 24 headers that differ by quarter turns, with windows that do not overlap, and the
expected Dice of these results is compared. Nothing of this changes the labels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from volseg.confidence.estimate import Confidence, estimate
from volseg.confidence.sums import Sums, SumsObserver
from volseg.config import Plan
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network
from volseg.data.io.reading import Scan
from volseg.inference.budget import ChunkSize, MemoryEstimate
from volseg.inference.labelling import Labeller, computing, predictor_of
from volseg.inference.stream import Engine, stream_logits, stream_order
from volseg.inference.windows import Windows
from volseg.modelfile.calibration import Calibration
from volseg.planning.sides import left_right_pairs
from volseg.progress import Progress, silent
from volseg.suspicion.finding import Finding
from volseg.suspicion.turns import SAME, Turn, in_words, turned, turns

# How much higher the expected Dice of another orientation has to be, and that of a mirrored one against all others.
CLEARLY = 0.05
# How much of its longest edge the middle of a scan keeps at a time, until it is small enough.
SHRINK = 0.9


@dataclass(frozen=True)
class Search:
    """What a search for a better orientation needs.

    Args:
        labeller: the network, and the windows of the first result.
        need: the memory that was planned for the first result.
        chunk: how much is computed at a time.
        progress: called after each window, and may end the search; all windows of the first result are done.
    """

    labeller: Labeller
    need: MemoryEstimate
    chunk: ChunkSize
    progress: Progress = silent

    @property
    def calibration(self) -> Calibration | None:
        """That of the model."""
        return self.need.card.calibration

    @property
    def plan(self) -> Plan:
        """The plan of the model."""
        return self.labeller.plan

    @property
    def is_possible(self) -> bool:
        """Whether the model goes by the orientation in a header and is calibrated; no for slices made upright."""
        return self.calibration is not None and self.plan.orientation == "ras" and not self.need.scan.untilt


def question_orientation(search: Search) -> list[Finding]:
    """`orientation_suspect` if another orientation of the scan gives a clearly better result, and not a poor one.

    It computes at most as many windows as the first result took, or one per orientation, and takes no more memory.
    Mirrored orientations are tried only for models with left and right labels, where they take as long again.
    """
    scan = middle(search)
    found = _tried(search, scan, tuple(turns()), "orientation")
    best = max(found, key=lambda turn: found[turn][0])
    here, dice = found[SAME][0], found[best][0]
    if left_right_pairs(label.name for label in search.plan.labels):
        mirrored = _tried(search, scan, tuple(turns(mirrored=True)), "mirrored orientation")
        other = max(mirrored, key=lambda turn: mirrored[turn][0])
        if mirrored[other][0] >= dice + CLEARLY:
            found, best, dice = mirrored, other, mirrored[other][0]
    if dice < max(here + CLEARLY, found[best][1]):
        return []
    sentence = (
        f"The scan looks {in_words(best)}: its expected Dice is then {dice:.2f} instead of {here:.2f}. The header "
        "seems to state a wrong orientation; the labels are as it states."
    )
    return [Finding("orientation_suspect", sentence)]


def _tried(search: Search, scan: Scan, candidates: Sequence[Turn], called: str) -> dict[Turn, tuple[float, float]]:
    """By orientation the expected Dice of all labels, and the one from which on a result is not poor."""
    found = {}
    for number, turn in enumerate(candidates):

        def show(_done: int, _windows: int, text: str = f"{called} {number + 1} of {len(candidates)}") -> None:
            search.progress("segment", 1.0, text)

        found[turn] = expected_dice(search, scan, turn, show)
    return found


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
        orders = {tuple(tuple(abs(one) for one in row) for row in turn) for turn in turns()}
        every = [replace(coarse, scan=replace(part, geometry=turned(part.geometry, order))) for order in orders]
        if (
            all(one.window_count <= windows and _peak(search, one) <= most for one in every)
            or max(part.geometry.shape) == 1
        ):
            return part
        extent[extent.argmax()] *= SHRINK


def expected_dice(
    search: Search, scan: Scan, turn: Turn, show: Callable[[int, int], None] | None = None
) -> tuple[float, float]:
    """The expected Dice if the header of `scan` were that after a turn, and the one from which on it is not poor.

    Both are means over the labels with a threshold, weighted by the sizes of their masks and probabilities: (0, 1)
    without any. `show` is called after each window.
    """
    labeller = search.labeller
    geometry = turned(scan.geometry, turn)
    volume, grid = image_to_network(scan.channels, geometry, search.plan, device=labeller.device)
    predictor = predictor_of(labeller.network, labeller.device, labeller.dtype)
    engine = Engine(predictor, _coarse(labeller.windows), labeller.device, progress=show)
    calibration = search.calibration
    assert calibration is not None
    observer = SumsObserver(search.plan, (calibration.temperature,))
    d, h, w = volume.shape[1:]
    settings = computing(engine, volume, labeller.dtype, search.chunk.keep_freed)
    # Other scans at work wait for the device as well.
    with labeller.turns or nullcontext(), torch.inference_mode(), settings:
        for first, logits in stream_logits(volume, engine, stream_order((d, h, w))):
            observer(first, logits)
    sums = Sums(*(values[0] for values in observer.sums))
    unstated: dict[str, float | None] = dict.fromkeys(label.name for label in search.plan.labels)
    found = estimate(sums, calibration, unstated, geometry.voxel_ml * grid.coarseness)
    sizes = dict(zip(found, (sums.mask + sums.probability).tolist(), strict=True))
    return _together(found, sizes, calibration)


def _together(
    found: Mapping[str, Confidence], sizes: Mapping[str, float], calibration: Calibration
) -> tuple[float, float]:
    """See `expected_dice`."""
    dice, limits, total = 0.0, 0.0, 0.0
    for name, one in found.items():
        limit = calibration.labels[name].low_confidence if name in calibration.labels else None
        if one.expected_dice is not None and limit is not None:
            dice += sizes[name] * one.expected_dice
            limits += sizes[name] * limit
            total += sizes[name]
    return (dice / total, limits / total) if total else (0.0, 1.0)


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


def _label_bytes(scan: Scan, plan: Plan) -> int:
    """The size in bytes of a label image."""
    return math.prod(scan.geometry.shape) * (1 if max(label.value for label in plan.labels) < 256 else 2)


def _peak(search: Search, need: MemoryEstimate) -> int:
    """Bytes that are needed at most at a time, in memory and on a GPU."""
    return max(need.parts(search.chunk).values()) + (need.gpu_bytes if need.device.type == "cuda" else 0)
