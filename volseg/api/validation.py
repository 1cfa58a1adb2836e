"""Whole-volume validation: while training from the cached cases, and at its end from written files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from volseg.api.labelling import label_volume
from volseg.api.segmenter import Segmenter
from volseg.config import Plan
from volseg.data.cache import CachedCase
from volseg.data.dataset import DataSet, TrainingCase
from volseg.data.reading import read_channels, read_label
from volseg.data.writing import write_labels
from volseg.evaluation.overlap import Overlap, label_overlaps
from volseg.evaluation.pairs import Pair, Pairs
from volseg.evaluation.report import evaluate_pairs, summarise, write_report
from volseg.inference.windows import Windows
from volseg.progress import Progress
from volseg.training.loop import Validate


def validator(plan: Plan, cases: Sequence[CachedCase], dtype: torch.dtype) -> Validate | None:
    """A function that segments `cases` with a network and returns their Dice on the original grids.

    Returns:
        None without cases; else a function of a network in evaluation mode, returning
        {"foreground_dice": mean over cases per label, then over labels; "dice": {label name: mean}}.
    """
    if not cases:
        return None
    values = {label.name: label.stored_values for label in plan.labels}
    windows = Windows(plan.patch_size)

    def overlaps(network: nn.Module, cached: CachedCase) -> dict[str, Overlap]:
        volume = torch.from_numpy(np.array(cached.image))
        labels = label_volume(network, volume, cached.grid, plan, windows, dtype)
        reference = read_label(cached.case.label)
        return label_overlaps(labels, reference.channels[0], values, reference.geometry.voxel_ml, plan.ignore)

    def validate(network: nn.Module) -> dict[str, Any]:
        mean = summarise({cached.case.name: overlaps(network, cached) for cached in cases})["mean"]
        dice = {name: measures["dice"] for name, measures in mean["labels"].items()}
        return {"foreground_dice": mean["foreground_dice"], "dice": dice}

    return validate


def validate_from_files(
    model: Path,
    data: DataSet,
    cases: Sequence[TrainingCase],
    run: Path,
    device: str,
    precision: str,
    progress: Progress,
) -> dict[str, Any]:
    """Segment the original scans with the written model into RUN/validation, and score what was written.

    Returns:
        The means of validation.json: what goes into the model file as its scores.
    """
    segmenter = Segmenter.load(model, device=device, precision=precision)
    pairs = []
    for done, case in enumerate(cases):
        progress("validate", done / len(cases), case.name)
        written = run / "validation" / f"{case.name}.nii.gz"
        result = segmenter(read_channels(case.images, len(data.channels)))
        # No record: it would name a model file that is still without its scores.
        write_labels(result.labels, result.scan, written)
        pairs.append(Pair(case.name, written, case.label))
    document = evaluate_pairs(Pairs(tuple(pairs)), data.labels.stored, ignore=data.labels.ignore)
    write_report(document, run / "validation.json")
    dice = document["mean"]["foreground_dice"]
    progress("validate", 1.0, "no label was found" if dice is None else f"mean foreground Dice {dice:.4f}")
    return {"cases": len(cases), **document["mean"]}
