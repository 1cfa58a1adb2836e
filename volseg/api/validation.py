"""Whole-volume validation: during training on the cached cases, and at the end of a run on the written label images."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from volseg.api.segmenter import Segmenter
from volseg.api.training.calibrate import calibrate
from volseg.config import ComponentRule, Plan, rules_in_words
from volseg.data.cases.cache import CachedCase
from volseg.data.cases.dataset import Dataset, TrainingCase
from volseg.data.cases.labels import table_of
from volseg.data.io.reading import read_channels, read_label, read_label_of
from volseg.data.io.writing import write_labels
from volseg.errors import InputError
from volseg.evaluation.label_distances import SurfaceOptions
from volseg.evaluation.overlap import label_overlaps
from volseg.evaluation.pairs import Pair, Pairs
from volseg.evaluation.report import Measures, as_measures, evaluate_pairs, summarise, without, write_report
from volseg.files import write_text
from volseg.inference.budget import windows_at_once
from volseg.inference.labelling import Labeller
from volseg.inference.windows import Windows
from volseg.postprocessing.applying import postprocess
from volseg.postprocessing.choosing import FILE_NAME, CaseScores, RuleScores, choose_rules
from volseg.postprocessing.tally import SIZES_ML, Scores, rule_scores
from volseg.progress import Progress
from volseg.text import printable
from volseg.training.loop import Validate
from volseg.training.ranks import Ranks

logger = logging.getLogger(__name__)


def validator(
    plan: Plan, cases: Sequence[CachedCase], dtype: torch.dtype, ranks: Ranks, unscored: Collection[str] = ()
) -> Validate | None:
    """Make a function that segments `cases` with a network and returns their Dice in image space.

    Each rank segments its shard of the cases, and all ranks get the same means.

    Args:
        plan: of the network.
        cases: the preprocessed validation cases.
        dtype: precision of the feature maps.
        ranks: the processes of the run.
        unscored: labels that the references do not have.

    Returns:
        None without cases; else a function of a network in evaluation mode that returns
        {"foreground_dice": mean over cases per label, then over labels; "dice": {label name: mean}}.
    """
    if not cases:
        return None
    values = {label.name: label.stored_values for label in plan.labels if label.name not in unscored}

    def overlaps(network: nn.Module, cached: CachedCase) -> dict[str, Measures]:
        device = next(network.parameters()).device
        windows = Windows(plan.patch_size, batch_size=windows_at_once(plan, dtype, device))
        volume = torch.from_numpy(cached.image[...])
        labels = Labeller(network, plan, windows, dtype).label(volume, cached.grid)
        try:
            case = cached.case
            reference = case.own.read(read_label_of, case.label, case.images[0], None, table_of(plan))
        except InputError as error:
            raise InputError(f"Case {cached.case.name} can no longer be read. {error}") from error
        if reference.channels[0].shape != labels.shape:
            raise InputError(
                f"Case {cached.case.name} has changed since the run began: its label image has the shape "
                f"{reference.channels[0].shape}, expected {labels.shape}. Restore it and resume the run."
            )
        by_label = label_overlaps(labels, reference.channels[0], values, reference.geometry.voxel_ml, plan.ignore)
        return without(as_measures(by_label), cached.case.own.missing(values))

    def validate(network: nn.Module) -> dict[str, Any]:
        found = ranks.gather({cached.case.name: overlaps(network, cached) for cached in ranks.shard(cases)})
        mean = summarise({cached.case.name: found[cached.case.name] for cached in cases})["mean"]
        dice = {name: measures["dice"] for name, measures in mean["labels"].items()}
        return {"foreground_dice": mean["foreground_dice"], "dice": dice}

    return validate


def validate_from_files(
    segmenter: Segmenter,
    data: Dataset,
    cases: Sequence[TrainingCase],
    run: Path,
    progress: Progress,
    ranks: Ranks,
) -> dict[str, Any]:
    """Segment the original scans with the saved model into RUN/validation, and score the written label images.

    The postprocessing rules are chosen on these cases and applied to the label images before they are scored; what they
    are chosen from is written to RUN/postprocessing.json. Each rank segments its shard of the scans; rank 0 scores all
    of them and writes validation.json and .csv.

    Args:
        segmenter: the saved model.
        data: the dataset, for its channels and labels.
        cases: the validation cases.
        run: the run folder.
        progress: called with the fraction of this rank's scans that is segmented.
        ranks: the processes of the run.

    Returns:
        The fields to add to the model card: "postprocessing"; "scores", the means of validation.json; "calibration".
    """
    plan = segmenter.card.plan
    pairs = [Pair(case.name, run / "validation" / f"{case.name}.nii.gz", case.label, case.own) for case in cases]
    shard = ranks.shard(list(zip(cases, pairs, strict=True)))
    # Labels that are kept from another model have no reference here.
    kept = {label.name: label.value for label in plan.labels if label.name not in data.labels.values}
    found, voxel_ml = {}, {}
    for done, (case, pair) in enumerate(shard):
        progress("validate", done / len(shard), case.name)
        found[case.name], voxel_ml[case.name] = _segment(segmenter, data, case, pair, kept)
    # All ranks get the same scores in the same order, so they choose the same rules.
    found = ranks.gather(found)
    rules, _ = choose_rules([found[case.name] for case in cases], plan.labels)
    logger.info("Postprocessing: %s", rules_in_words(rules))
    for case, pair in shard if rules else ():
        written = read_label(pair.prediction)
        labels = np.array(written.channels[0])
        postprocess(labels, plan.labels, rules, voxel_ml[case.name])
        write_labels(labels, written, pair.prediction)
    if ranks.first:
        every = tuple(CaseScores.of(printable(case.name), found[case.name]) for case in cases)
        write_text(run / FILE_NAME, RuleScores(smallest_ml=SIZES_ML, cases=every).model_dump_json())
    ranks.wait()
    scores = ranks.on_first_rank(lambda: _score(pairs, rules, data, list(kept.values()), run, progress))
    card = segmenter.card.model_copy(update={"postprocessing": rules})
    calibration = calibrate(replace(segmenter, card=card), cases, run, progress, ranks, kept)
    return {"postprocessing": rules, "scores": scores, "calibration": calibration}


def _segment(
    segmenter: Segmenter, data: Dataset, case: TrainingCase, pair: Pair, kept: Collection[str]
) -> tuple[Scores, float]:
    """Segment the scan of a case and write the labels.

    Returns:
        The Dice after each candidate rule, None of `kept` labels, which have no reference; the volume of a voxel, mL.
    """
    plan = segmenter.card.plan
    result = segmenter(read_channels(case.images, len(data.channels)))
    # Without a JSON record, because it would refer to a model file that does not have its scores yet.
    write_labels(result.labels, result.scan, pair.prediction)
    geometry = result.scan.geometry
    reference = case.own.read(read_label, pair.reference, geometry, None, table_of(plan)).channels[0]
    unknown = {*kept, *case.own.missing(data.labels.stored)}
    return rule_scores(result.labels, reference, plan, geometry.voxel_ml, unknown), geometry.voxel_ml


def _score(
    pairs: Sequence[Pair],
    rules: Mapping[str, ComponentRule],
    data: Dataset,
    kept: Sequence[int],
    run: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Compare the written label images with their references, write validation.json and .csv, and return the means."""
    document = evaluate_pairs(
        Pairs(tuple(pairs)), data.labels.stored, ignore=data.labels.ignore, surface=SurfaceOptions(), unscored=kept
    )
    documents = {name: rule.model_dump() for name, rule in rules.items()}
    write_report({**document, "postprocessing": documents}, run / "validation.json")
    dice = document["mean"]["foreground_dice"]
    progress("validate", 1.0, "no label was found" if dice is None else f"mean foreground Dice {dice:.4f}")
    return {"cases": len(pairs), **document["mean"]}
