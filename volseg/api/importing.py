"""Import models of other programs as volseg model files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from volseg.config import checked
from volseg.documents import read_json, read_or
from volseg.errors import InputError, UsageError
from volseg.interop.nnunet_checkpoint import Checkpoint, read_checkpoint
from volseg.interop.nnunet_plans import plan_of
from volseg.interop.nnunet_weights import import_weights
from volseg.modelfile import ModelCard, check_model_path, save_model, sha256_of_model

FOLD = re.compile(r"fold_(\d+|all)")


@dataclass(frozen=True)
class Fold:
    """The trained network of one fold in a model folder."""

    name: str
    path: Path
    checkpoint: Checkpoint


def import_nnunet(
    folder: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "checkpoint_final.pth",
    folds: Sequence[int | str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a trained nnU-Net v2 model folder to one model file.

    No code from the folder is run: checkpoints are read as tensors, numbers and text only.

    Args:
        folder: contains plans.json, dataset.json and fold_*/.
        output: the model file, ending in .safetensors.
        checkpoint: file name in each fold's folder.
        folds: numbers, or "all" for fold_all. None: every numbered fold that has the checkpoint, else fold_all.
            The model averages the logits of several folds.
        overwrite: replace an existing `output`.

    Returns:
        `output`.

    Raises:
        UsageError: `output` exists, or its name does not end in .safetensors.
        InputError: the folder is incomplete, a file is corrupt, or the model uses what volseg does not support.
        ResourceError: the disk is full or not writable.
    """
    folder, output = Path(folder), Path(output)
    check_model_path(output, overwrite)
    plans, dataset = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    trained = [Fold(path.parent.name, path, read_checkpoint(path)) for path in _checkpoints(folder, checkpoint, folds)]
    first = trained[0].checkpoint
    _check_same_training(trained)
    plan = plan_of(plans, dataset, first.configuration, first.trainer, first.mirror_axes)
    weights: dict[str, Tensor] = {}
    for member, fold in enumerate(trained):
        prefix = f"members.{member}." if len(trained) > 1 else ""
        tensors = import_weights(fold.checkpoint.weights, plan.network, str(fold.path), plan.dimensions)
        weights |= {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    document = {
        "name": re.sub(r"^dataset\d+_", "", plan.dataset.lower()) or "model",
        "plan": plan,
        "members": len(trained),
        "training": _training_record(plans, dataset, trained, checkpoint),
    }
    card = checked(ModelCard, document, "The nnU-Net model", InputError)
    save_model(output, card, weights)
    return output


def _read_json(path: Path) -> Any:
    # NumPy's NaN is in some plans, where the foreground of a dataset has no intensity.
    advice = "Give the folder of a trained nnU-Net v2 model, with plans.json, dataset.json and fold_*/."
    return read_or(InputError, partial(read_json, nan=True), path, "valid JSON", advice)


def _checkpoints(folder: Path, name: str, folds: Sequence[int | str] | None) -> list[Path]:
    """The checkpoint of each requested fold; without a request, of every numbered fold, else of fold_all."""
    if folds is not None:
        wanted = [folder / f"fold_{fold}" / name for fold in folds]
        valid = all(FOLD.fullmatch(path.parent.name) for path in wanted)
        if not wanted or not valid or len(set(wanted)) != len(wanted):
            raise UsageError(f"The folds are {list(folds)}, expected numbers, each only once, or all.")
        for path in wanted:
            if not path.is_file():
                raise InputError(f"There is no {path}. {_list_checkpoints(folder)}")
        return wanted
    available = [path for path in folder.glob(f"fold_*/{name}") if FOLD.fullmatch(path.parent.name)]
    numbered = [path for path in available if path.parent.name != "fold_all"]
    if not available:
        raise InputError(f"There is no fold_*/{name} in {folder}. {_list_checkpoints(folder)}")
    return sorted(numbered, key=lambda path: int(path.parent.name.removeprefix("fold_"))) or available


def _list_checkpoints(folder: Path) -> str:
    """A sentence that lists the checkpoints in a model folder."""
    found = sorted(str(path.relative_to(folder)) for path in folder.glob("fold_*/*.pth"))
    return f"The folder holds {', '.join(found) or 'no checkpoints'}."


def _check_same_training(folds: Sequence[Fold]) -> None:
    """Reject folds that differ in configuration, trainer or mirror axes, because they cannot become one model."""
    settings = [(fold.checkpoint.configuration, fold.checkpoint.trainer, fold.checkpoint.mirror_axes) for fold in folds]
    for fold, found in zip(folds, settings, strict=True):
        if found != settings[0]:
            raise InputError(
                f"{fold.name} was trained as {found}, but {folds[0].name} as {settings[0]} (configuration, trainer and "
                "mirror axes). Select folds that were trained in the same way with --folds."
            )


def _training_record(plans: Any, dataset: Any, folds: Sequence[Fold], checkpoint: str) -> dict[str, Any]:
    """The origin of the model, for its card; `plan_of` has already checked both documents."""
    first = folds[0].checkpoint
    return {
        "source": "nnU-Net v2 model folder",
        "dataset": plans["dataset_name"],
        "licence": _stated(dataset.get("licence", dataset.get("license"))),
        "cases": _stated(dataset.get("numTraining")),
        "plans": _stated(plans.get("plans_name")),
        "configuration": first.configuration,
        "trainer": first.trainer,
        "checkpoint": checkpoint,
        "folds": ", ".join(fold.name.removeprefix("fold_") for fold in folds),
        "sha256": {fold.name: sha256_of_model(fold.path) for fold in folds},
    }


def _stated(value: Any) -> str | int | None:
    """A text or a number as it is stated; None for anything else, which a record cannot show."""
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
