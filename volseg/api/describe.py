"""Descriptions of a model, an image or a run folder, and the cost of a network: `volseg info` and `volseg profile`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field

from volseg.config import (
    CUSTOM,
    ComponentRule,
    Frozen,
    Label,
    NetworkConfig,
    Plan,
    checked,
    load_config,
    rules_in_words,
)
from volseg.data.grid.geometry import Geometry
from volseg.data.io.checks import check_affine, check_scan
from volseg.data.io.choice import Choice, chosen
from volseg.data.io.formats import is_dicom
from volseg.data.io.inputs import Case, find_cases
from volseg.data.io.readers.stored import Stored
from volseg.data.io.reading import holds_dicom_labels, read_stored
from volseg.documents import read_json, read_or
from volseg.errors import InputError, UsageError
from volseg.files import access_to, given_path, read_json_lines
from volseg.finetuning.start import FILE_NAME as START
from volseg.finetuning.start import read_start
from volseg.modelfile import ModelCard, bundled_models, find_model, read_card, sha256_of_model
from volseg.modelfile.card import own_network_of, require_network_of_volseg
from volseg.networks.profile import compare_blocks
from volseg.planning.planner import network_of_choices
from volseg.text import first_few, shortened
from volseg.training.run.folder import is_run

MIB = 2**20
# Characters of a value in a model's record of its training.
LONGEST = 2000
# The inputs of `describe`, for messages.
_KINDS = "an image, a DICOM series, SEG or RTSTRUCT, a model or a run folder"
# The folders of a dataset, for each layout of volseg.data.cases.dataset.
_DATASET_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))


def describe(
    path: str | Path, series: str | int | None = None, volume: int | None = None, untilt: bool = False
) -> dict[str, Any]:
    """Describe a run folder, model file, bundled model, image, DICOM SEG or RTSTRUCT; the key "what" names its kind.

    A bundled name means that model, as for `volseg predict`, even if a file or folder has this name. Only a run folder
    of that name takes precedence, because `volseg train` describes the run it has finished.

    Args:
        path: of a folder or file, or a bundled name.
        series: as for `volseg.predict`, like the two that follow; they matter for images only.
        volume: see `series`.
        untilt: see `series`.

    Raises:
        InputError: `path` does not exist, or is none of these.
        UsageError: it is empty, or an option has an invalid value.
    """
    path = given_path(path)
    if is_run(path):
        return _describe_run(path)
    if path.suffix == ".safetensors" or str(path) in bundled_models():
        return _describe_model(find_model(path))
    with access_to(path):
        exists, is_folder = path.exists(), path.is_dir()
    if not exists:
        raise InputError(
            f"There is no file or folder {path}, and no bundled model of that name "
            f"({', '.join(bundled_models())}); give {_KINDS}."
        )
    if not _is_dataset(path) and holds_dicom_labels(path):
        return _describe_labels(path)
    choice = chosen(series, volume, untilt)
    return _describe_image(_scan_in(path, choice) if is_folder else Case("", (path,), "", choice))


def profile_document(config: Path | None, model: str | None) -> dict[str, Any]:
    """The cost of a network per stage, for each kind of block.

    Args:
        config: a configuration that sets plan.patch_size and plan.spacing_mm. Give either this or `model`.
        model: a bundled name or a model file.

    Returns:
        {"patch_size": [D, H, W], "blocks": {block: {"stages": rows}}}; each row has "stage", "parameters", "gflops" and
        "activation_mib", and the last row is the total.

    Raises:
        UsageError: both or none of them were given.
        InputError: the model is missing or corrupt.
        ConfigError: the configuration is invalid, or lacks a value.
    """
    if (config is None) == (model is None):
        raise UsageError("Give either --config or --model.")
    if model is not None:
        card = read_card(find_model(model))
        require_network_of_volseg(card, find_model(model))
        network, patch_size = card.plan.network, card.plan.patch_size
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
    plan = card.plan
    return {
        "what": f"model {card.name}",
        "file": str(path),
        "sha256": sha256_of_model(path),
        "size_mb": round(path.stat().st_size / 1e6, 2),
        "volseg_version": card.volseg_version,
        "channels": ", ".join(f"{channel.name} ({channel.normalisation})" for channel in plan.channels),
        "labels": ", ".join(map(_label_text, plan.labels)),
        **({"codes": codes} if (codes := _codes_text(plan.labels)) else {}),
        **({} if plan.ignore is None else {"ignored_value": plan.ignore}),
        "spacing_mm": _spacing_text(plan),
        "patch_size": _times(plan.patch_size),
        "network": _network_text(card),
        "mirror_axes": ", ".join(map(str, plan.mirror_axes)) or "none",
        "members": _members_text(card),
        "postprocessing": rules_in_words(card.postprocessing),
        "trained_on": shortened(
            ", ".join(
                f"{key} {shortened(str(value), LONGEST)}"
                for key, value in card.training.items()
                if value is not None and key not in ("members", "from")
            ),
            5 * LONGEST,
        ),
        **({"started_from": ancestors} if (ancestors := _ancestors_text(card)) else {}),
        # For an ensemble of folds: each validation case is scored with the member that was not trained on it.
        "foreground_dice": card.scores.get("out_of_fold", card.scores).get("foreground_dice"),
        "calibration": _calibration_text(card),
    }


def _calibration_text(card: ModelCard) -> str:
    """How well the probabilities of a model and its estimates agree with the truth."""
    known = card.calibration
    if known is None:
        return "none: results state no expected Dice"
    change = f", expected calibration error {known.before.error:.4f} before, {known.after.error:.4f} after"
    errors = [f"{name} {one.error:.3f}" for name, one in known.labels.items() if one.error is not None]
    return f"temperature {known.temperature:g} from {known.cases} scans and {known.degraded} degraded ones{change}" + (
        f"; error of expected Dice: {first_few(errors)}" if errors else ""
    )


def _network_text(card: ModelCard) -> str:
    """What the network of a model is."""
    network = card.plan.network
    if network.architecture == "unet":
        return f"{network.encoder} U-Net of {_block_names(network)}, features {', '.join(map(str, network.features))}"
    if network.architecture == CUSTOM:
        return f"custom, made by {own_network_of(card)}: load it in Python with Segmenter.load(path, network=...)"
    return f"{network.architecture}, registered in volseg.networks.NETWORKS by whoever trained it"


def _spacing_text(plan: Plan) -> str:
    """The spacing of the network's grid; with two dimensions a scan keeps its slices."""
    return _times(plan.spacing_mm) if plan.dimensions == 3 else f"slices as scanned, {_times(plan.spacing_mm[1:])}"


def _block_names(network: NetworkConfig) -> str:
    """The block of each stage, finest first; one name if all stages have the same."""
    return ", ".join(network.blocks if len(set(network.blocks)) > 1 else network.blocks[:1])


def _label_text(label: Label) -> str:
    """The voxel value and the name of a label; for a region also the label values it consists of."""
    parts = f" (of {', '.join(map(str, label.parts))})" if label.parts else ""
    return f"{label.value} {label.name}{parts}"


def _codes_text(labels: Sequence[Label]) -> str:
    """What the labels with a stated code are."""
    return "; ".join(f"{label.name}: {label.code}" for label in labels if label.code)


def _members_text(card: ModelCard) -> str:
    """The number of networks in a model; for an ensemble of runs also the Dice of each on its validation cases."""
    # A card that volseg did not write may have only one of the two.
    records = zip(card.training.get("members", ()), card.scores.get("members", ()), strict=False)
    dice = [(record["name"], scores.get("foreground_dice")) for record, scores in records]
    listed = ", ".join(f"{name} {'-' if one is None else f'{one:.4f}'}" for name, one in dice)
    return f"{card.members} (Dice of each: {listed})" if listed else str(card.members)


def _ancestors_text(card: ModelCard) -> str:
    """The models that this one, or each of its members, started from."""
    members = [(f"{one['name']} from ", one) for one in card.training.get("members", ())]
    texts = [(what, _lineage(record.get("from", ()))) for what, record in [("", card.training), *members]]
    return shortened("; ".join(f"{what}{text}" for what, text in texts if text), 5 * LONGEST)


def _lineage(ancestors: Sequence[dict[str, Any]]) -> str:
    """Models that started from each other, the youngest first, and what of each was copied, new, dropped or kept."""
    texts = []
    for one in ancestors:
        member = f", member {one['member']}" if "member" in one else ""
        parts = [
            f"{kind} {what} {first_few(list(names))}"
            for kind in ("labels", "channels")
            for what, names in one.get(kind, {}).items()
        ]
        texts.append(f"{one['name']}{member} (sha256 {one['sha256']}; {', '.join(parts)})")
    return ", before it ".join(texts)


def _is_dataset(path: Path) -> bool:
    return any(all((path / name).is_dir() for name in names) for names in _DATASET_FOLDERS)


def _scan_in(folder: Path, choice: Choice) -> Case:
    """The scan of a folder: the folder itself if it is a DICOM series, else the only scan in it.

    Raises:
        InputError: it is a training dataset, or contains no scan or several.
    """
    if _is_dataset(folder):
        raise InputError(f"{folder} is a training dataset; use 'volseg plan {folder}' for it, or give {_KINDS}.")
    try:
        scans = find_cases([folder], ("scan",), choice=choice)
    except InputError as error:
        raise InputError(f"{folder} is not {_KINDS}: {error}") from error
    if len(scans) > 1:
        series = [f" --series {scan.choice.series}" if scan.choice.series else "" for scan in scans]
        listed = first_few([f"{scan.paths[0]}{one}" for scan, one in zip(scans, series, strict=True)])
        raise InputError(f"{folder} is a folder of {len(scans)} scans; give one of them: {listed}.")
    return scans[0]


def _describe_labels(path: Path) -> dict[str, Any]:
    from volseg.data.io.dicom_labels.description import description  # noqa: PLC0415 - pydicom is loaded where needed

    return description(path)


def _describe_image(case: Case) -> dict[str, Any]:
    (path,) = case.paths
    if case.choice.series is None and is_dicom(path) and len(found := _series(path)) > 1:
        return {"what": f"{len(found)} DICOM series", "file": str(path), **found}
    stored = read_stored(path, case.choice)
    geometry, warnings, rejection = _check_as_predict(stored)
    lowest, highest = _extremes(stored.array)
    return {
        "what": "image",
        "file": str(path),
        "shape": _times(stored.array.shape),
        "dtype": str(stored.array.dtype),
        "spacing_mm": geometry and _times(tuple(round(spacing, 4) for spacing in geometry.spacing_mm)),
        "axes": geometry and geometry.axis_codes,
        "voxel_ml": None if stored.unstated else geometry and geometry.voxel_ml,
        **({"reason": stored.unstated} if stored.unstated else {}),
        "minimum": lowest,
        "maximum": highest,
        "warnings": "; ".join(warnings) or "none",
        "refused_by_predict": rejection,
    }


def _series(path: Path) -> dict[str, str]:
    """The DICOM series at a path."""
    from volseg.data.io.dicom.reader import series_in  # noqa: PLC0415 - pydicom is loaded only where it is needed

    return series_in(path)


def _check_as_predict(stored: Stored) -> tuple[Geometry | None, list[str], str | None]:
    """The geometry of an image or None, the warnings of `volseg predict`, and its error if it rejects the image.

    The number of channels of the model is unknown here, so any number is accepted.
    """
    geometry, warnings = None, list(stored.warnings)
    channels = next(iter(stored.array.shape[3:]), 1)
    try:
        warnings += check_affine(stored.affine, stored.source)
        if stored.array.ndim >= 3:
            geometry = Geometry(stored.array.shape[:3], stored.affine)
        check_scan(stored.array, channels, stored.source)
    except InputError as error:
        return geometry, warnings, str(error)
    if channels > 1:
        warnings.append(f"It holds {channels} volumes, so it needs a model with {channels} channels, or --volume.")
    return geometry, warnings, None


def _extremes(array: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The smallest and the largest finite value of an image; None if it has no finite or no real values."""
    if array.dtype.kind not in "biuf" or not array.size:
        return None, None
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = float(array.min()), float(array.max())
        if np.isfinite((low, high)).all():
            return low, high
        values = array[np.isfinite(array)].astype(np.float64)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (None, None)


class _Part(Frozen):
    """A part of a run's files; other keys are ignored."""

    model_config = ConfigDict(extra="ignore")


class _Progress(_Part):
    """A line of metrics.jsonl."""

    step: int = 0
    seconds: float = 0.0
    progress: float = 0.0
    loss: float | None = None


class _LabelMean(_Part):
    """The mean scores of a label."""

    dice: float | None


class _Mean(_Part):
    """The mean scores of a run."""

    labels: dict[str, _LabelMean] = Field(default_factory=dict)
    foreground_dice: float | None = None


class _Validation(_Part):
    """validation.json."""

    mean: _Mean = _Mean()
    postprocessing: dict[str, ComponentRule] = Field(default_factory=dict)


def _describe_run(path: Path) -> dict[str, Any]:
    metrics, scores = path / "metrics.jsonl", path / "validation.json"
    last = checked(_Progress, next(reversed(read_json_lines(metrics)), {}), f"The last line of {metrics}", InputError)
    # Ten times the largest data sets of today.
    read, advice = partial(read_json, times=4), "Check its permissions and its disk."
    document = read_or(InputError, read, scores, "readable JSON", advice) if scores.exists() else {}
    found = checked(_Validation, document, str(scores), InputError)
    dice = {name: row.dice for name, row in found.mean.labels.items()}
    return {
        "what": "run",
        "folder": str(path),
        "step": last.step,
        "minutes": round(last.seconds / 60, 2),
        "progress": min(last.progress, 1.0),
        "loss": last.loss,
        "model": str(path / "model.safetensors") if (path / "model.safetensors").exists() else "not finished",
        **({"started_from": _lineage(read_start(path).record())} if (path / START).exists() else {}),
        "foreground_dice": found.mean.foreground_dice,
        "dice": ", ".join(f"{name} {value:.4f}" for name, value in dice.items() if value is not None) or None,
        "postprocessing": rules_in_words(found.postprocessing),
    }


def _times(sizes: tuple[float, ...]) -> str:
    return " x ".join(str(size) for size in sizes)
