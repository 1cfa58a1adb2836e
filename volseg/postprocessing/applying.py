"""The component rules of a model, applied to a label image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from volseg.config import ComponentRule, Label
from volseg.postprocessing.components import SLAB_VOXELS, keep_components


def postprocess(
    labels: np.ndarray,
    table: Sequence[Label],
    rules: Mapping[str, ComponentRule],
    voxel_ml: float,
    slab_voxels: int = SLAB_VOXELS,
    max_bytes: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Apply rules to a label image, in place.

    Args:
        labels: (I, J, K) uint8 or uint16, written to.
        table: the labels of the image.
        rules: by label name; of labels that may have one, see `volseg.config.may_have_rules`.
        voxel_ml: volume of a voxel in millilitres.
        slab_voxels: voxels per slab.
        max_bytes: memory limit for the components; None for no limit.

    Returns:
        By label name: the rule, and the number of voxels it set to background, `voxels_removed`. Of regions that lie
        within another one with a rule: its name as `rule_of`, and the same number of their own voxels.

    Raises:
        ResourceError: the components need more than `max_bytes`; `labels` are unchanged.
    """
    ruled = [label for label in table if label.name in rules]
    by_value = {label.value: rules[label.name] for label in ruled}
    stored = {label.value: label.stored_values for label in ruled}
    lost = keep_components(labels, by_value, voxel_ml, slab_voxels, max_bytes, stored)
    done = {}
    for outer in ruled:
        for label in table:
            if set(label.stored_values) <= set(outer.stored_values):
                rule = rules[outer.name].model_dump(include={"smallest_ml", "largest_only"})
                what = rule if label is outer else {"rule_of": outer.name}
                removed = sum(lost[value] for value in label.stored_values)
                done[label.name] = {**what, "voxels_removed": removed}
    return done
