"""Models of other programs as model files of volseg."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from volseg.errors import InputError, UsageError
from volseg.files import sha256_of
from volseg.interop.nnunet_checkpoint import Checkpoint, read_checkpoint
from volseg.interop.nnunet_plans import plan_of
from volseg.interop.nnunet_weights import import_weights
from volseg.modelfile import ModelCard, check_model_path, save_model

FOLD = re.compile(r"fold_(\d+|all)")


@dataclass(frozen=True)
class Fold:
    """One trained network of a model folder."""

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
    """Turn a trained nnU-Net v2 model folder into one model file.

    Nothing in the folder is executed: checkpoints are read as tensors, numbers and text only.

    Args:
        folder: with plans.json, dataset.json and fold_*/.
        output: the model file, ending in .safetensors.
        checkpoint: file name in each fold's folder.
        folds: numbers, or "all" for fold_all. None: all numbered folds that hold the checkpoint, else fold_all.
            The logits of several folds are averaged.
        overwrite: replace an existing `output`.

    Returns:
        `output`.

    Raises:
        UsageError: `output` exists, or its name does not end in .safetensors.
        InputError: the folder is not complete, a file is damaged, or the model does what volseg does not.
        ResourceError: the disk refused the bytes.
    """
    folder, output = Path(folder), Path(output)
    check_model_path(output, overwrite)
    plans, dataset = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    found = [Fold(path.parent.name, path, read_checkpoint(path)) for path in _checkpoints(folder, checkpoint, folds)]
    first = found[0].checkpoint
    _check_alike(found)
    plan = plan_of(plans, dataset, first.configuration, first.trainer, first.mirror_axes)
    weights: dict[str, Tensor] = {}
    for member, fold in enumerate(found):
        prefix = f"members.{member}." if len(found) > 1 else ""
        tensors = import_weights(fold.checkpoint.weights, plan.network, str(fold.path))
        weights |= {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    card = ModelCard(
        name=re.sub(r"^dataset\d+_", "", plan.dataset.lower()) or "model",
        plan=plan,
        members=len(found),
        training=_origin(plans, dataset, found, checkpoint),
    )
    save_model(output, card, weights)
    return output


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Could not read {path}: {error.strerror or error}. Give the folder of a trained nnU-Net v2 model, "
            "with plans.json, dataset.json and fold_*/."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}. Take a fresh copy of the file.") from error


def _checkpoints(folder: Path, name: str, folds: Sequence[int | str] | None) -> list[Path]:
    """The checkpoint of each fold that was asked for, or of all that have one."""
    if folds is not None:
        wanted = [folder / f"fold_{fold}" / name for fold in folds]
        named = all(FOLD.fullmatch(path.parent.name) for path in wanted)
        if not wanted or not named or len(set(wanted)) != len(wanted):
            raise UsageError(f"The folds are {list(folds)}, expected numbers, each only once, or all.")
        for path in wanted:
            if not path.is_file():
                raise InputError(f"There is no {path}. {_present(folder)}")
        return wanted
    there = [path for path in folder.glob(f"fold_*/{name}") if FOLD.fullmatch(path.parent.name)]
    numbered = [path for path in there if path.parent.name != "fold_all"]
    if not there:
        raise InputError(f"There is no fold_*/{name} in {folder}. {_present(folder)}")
    return sorted(numbered, key=lambda path: int(path.parent.name.removeprefix("fold_"))) or there


def _present(folder: Path) -> str:
    found = sorted(str(path.relative_to(folder)) for path in folder.glob("fold_*/*.pth"))
    return f"The folder holds {', '.join(found) or 'no checkpoints'}."


def _check_alike(folds: Sequence[Fold]) -> None:
    """Folds become one model only if they were trained in the same way."""
    ways = [(one.checkpoint.configuration, one.checkpoint.trainer, one.checkpoint.mirror_axes) for one in folds]
    for fold, way in zip(folds, ways, strict=True):
        if way != ways[0]:
            raise InputError(
                f"{fold.name} was trained as {way}, but {folds[0].name} as {ways[0]} (configuration, trainer and "
                "mirrored axes). Name the folds that belong together with --folds."
            )


def _origin(plans: Any, dataset: Any, folds: Sequence[Fold], checkpoint: str) -> dict[str, Any]:
    """Where a model comes from, for its card; the documents have been checked."""
    first = folds[0].checkpoint
    return {
        "source": "nnU-Net v2 model folder",
        "dataset": plans["dataset_name"],
        "licence": dataset.get("licence", dataset.get("license")),
        "cases": dataset.get("numTraining"),
        "plans": plans.get("plans_name"),
        "configuration": first.configuration,
        "trainer": first.trainer,
        "checkpoint": checkpoint,
        "folds": ", ".join(fold.name.removeprefix("fold_") for fold in folds),
        "sha256": {fold.name: sha256_of(fold.path) for fold in folds},
    }
