"""The component rules of a model, applied to a label image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from volseg.config import ComponentRule, Label, labels_by_rule
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
        rules: by label name; of labels that may have one, see `volseg.config.labels_by_rule`.
        voxel_ml: volume of a voxel in millilitres.
        slab_voxels: voxels per slab.
        max_bytes: memory limit for the components; None for no limit.

    Returns:
        By label name: the rule, and the number of voxels it set to background, `voxels_removed`. Of a
        region inside one with a rule: the name of that one, `rule_of`, and how many of its own voxels went with it.

    Raises:
        ResourceError: the components need more than `max_bytes`; `labels` are unchanged.
    """
    if not rules:
        return {}
    groups = [inside for name, inside in labels_by_rule(table).items() if name in rules]
    by_value = {inside[0].value: rules[inside[0].name] for inside in groups}
    stored = {inside[0].value: inside[0].stored_values for inside in groups}
    lost = keep_components(labels, by_value, voxel_ml, slab_voxels, max_bytes, stored)
    done: dict[str, dict[str, Any]] = {}
    for outer, *others in groups:
        done[outer.name] = rules[outer.name].model_dump(include={"smallest_ml", "largest_only"})
        done |= {label.name: {"rule_of": outer.name} for label in others}
        for label in (outer, *others):
            done[label.name]["voxels_removed"] = sum(lost[value] for value in set(label.stored_values))
    return done
