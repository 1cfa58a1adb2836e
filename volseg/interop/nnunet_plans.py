"""An nnU-Net v2 plans.json and dataset.json as a `Plan`.

nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z) reads a scan as an array (z, y, x), the axes in
reverse voxel order, and then transposes it: its axis t is voxel axis 2 - t.
"""

from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from pydantic import AliasChoices, ConfigDict, Field

from volseg.config import Count, Normalisation, Plan, Resampling, Triple, checked
from volseg.errors import InputError
from volseg.interop.nnunet_network import network_of
from volseg.interop.stored import Stored

Separate = Literal["never", "always", "anisotropic"]

ORIENTATIONS = {
    "SimpleITKIO": "stored",
    "NibabelIO": "stored",
    "SimpleITKIOWithReorient": "ras",
    "NibabelIOWithReorient": "ras",
}
NORMALISATIONS: dict[str, Normalisation] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
    "RGBTo01Normalization": "rgb",
}
SEPARATE: dict[bool | None, Separate] = {None: "anisotropic", True: "always", False: "never"}


class Intensities(Stored):
    """Intensity statistics of the foreground voxels of the training scans."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Plans(Stored):
    """plans.json."""

    dataset_name: str
    image_reader_writer: str
    transpose_forward: Triple
    label_manager: str = "LabelManager"
    configurations: dict[str, dict[str, Any]]
    median_spacing: Any = Field(None, alias="original_median_spacing_after_transp")
    intensities: dict[str, Any] = Field(
        default_factory=dict,
        validation_alias=AliasChoices(
            "foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"
        ),
    )


class Dataset(Stored):
    """dataset.json."""

    channels: dict[int, str] = Field(validation_alias=AliasChoices("modality", "channel_names"))
    labels: dict[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None


class Configuration(Stored):
    """One configuration of plans.json, inherited values included."""

    preprocessor_name: str = "DefaultPreprocessor"
    previous_stage: str | None = None
    batch_size: Count
    patch_size: tuple[Count, ...]
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool | None, ...]
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, Any]


class ArrayResampling(Stored):
    """Arguments of resample_data_or_seg_to_shape."""

    model_config = ConfigDict(extra="forbid")

    is_seg: Literal[False] = False
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: float = 3.0


class TorchResampling(Stored):
    """Arguments of resample_torch_fornnunet; its device, threads and memory options change no value."""

    model_config = ConfigDict(extra="forbid")

    is_seg: Literal[False] = False
    num_threads: Any = None
    device: Any = None
    memefficient_seg_resampling: Any = None
    force_separate_z: bool | None = None
    separate_z_anisotropy_threshold: float = 3.0
    mode: Literal["linear"] = "linear"
    aniso_axis_mode: Literal["nearest-exact"] = "nearest-exact"


def plan_of(
    plans: Any, dataset: Any, configuration: str, trainer: str = "nnUNetTrainer", mirror_axes: tuple[int, ...] = ()
) -> Plan:
    """Convert the preprocessing and network of an nnU-Net model to a plan.

    Args:
        plans: the document in plans.json.
        dataset: the document in dataset.json.
        configuration: the trained one, such as "3d_fullres".
        trainer: class name of nnU-Net's trainer.
        mirror_axes: axes of a patch that test-time augmentation may flip.

    Raises:
        InputError: a feature that volseg does not support, by name, or an invalid document.
    """
    known = checked(Plans, plans, "plans.json", InputError)
    info = checked(Dataset, dataset, "dataset.json", InputError)
    document = _inherited(known, configuration)
    _check_kind(known, configuration, document)
    settings = checked(Configuration, document, f"Configuration {configuration} in plans.json", InputError)
    regions, labels = _labels(info)
    to_image = _resampling(settings.resampling_fn_probabilities, settings.resampling_fn_probabilities_kwargs)
    if to_image.order != 1 or to_image.separate_order > 1:
        found = f"order {to_image.order}, along a separate axis {to_image.separate_order}"
        _reject("The resampling of logits", found, "order 1, along a separate axis 0 or 1")
    first, second, third = known.transpose_forward
    flat = len(settings.patch_size) == 2
    return checked(
        Plan,
        {
            "dataset": known.dataset_name,
            "channels": _channels(known, info, settings),
            "labels": labels,
            "regions": regions,
            "orientation": ORIENTATIONS[known.image_reader_writer],
            "axes": (2 - first, 2 - second, 2 - third),
            "crop": "nonzero",
            "image_resampling": _resampling(settings.resampling_fn_data, settings.resampling_fn_data_kwargs),
            "logits_resampling": to_image,
            "dimensions": len(settings.patch_size),
            "spacing_mm": (_slice_distance(known, settings), *settings.spacing) if flat else settings.spacing,
            "patch_size": (1, *settings.patch_size) if flat else settings.patch_size,
            "batch_size": settings.batch_size,
            "mirror_axes": tuple(axis + flat for axis in mirror_axes),
            "network": network_of(document, trainer, len(info.channels), len(labels) + (not regions)),
        },
        "The nnU-Net model",
        InputError,
    )


def _inherited(plans: Plans, name: str) -> dict[str, Any]:
    """A configuration with all values that it inherits from others."""
    chain: list[str] = []
    document: dict[str, Any] = {}
    following: Any = name
    while following is not None:
        if following in chain:
            raise InputError(f"Configurations in plans.json inherit from each other in a circle: {', '.join(chain)}.")
        if following not in plans.configurations:
            raise InputError(
                f"There is no configuration {following!r} in plans.json, only {', '.join(plans.configurations)}. "
                "Take plans.json and checkpoints from one model folder."
            )
        chain.append(following)
        stored = plans.configurations[following]
        document = {**stored, **document}
        following = stored.get("inherits_from")
        if following is not None and not isinstance(following, str):
            _reject("inherits_from", repr(following), "the name of one configuration")
    return document


def _check_kind(plans: Plans, name: str, document: Mapping[str, Any]) -> None:
    """Reject models that are neither 2-D nor 3-D, belong to a cascade, or have a reader or other part of their own."""
    size, spacing = document.get("patch_size"), document.get("spacing")
    if isinstance(size, list) and len(size) not in (2, 3):
        _reject("Configuration", f"{name}, of {len(size)} dimensions", "configurations of 2 or 3 dimensions")
    if isinstance(size, list) and isinstance(spacing, list) and len(spacing) != len(size):
        found = f"{name}, with a patch_size of {len(size)} numbers and a spacing of {len(spacing)}"
        _reject("Configuration", found, "configurations with as many of both")
    if document.get("previous_stage") is not None:
        _reject(
            "Configuration",
            f"{name}, the second stage of a cascade",
            "models that do not need the result of another model",
        )
    if document.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        _reject("The preprocessor", str(document["preprocessor_name"]), "models of DefaultPreprocessor")
    if plans.label_manager != "LabelManager":
        _reject("The label manager", plans.label_manager, "models of LabelManager")
    if plans.image_reader_writer not in ORIENTATIONS:
        _reject("The reader", plans.image_reader_writer, f"models of {', '.join(ORIENTATIONS)}")


def _slice_distance(plans: Plans, settings: Configuration) -> float:
    """The usual distance of slices in mm, which prediction does not need; in-plane spacing if plans.json has none."""
    try:
        return float(plans.median_spacing[0])
    except (TypeError, ValueError, IndexError, KeyError):
        return max(settings.spacing)


def _channels(plans: Plans, dataset: Dataset, settings: Configuration) -> list[dict[str, Any]]:
    """The plan's channels in nnU-Net's order."""
    schemes, masked = settings.normalization_schemes, settings.use_mask_for_norm
    if not len(dataset.channels) == len(schemes) == len(masked):
        raise InputError(
            f"dataset.json has {len(dataset.channels)} channels, but plans.json has {len(schemes)} normalisation "
            f"schemes and {len(masked)} masks. Take both files from one model folder."
        )
    channels = []
    for (index, name), scheme, mask in zip(sorted(dataset.channels.items()), schemes, masked, strict=True):
        if scheme not in NORMALISATIONS:
            _reject(f"The normalisation of channel {name}", scheme, ", ".join(NORMALISATIONS))
        kind = NORMALISATIONS[scheme]
        values: dict[str, Any] = {"name": name}
        if kind == "zscore" and mask:
            kind = "zscore_nonzero"
        elif kind == "ct":
            source = f"The intensities of channel {index} in plans.json"
            found = checked(Intensities, plans.intensities.get(str(index)), source, InputError)
            values |= {"clip": (found.percentile_00_5, found.percentile_99_5), "mean": found.mean}
            # As in nnU-Net, which divides by no less.
            values["std"] = max(found.std, 1e-8)
        channels.append({"normalisation": kind, **values})
    return channels


def _labels(dataset: Dataset) -> tuple[bool, list[dict[str, Any]]]:
    """Whether the labels are overlapping regions, and the plan's labels in the order of the network's outputs."""
    stored = {name: (one,) if isinstance(one, int) else one for name, one in dataset.labels.items()}
    foreground = {name: values for name, values in stored.items() if name != "ignore" and set(values) != {0}}
    if len(foreground) == len(stored) - ("ignore" in stored):
        raise InputError(f"dataset.json has no label of value 0 among {', '.join(stored)}. nnU-Net needs a background.")
    if any(len(values) > 1 for values in stored.values()):
        return True, _regions(foreground, dataset.regions_class_order or ())
    plain = sorted((value, name) for name, (value,) in foreground.items())
    if [value for value, _ in plain] != list(range(1, len(plain) + 1)):
        found = ", ".join(f"{value} {name}" for value, name in plain)
        _reject("The set of labels in dataset.json", found, "labels numbered 1, 2, 3, ...")
    return False, [{"name": name, "value": value} for value, name in plain]


def _regions(regions: Mapping[str, tuple[int, ...]], order: tuple[int, ...]) -> list[dict[str, Any]]:
    """Regions, each with its value in label images."""
    if len(order) != len(regions):
        raise InputError(
            f"dataset.json has {len(regions)} regions, but regions_class_order has {len(order)} values. "
            "It needs one per region."
        )
    return [
        {"name": name, "value": value, "parts": parts}
        for (name, parts), value in zip(regions.items(), order, strict=True)
    ]


def _resampling(function: str, arguments: dict[str, Any]) -> Resampling:
    """The resampling that one of nnU-Net's functions does with its arguments."""
    source, nearest = f"The arguments of {function} in plans.json", "scipy"
    if function == "resample_data_or_seg_to_shape":
        array = checked(ArrayResampling, arguments, source, InputError)
        order, order_z, force = array.order, array.order_z, array.force_separate_z
        threshold = array.separate_z_anisotropy_threshold
    elif function == "resample_torch_fornnunet":
        torch = checked(TorchResampling, arguments, source, InputError)
        order, order_z, force, nearest = 1, 0, torch.force_separate_z, "torch"
        threshold = torch.separate_z_anisotropy_threshold
    else:
        known = "resample_data_or_seg_to_shape and resample_torch_fornnunet"
        _reject("The resampling function", function, known)
    values = {
        "order": order,
        "separate": SEPARATE[force],
        "separate_order": order_z,
        "anisotropy": threshold,
        "nearest": nearest,
    }
    return checked(Resampling, values, source, InputError)


def _reject(what: str, found: str, known: str) -> NoReturn:
    raise InputError(f"{what} is {found}, which cannot be imported. volseg imports {known}.")
