"""A coarser grid where a patch would see too little of a scan to know where in the body it is.

nnU-Net v2 trains a second network at low resolution where a patch has less than a quarter of the median scan's voxels
(Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, supplementary note 2). On a CPU, whose patches are small, volseg
plans the low resolution only, as far as the smallest label allows.
"""

import math
from collections.abc import Callable

import numpy as np

from volseg.config import Triple
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.topology import Spacing, sizes_text

# The least fraction of the median scan that a patch should see.
COVERAGE = 0.25
# The fewest voxels of the smallest label, in the median case that has it: a ball with a diameter of eight.
FEWEST_VOXELS = 250
# Spacings grow by this factor at a time.
STEP = 1.1
# Axes whose spacing is at most this fraction of the largest grow alone, as in nnU-Net.
FINER = 0.5


def coverage(patch: Triple, median: Triple) -> float:
    """The fraction of the median scan's voxels that a patch sees."""
    seen = (min(edge, whole) / whole for edge, whole in zip(patch, median, strict=True))
    return math.prod(seen)


def coarser_spacing(
    spacing_mm: Spacing,
    smallest_ml: float,
    median_of: Callable[[Spacing], Triple],
    patch_of: Callable[[Spacing], Triple],
) -> Spacing:
    """The finest spacing at which a patch sees enough, or the coarsest that the smallest label allows.

    Args:
        spacing_mm: of the scans, (D, H, W).
        smallest_ml: volume of the smallest label, mL.
        median_of: the voxels of the median scan at a spacing.
        patch_of: the patch size at a spacing.
    """
    found = spacing_mm
    while coverage(patch_of(found), median_of(found)) < COVERAGE:
        finer = [along <= FINER * max(found) for along in found]
        d, h, w = (along * STEP if alone or not any(finer) else along for along, alone in zip(found, finer, strict=True))
        if 1000 * smallest_ml < FEWEST_VOXELS * d * h * w:
            break
        found = (d, h, w)
    return (round(found[0], 5), round(found[1], 5), round(found[2], 5))


def smallest_label_ml(fingerprint: Fingerprint) -> float:
    """The volume of the smallest label, in the median of the cases that have it, mL; 0 where no label has a volume."""
    medians = []
    for name in fingerprint.cases[0].volumes_ml:
        volumes = [case.volumes_ml[name] for case in fingerprint.cases if case.volumes_ml[name] and not case.unstated]
        if volumes:
            medians.append(float(np.median(volumes)))
    return min(medians, default=0.0)


def sees_little(patch: Triple, median: Triple) -> str:
    """A warning with the numbers if a patch sees less than `COVERAGE` of the median scan, else ""."""
    seen = coverage(patch, median)
    if seen >= COVERAGE:
        return ""
    return (
        f"a patch of {sizes_text(patch)} sees {100 * seen:.2g} % of the median scan of {sizes_text(median)} voxels, less "
        f"than {100 * COVERAGE:.0f} %: it may not tell where in the body it is. A coarser plan.spacing_mm sees more"
    )
