"""A run after its last step: model, postprocessing, scores, report."""

import logging
from functools import partial
from typing import Any

from volseg.api.segmenter import Segmenter
from volseg.api.training.prepare import Run
from volseg.api.validation import validate_from_files
from volseg.data.cases.sources.case_labels import annotated_cases
from volseg.modelfile import ModelCard, save_model
from volseg.progress import Progress
from volseg.report.run_report import write_run_report
from volseg.training.run.case_keys import check_validation
from volseg.training.state import TrainingState

logger = logging.getLogger(__name__)


def _partial(run: Run) -> dict[str, Any]:
    """For the model card: in how many training cases each label is annotated, and the datasets that are joined."""
    names = [case.source for case in run.training]
    datasets = {name: names.count(name) for name in run.data.parts}
    annotated = annotated_cases([case.own for case in run.training], list(run.data.labels.values))
    found = {"datasets": datasets, "dataset_shares": run.shares, "annotated_cases": annotated}
    return {key: value for key, value in found.items() if value}


def finish_run(run: Run, state: TrainingState, progress: Progress) -> None:
    """Write the model, choose its postprocessing, score it on the validation cases, and write the report."""
    weights = state.ema.state_dict()
    card = ModelCard(
        name=f"{run.data.name}-fold{run.settings.fold}",
        plan=run.plan,
        training={
            "command": run.settings.command(run.data.name, run.config),
            "dataset": run.data.name,
            "licence": run.data.licence,
            "cases": len(run.training),
            "fold": run.settings.fold,
            "seed": run.settings.seed,
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            **run.settings.ended(run.plan.steps, state.step, state.seconds, run.finish or state.ended),
            **_partial(run),
            **{f"custom_{name}": text for name, text in (run.settings.parts | run.custom.described()).items()},
            **({"from": run.start.record()} if run.start else {}),
        },
    )
    model, ranks = run.folder / "model.safetensors", state.ranks
    if ranks.first:
        save_model(model, card, weights)
    ranks.wait()
    if run.validation:
        ranks.on_first_rank(partial(check_validation, run.folder, run.validation, run.plan))
        precision = run.config.training.precision
        segmenter = Segmenter.load(model, str(run.device), precision, network=run.custom.network)
        found = validate_from_files(segmenter, run.data, run.validation, run.folder, progress, ranks)
        if ranks.first:
            save_model(model, card.model_copy(update=found), weights)
    if ranks.first:
        write_run_report(run.folder)
    logger.info("Finished after %d steps and %.0f seconds: %s", state.step, state.seconds, model)
