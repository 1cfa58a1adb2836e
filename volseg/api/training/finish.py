"""A run after its last step: model, postprocessing, scores, report."""

import logging
from functools import partial

from volseg.api.training.prepare import Run
from volseg.api.validation import validate_from_files
from volseg.modelfile import ModelCard, save_model
from volseg.progress import Progress
from volseg.report.run_report import write_run_report
from volseg.training.run.case_keys import check_validation
from volseg.training.state import TrainingState

logger = logging.getLogger(__name__)


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
            **run.settings.ended(run.plan.steps, state.step, state.seconds, run.finish),
            **run.custom.described(),
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
        found = validate_from_files(
            model, run.data, run.validation, run.folder, str(run.device), precision, progress, ranks
        )
        if ranks.first:
            save_model(model, card.model_copy(update=found), weights)
    if ranks.first:
        write_run_report(run.folder)
    logger.info("Finished after %d steps and %.0f seconds: %s", state.step, state.seconds, model)
