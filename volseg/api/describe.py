"""Saying what something is: a model, an image, a run, and what a network costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from volseg.config import ComponentRule, Label, NetworkConfig, checked, load_config, rules_in_words
from volseg.data.grid.geometry import Geometry
from volseg.data.io.checks import check_affine, check_scan
from volseg.data.io.inputs import find_cases
from volseg.data.io.reading import Stored, read_stored
from volseg.errors import InputError, UsageError
from volseg.files import read_json_lines, sha256_of
from volseg.modelfile import ModelCard, bundled_models, find_model, read_card
from volseg.networks.profile import compare_blocks
from volseg.planning.planner import network_of_choices
from volseg.training.run_folder import is_run

MIB = 2**20
# What `describe` takes.
_KINDS = "an image, a DICOM series, a model or a run folder"
# What the layouts of volseg.data.cases.dataset have in common.
_DATA_SET_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))


def describe(path: Path) -> dict[str, Any]:
    """What `path` is: a run folder, a model (or a bundled name), or an image; "what" says which.

    A bundled name means that model, as for predicting, also where a file or folder is called so. Only a run of that
    name comes first, because `volseg train` describes what it has made.

    Raises:
        InputError: it cannot be read as any of them.
    """
    if is_run(path):
        return _describe_run(path)
    if path.suffix == ".safetensors" or str(path) in bundled_models():
        return _describe_model(find_model(path))
    if not path.exists():
        raise InputError(
            f"There is no file or folder {path}, and no bundled model of that name "
            f"({', '.join(bundled_models())}); give {_KINDS}."
        )
    return _describe_image(_scan_in(path) if path.is_dir() else path)


def profile_document(config: Path | None, model: str | None) -> dict[str, Any]:
    """The cost of a network per stage, with each kind of block: {"patch_size", "blocks": {name: {"stages", "total"}}}.

    Args:
        config: a configuration whose plan fixes patch_size and spacing_mm, or
        model: a bundled name or a model file.
    """
    if (config is None) == (model is None):
        raise UsageError("Give either --config or --model.")
    if model is not None:
        plan = read_card(find_model(model)).plan
        network, patch_size = plan.network, plan.patch_size
    else:
        network, patch_size = network_of_choices(load_config(config).plan)
    profiles = compare_blocks(network, patch_size)
    return {
        "patch_size": list(patch_size),
        "blocks": {
            name: {"stages": [*map(_cost, profile.stages), _cost(profile.total)]} for name, profile in profiles.items()
        },
    }


def _cost(stage: Any) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "parameters": stage.parameters,
        "gflops": stage.flops / 1e9,
        "activation_mib": stage.activation_bytes / MIB,
    }


def _describe_model(path: Path) -> dict[str, Any]:
    card = read_card(path)
    plan, network = card.plan, card.plan.network
    return {
        "what": f"model {card.name}",
        "file": str(path),
        "sha256": sha256_of(path),
        "size_mb": round(path.stat().st_size / 1e6, 2),
        "volseg_version": card.volseg_version,
        "channels": ", ".join(f"{channel.name} ({channel.normalisation})" for channel in plan.channels),
        "labels": ", ".join(_label(label) for label in plan.labels),
        **({} if plan.ignore is None else {"ignored_value": plan.ignore}),
        "spacing_mm": _by(plan.spacing_mm),
        "patch_size": _by(plan.patch_size),
        "network": f"{network.encoder} U-Net of {_kinds(network)}, features {', '.join(map(str, network.features))}",
        "mirror_axes": ", ".join(map(str, plan.mirror_axes)) or "none",
        "members": _members(card),
        "postprocessing": rules_in_words(card.postprocessing),
        "trained_on": ", ".join(
            f"{key} {value}" for key, value in card.training.items() if value is not None and key != "members"
        ),
        # Of an ensemble of folds, what its members reached on cases they had not seen.
        "foreground_dice": card.scores.get("out_of_fold", card.scores).get("foreground_dice"),
    }


def _kinds(network: NetworkConfig) -> str:
    """The kinds of convolutions, finest stage first, or the one that all stages have."""
    return ", ".join(network.blocks if len(set(network.blocks)) > 1 else network.blocks[:1])


def _label(label: Label) -> str:
    """The written value and the name of a label, and of a region the values that it was made of."""
    parts = f" (of {', '.join(map(str, label.parts))})" if label.parts else ""
    return f"{label.value} {label.name}{parts}"


def _members(card: ModelCard) -> str:
    """How many networks a model has, and of an ensemble of runs what each reached on its own validation cases."""
    records = zip(card.training.get("members", ()), card.scores.get("members", ()), strict=True)
    dice = [(record["name"], scores.get("foreground_dice")) for record, scores in records]
    listed = ", ".join(f"{name} {'-' if one is None else f'{one:.4f}'}" for name, one in dice)
    return f"{card.members} (Dice of each: {listed})" if listed else str(card.members)


def _scan_in(folder: Path) -> Path:
    """The one scan that a folder is, or holds.

    Raises:
        InputError: it is a training dataset, or holds no scan or several.
    """
    if any(all((folder / name).is_dir() for name in names) for names in _DATA_SET_FOLDERS):
        raise InputError(f"{folder} is a training dataset; use 'volseg plan {folder}' for it, or give {_KINDS}.")
    try:
        scans = [path for case in find_cases([folder], ("scan",)) for path in case.paths]
    except InputError as error:
        raise InputError(f"{folder} is not {_KINDS}: {error}") from error
    if len(scans) > 1:
        raise InputError(f"{folder} is a folder of {len(scans)} scans; give one of them, such as {scans[0]}.")
    return scans[0]


def _describe_image(path: Path) -> dict[str, Any]:
    stored = read_stored(path)
    grid, warnings, refusal = _checks_of_predict(stored)
    lowest, highest = _extremes(stored.array)
    return {
        "what": "image",
        "file": str(path),
        "shape": _by(stored.array.shape),
        "dtype": str(stored.array.dtype),
        "spacing_mm": grid and _by(tuple(round(spacing, 4) for spacing in grid.spacing_mm)),
        "axes": grid and grid.axis_codes,
        "voxel_ml": grid and grid.voxel_ml,
        "minimum": lowest,
        "maximum": highest,
        "warnings": "; ".join(warnings) or "none",
        "refused_by_predict": refusal,
    }


def _checks_of_predict(stored: Stored) -> tuple[Geometry | None, list[str], str | None]:
    """The grid of an image if it has one, what predicting warns about, and why it refuses the image if it does.

    How many channels a model wants is not known here: all that there are.
    """
    grid, warnings = None, list(stored.warnings)
    channels = next(iter(stored.array.shape[3:]), 1)
    try:
        warnings += check_affine(stored.affine, stored.source)
        if stored.array.ndim >= 3:
            grid = Geometry(stored.array.shape[:3], stored.affine)
        check_scan(stored.array, channels, stored.source)
    except InputError as error:
        return grid, warnings, str(error)
    if channels > 1:
        warnings.append(f"It holds {channels} volumes: only a model of {channels} channels takes it.")
    return grid, warnings, None


def _extremes(array: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The lowest and the highest finite value of an image; None of one that holds none, or no real numbers."""
    if array.dtype.kind not in "biuf" or not array.size:
        return None, None
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = float(array.min()), float(array.max())
        if np.isfinite((low, high)).all():
            return low, high
        values = array[np.isfinite(array)].astype(np.float64)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (None, None)


def _describe_run(path: Path) -> dict[str, Any]:
    last: dict[str, Any] = next(reversed(read_json_lines(path / "metrics.jsonl")), {})
    scores = path / "validation.json"
    document = json.loads(scores.read_text(encoding="utf-8")) if scores.exists() else {}
    mean = document.get("mean", {})
    rules = {
        name: checked(ComponentRule, rule, str(scores)) for name, rule in document.get("postprocessing", {}).items()
    }
    return {
        "what": "run",
        "folder": str(path),
        "step": last.get("step", 0),
        "minutes": round(last.get("seconds", 0) / 60, 2),
        "progress": last.get("progress", 0),
        "loss": last.get("loss"),
        "model": str(path / "model.safetensors") if (path / "model.safetensors").exists() else "not finished",
        "foreground_dice": mean.get("foreground_dice"),
        "dice": ", ".join(
            f"{name} {row['dice']:.4f}" for name, row in mean.get("labels", {}).items() if row["dice"] is not None
        )
        or None,
        "postprocessing": rules_in_words(rules),
    }


def _by(sizes: tuple[float, ...]) -> str:
    return " x ".join(str(size) for size in sizes)
