"""Whether the labels of a result lie to each other as in a patient whose scan has another orientation.

The training cases tell how far each label lies from the centre of all labels along R, A, S. Where a liver is found on
the left, the scan is mirrored, however sure the network is.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from volseg.config import ScanRanges
from volseg.data.grid.geometry import Geometry, ras_order
from volseg.planning.sides import left_right_pairs
from volseg.suspicion.finding import Finding
from volseg.suspicion.places import Places
from volseg.suspicion.turns import SAME, Turn, in_words, turns

# Offsets may be beyond the range of the training cases by this much, and are wrong beyond the second: fractions of the
# edges of all labels.
NEAR, WRONG = 0.05, 0.15
# The fewest labels that have a layout: two may lie as they like, and some rotation explains it.
FEWEST = 3


def question_layout(places: Places, geometry: Geometry, ranges: ScanRanges | None) -> list[Finding]:
    """`orientation_suspect` if labels lie where no training case has them, and in another orientation all are right.

    Args:
        places: of the labels of a result.
        geometry: of its label image.
        ranges: of the training scans; None: they are not known, and nothing is suspect.
    """
    if ranges is None or not ranges.offsets:
        return []
    offsets = {name: one for name, one in _offsets(places, geometry).items() if name in ranges.offsets}
    if len(offsets) < FEWEST:
        return []
    far = _outside(offsets, SAME, ranges)
    if max(far.values()) <= WRONG:
        return []
    for turn, turned_offsets in _candidates(offsets):
        if max(_outside(turned_offsets, turn, ranges).values()) <= NEAR:
            worst = max(far, key=far.__getitem__)
            sentence = (
                f"By the places of its labels the scan looks {in_words(turn)}: {worst} lies where it lies in no "
                "training case. The header seems to state a wrong orientation; the labels are as it states."
            )
            return [Finding("orientation_suspect", sentence)]
    return []


def _offsets(places: Places, geometry: Geometry) -> dict[str, np.ndarray]:
    """As `CaseFingerprint.offsets`."""
    order, flips = ras_order(geometry.affine)
    signs = np.where(flips, -1, 1)
    return {
        name: signs * ((centre - places.centre) / places.edges)[list(order)] for name, centre in places.centres.items()
    }


def _candidates(offsets: Mapping[str, np.ndarray]) -> Iterator[tuple[Turn, Mapping[str, np.ndarray]]]:
    """Other orientations: rotations first, then mirrored ones if there are left and right labels.

    Of a mirrored scan a network may find a left label by its place, on the left of the scan, where the right one is. So
    both are tried: the offsets as they are, and with partners exchanged.
    """
    for turn in turns():
        yield turn, offsets
    pairs = left_right_pairs(offsets)
    partners = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
    exchanged = {partners.get(name, name): one for name, one in offsets.items()}
    if pairs:
        for turn in turns(mirrored=True):
            yield turn, offsets
            yield turn, exchanged


def _outside(offsets: Mapping[str, np.ndarray], turn: Turn, ranges: ScanRanges) -> dict[str, float]:
    """How far each label, after a turn, is outside of where the training cases have it, along the worst axis."""
    found = {}
    for name, offset in offsets.items():
        low, high = np.array(ranges.offsets[name]).T
        placed = np.array(turn) @ offset
        found[name] = float(np.maximum(np.maximum(low - placed, placed - high), 0).max())
    return found
