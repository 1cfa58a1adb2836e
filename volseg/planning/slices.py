"""When a dataset is planned slice by slice (two dimensions), and what differs then.

World triples are in the order R, A, S; all others in network order (D, H, W), where D is the through-plane axis.
"""

from typing import Literal

import numpy as np

from volseg.config import Axis, NetworkConfig, PlanChoices, Triple
from volseg.errors import ConfigError
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.topology import Spacing, feature_map_size
from volseg.text import first_few

# With fewer slices a kernel of 3 through the plane sees mostly padding.
FEWEST_SLICES = 4
# Slices further apart than this many pixels share little: after nnU-Net's rule, kernels would reach the next slice only
# where the pixels of three stages have become one.
FURTHEST_PIXELS = 8.0
# nnU-Net plans the patches of slices so that this many fit a GPU. A CPU sees whole slices instead of more of them.
GPU_BATCH, CPU_BATCH = 12, 4
# The patches of volumes that a batch has at least; so many slices as fit the same memory are a batch of slices.
VOLUME_BATCH = 2


def through_plane_axis(fingerprint: Fingerprint, spacing_mm: Spacing) -> tuple[Axis, str]:
    """The world axis that becomes D, and why: the one with few slices, else that of the largest spacing.

    Args:
        fingerprint: of the training cases.
        spacing_mm: along R, A, S.

    Raises:
        ConfigError: some cases are single slices across one axis, others across another.
    """
    axes: tuple[Axis, ...] = (0, 1, 2)
    single: dict[Axis, list[str]] = {axis: [] for axis in axes}
    for case in fingerprint.cases:
        thin = [axis for axis in axes if case.shape[axis] == 1]
        if len(thin) == 1:
            single[thin[0]].append(case.name)
    planes = {axis: names for axis, names in single.items() if names}
    if len(planes) > 1:
        found = "; ".join(f"{len(names)} across {'RAS'[axis]} ({first_few(names)})" for axis, names in planes.items())
        raise ConfigError(
            f"The cases are single slices in different planes: {found}. One network sees slices of one plane: make a "
            "dataset of each plane, or correct the axes in the headers."
        )
    sizes = np.median([case.shape for case in fingerprint.cases], axis=0)
    # A tie goes to the axis nearest to S, then A.
    through: Axis = max(axes, key=lambda axis: (spacing_mm[axis], axis))
    fewest: Axis = min(axes, key=lambda axis: (sizes[axis], -spacing_mm[axis], -axis))
    if sizes[fewest] < FEWEST_SLICES:
        return fewest, f"{'RAS'[fewest]} has few slices: {sizes[fewest]:g} in the median scan"
    return through, f"{'RAS'[through]} has the largest spacing (a tie goes to S, then A)"


def choose_dimensions(
    fingerprint: Fingerprint, choices: PlanChoices, spacing_mm: Spacing, through_plane: Axis
) -> tuple[Literal[2, 3], str]:
    """Whether slices are segmented one by one, with kernels (1, k, k), and why.

    Args:
        fingerprint: of the training cases.
        choices: what the user has fixed; a patch size decides too.
        spacing_mm: of the network's grid.
        through_plane: the world axis that becomes D.
    """
    if choices.patch_size:
        depth = choices.patch_size[0]
        return (2, "patch_size has one slice") if depth == 1 else (3, f"patch_size has {depth} slices")
    slices = float(np.median([case.shape[through_plane] for case in fingerprint.cases]))
    if slices < FEWEST_SLICES:
        return 2, f"the median scan has {slices:g} slice{'s' * (slices != 1)}, too few for kernels through the plane"
    pixels = spacing_mm[0] / max(spacing_mm[1:])
    if pixels > FURTHEST_PIXELS:
        return 2, f"slices are {pixels:.1f} pixels apart, so neighbouring ones share little"
    return 3, f"the median scan has {slices:g} slices, {pixels:.1f} pixels apart"


def slice_spacing(fingerprint: Fingerprint, spacing_mm: Spacing, through_plane: Axis) -> tuple[Spacing, str]:
    """The spacing of a plan of slices, and why: along D, where nothing is resampled, the median distance of slices."""
    through = float(np.median([case.spacing_mm[through_plane] for case in fingerprint.cases]))
    why = f"median of the scans, per axis; along {'RAS'[through_plane]} each scan keeps its own slices"
    return (round(through, 5), spacing_mm[1], spacing_mm[2]), why


def slice_limits(median: Triple, values: float, accelerated: bool) -> tuple[Triple, float]:
    """The median scan as a network sees it, and the largest number of values in the feature maps of one slice.

    Args:
        median: voxels of the median scan on the network's grid.
        values: the same number for a patch of a volume.
        accelerated: whether training runs on a GPU.
    """
    at_once = GPU_BATCH if accelerated else CPU_BATCH
    return (1, median[1], median[2]), VOLUME_BATCH * values / at_once


def slice_batch(network: NetworkConfig, patch: Triple, values: float, voxels: int) -> tuple[int, str]:
    """The number of slices in a batch, and why.

    Args:
        network: of the plan.
        patch: (1, H, W).
        values: largest number of values in the feature maps of a patch of a volume.
        voxels: of all cases.
    """
    fitting = round(VOLUME_BATCH * values / feature_map_size(network, patch))
    varied = max(GPU_BATCH, round(0.05 * voxels / (patch[1] * patch[2])))
    if varied < fitting:
        return varied, f"nnU-Net's {GPU_BATCH} slices, or 5 % of all voxels if that is more"
    return max(fitting, 2), f"as many slices as take the memory of {VOLUME_BATCH} patches of volumes"


def slice_reasons(choices: PlanChoices) -> dict[str, str]:
    """The reasons for values that follow from two dimensions, unless the user has set them."""
    reasons = {
        "network.kernels": "1 through the plane, because each slice is by itself, and 3 in-plane",
        "network.strides": "in-plane axes within twice the smallest spacing are halved while 4 voxels remain",
    }
    if not choices.block:
        reasons["network.block"] = "a kernel within the plane has no through-plane half"
    return reasons
