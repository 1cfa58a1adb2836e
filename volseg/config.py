"""The typed values that steer volseg: the plan of a model, and the configuration of a training run.

A `Plan` says all that is needed to rebuild a network and bring a scan to it; it travels in the model file.
A `Config` is what a user writes in YAML: choices that override the derived plan, and how to train.
All defaults and units stand here. Spatial triples are in network order (D, H, W) unless they say (I, J, K).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from volseg.errors import ConfigError, VolsegError

Triple = tuple[int, int, int]
Axis = Literal[0, 1, 2]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Block = Literal["conv3d", "conv2plus1d"]
# Told apart before they are checked, so that an error speaks of one of the two.
Blocks = Annotated[
    Annotated[Block, Tag("all")] | Annotated[tuple[Block, ...], Tag("each")],
    Discriminator(lambda value: "all" if isinstance(value, str) else "each"),
]
Mid = Literal["light", "matched"] | Count
Norm = Literal["instance", "batch", "group", "none"]
Activation = Literal["leaky_relu", "relu", "gelu"]
Normalisation = Literal["zscore", "zscore_nonzero", "ct", "rescale", "rgb", "none"]

# Stands in place of a class where nobody has labelled a voxel: the loss passes over it.
IGNORED = -1
# Complaints in one message, and the characters that each of them quotes of a value.
SHOWN = 10
QUOTED = 200


class Frozen(BaseModel):
    """An immutable value that refuses unknown keys, and numbers that are infinite or none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"expected the lower value first, [{pair[1]:g}, {pair[0]:g}]")
    return pair


def _each_once(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError("expected each axis only once")
    return axes


def _holds_truth(value: Any) -> bool:
    """Whether a value, or one in its lists, is True or False."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_truth, value)))


Range = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_rising)]
Axes = Annotated[tuple[Axis, ...], AfterValidator(_each_once)]
Value = TypeVar("Value", bound=Frozen)


class NetworkConfig(Frozen):
    """A U-Net, stage by stage; stage 0 is the finest. All per-stage lists have one entry per encoder stage."""

    in_channels: int = Field(1, ge=1)
    classes: int = Field(2, ge=1, description="background included")
    block: Blocks = Field("conv3d", description="of all stages, or one for each")
    mid: Mid = "light"
    encoder: Literal["plain", "residual"] = "plain"
    features: tuple[int, ...] = (32, 64, 128, 256)
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2, 2)
    kernels: tuple[Triple, ...] = ((3, 3, 3),) * 4
    strides: tuple[Triple, ...] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    norm: Norm = "instance"
    activation: Activation = "leaky_relu"
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        stages = len(self.features)
        lengths = {
            "encoder_blocks": (len(self.encoder_blocks), stages),
            "decoder_blocks": (len(self.decoder_blocks), stages - 1),
            "kernels": (len(self.kernels), stages),
            "strides": (len(self.strides), stages),
            "block": (len(self.blocks), stages),
        }
        for name, (found, expected) in lengths.items():
            if found != expected:
                raise ValueError(f"network.{name} has {found} entries, but {stages} features need {expected}")
        if any(size % 2 == 0 or size < 1 for kernel in self.kernels for size in kernel):
            raise ValueError(f"network.kernels are {self.kernels}, but kernel sizes have to be odd")
        if self.strides[0] != (1, 1, 1) or any(step < 1 for stride in self.strides for step in stride):
            raise ValueError(f"network.strides are {self.strides}, but they start with (1, 1, 1) and none is below 1")
        if min(*self.features, *self.encoder_blocks, *self.decoder_blocks) < 1:
            raise ValueError("network.features, encoder_blocks and decoder_blocks have to be 1 or more")
        return self

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The kind of convolutions of each stage."""
        return (self.block,) * len(self.features) if isinstance(self.block, str) else self.block

    def at(self, stage: int) -> Self:
        """The same with the kind of convolutions of one stage for all."""
        return self.model_copy(update={"block": self.blocks[stage]})

    @property
    def divisor(self) -> Triple:
        """What each spatial size of the input has to be a multiple of: the product of all strides."""
        total = [1, 1, 1]
        for stride in self.strides:
            total = [a * b for a, b in zip(total, stride, strict=True)]
        return (total[0], total[1], total[2])


class Channel(Frozen):
    """One input channel and how its intensities are normalised."""

    name: str = "image"
    normalisation: Normalisation = "zscore"
    clip: tuple[float, float] | None = Field(None, description="ct: 0.5 and 99.5 percentile of the foreground")
    mean: float | None = Field(None, description="ct: mean of the foreground")
    std: float | None = Field(None, description="ct: standard deviation of the foreground")
    mean_range: tuple[float, float] | None = Field(
        None, description="lowest and highest mean intensity of a training scan, stored units"
    )

    @model_validator(mode="after")
    def _ct_has_numbers(self) -> Self:
        if self.normalisation == "ct" and None in (self.clip, self.mean, self.std):
            raise ValueError("normalisation 'ct' needs clip, mean and std of the training foreground")
        return self


class Label(Frozen):
    """A foreground label: its name, the integer it is stored as, and how it is shown."""

    name: str
    value: int = Field(ge=1, le=65535)
    parts: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        (), description="a region's stored values, its own included; () for a plain label"
    )
    colour: Triple | None = None
    volume_ml_range: tuple[float, float] | None = Field(
        None, description="smallest and largest volume in the training references"
    )

    @property
    def stored_values(self) -> tuple[int, ...]:
        """The values that label images hold where the label is: a region's parts, else its own."""
        return self.parts or (self.value,)


class ComponentRule(Frozen):
    """Which 26-connected components of a label stay in a result; all others become background.

    The figures are of the cases that the rule was chosen on, so they flatter it a little.
    """

    smallest_ml: float = Field(0.0, ge=0, description="those of at least this volume")
    largest_only: bool = Field(False, description="of these only the largest; of equally large ones all")
    dice_before: float | None = Field(None, description="the label's mean Dice on the validation cases without it")
    dice_after: float | None = Field(None, description="and with it")

    def __str__(self) -> str:
        """The rule as a person reads it, with its figures if it has any."""
        least = f"of at least {self.smallest_ml:g} ml" if self.smallest_ml else ""
        largest = f"only the largest component{least and f', if {least}'}"
        kept = largest if self.largest_only else f"components {least}"
        if self.dice_before is None or self.dice_after is None:
            return kept
        return f"{kept} (Dice {self.dice_before:.4f} before, {self.dice_after:.4f} after)"


def rules_in_words(rules: Mapping[str, ComponentRule]) -> str:
    """Rules as a person reads them, by label name."""
    return "; ".join(f"{name}: {rule}" for name, rule in rules.items()) or "none"


class Resampling(Frozen):
    """How values are carried from one grid to another: by B-splines of an order, axis by axis.

    nnU-Net carries an axis that is much coarser than the others on its own; see `volseg.data.resample.separate_axis`.
    """

    order: Literal[0, 1, 2, 3, 4, 5] = Field(1, description="0 nearest, 1 linear, 3 cubic")
    separate: Literal["never", "always", "anisotropic"] = Field("never", description="the coarsest axis on its own")
    separate_order: Literal[0, 1, 2, 3, 4, 5] = Field(0, description="of the axis that is on its own")
    anisotropy: float = Field(3.0, gt=0, description="ratio of spacings above which 'anisotropic' holds")


class Plan(Frozen):
    """All that is decided about a model before training, and all that predicting needs beside the weights.

    Class 0 is the background; class c >= 1 is `labels[c - 1]`, written to label images as its `value`. With `regions`
    there is no background class and classes overlap: class c is `labels[c]`, present where its logit is above 0, and
    later ones are written over earlier ones.
    """

    dataset: str
    channels: tuple[Channel, ...]
    labels: tuple[Label, ...]
    regions: bool = False
    ignore: int | None = Field(None, ge=1, le=65535, description="value in references of voxels that nobody labelled")
    orientation: Literal["ras", "stored"] = Field("ras", description="the axes' order: RAS+, or as stored")
    axes: Triple = Field((2, 0, 1), description="axes of the oriented scan that become D, H, W; D is through-plane")
    crop: Literal["none", "nonzero"] = Field("none", description="the box around all voxels that are not 0")
    image_resampling: Resampling = Resampling()
    logits_resampling: Resampling = Resampling()
    spacing_mm: tuple[float, float, float]
    patch_size: Triple
    batch_size: int = Field(2, ge=1)
    mirror_axes: Axes = Field((), description="network axes on which a mirror image is possible")
    steps: int = Field(20_000, ge=1)
    network: NetworkConfig

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.network.in_channels != len(self.channels):
            raise ValueError(
                f"network.in_channels is {self.network.in_channels}, but there are {len(self.channels)} channels"
            )
        needed = len(self.labels) + (not self.regions)
        if self.network.classes != needed:
            what = "regions" if self.regions else "labels and background"
            raise ValueError(f"network.classes is {self.network.classes}, but {len(self.labels)} {what} need {needed}")
        if self.logits_resampling.order != 1 or self.logits_resampling.separate_order > 1:
            raise ValueError("logits_resampling has to be linear, with nearest or linear along a separate axis")
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"axes are {self.axes}, but each of 0, 1 and 2 has to stand there once")
        for size, divisor in zip(self.patch_size, self.network.divisor, strict=True):
            if size < 1 or size % divisor:
                raise ValueError(
                    f"patch_size {self.patch_size} is not a multiple of the network's strides {self.network.divisor}"
                )
        if len({label.value for label in self.labels}) != len(self.labels) or len(
            {label.name for label in self.labels}
        ) != len(self.labels):
            raise ValueError("two labels share a name or a value")
        if self.ignore in self.stored_values:
            raise ValueError(f"ignore is {self.ignore}, which is the value of a label")
        return self

    @property
    def stored_values(self) -> tuple[int, ...]:
        """The values of all labels in references, each once; those of plain labels in the order of the classes."""
        return tuple(dict.fromkeys(value for label in self.labels for value in label.stored_values))


class Group(Frozen):
    """A group of values as a user writes them in YAML, where yes, no, on and off are truth values."""

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes True for the number 1.
        if _holds_truth(value) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise ValueError("expected no truth value (YAML reads yes, no, on and off as one)")
        return value


class PlanChoices(Group):
    """What a user may fix of the plan; None means: derive it from the data."""

    spacing_mm: tuple[Positive, Positive, Positive] | None = None
    patch_size: tuple[Count, Count, Count] | None = None
    batch_size: Count | None = None
    normalisation: Literal["zscore", "ct", "none"] | None = None
    mirror_axes: Axes | None = None
    block: Blocks | None = Field(None, description="of all stages, or one for each feature chosen")
    mid: Mid | None = None
    encoder: Literal["plain", "residual"] | None = None
    features: tuple[Count, ...] | None = Field(None, min_length=2)
    blocks_per_stage: int | None = Field(None, ge=1)
    norm: Norm | None = None
    activation: Activation | None = None
    deep_supervision: bool | None = None

    @model_validator(mode="after")
    def _blocks_have_features(self) -> Self:
        if isinstance(self.block, tuple) and len(self.block) != len(self.features or ()):
            raise ValueError(f"block has {len(self.block)} entries, so features need as many, found {self.features}")
        return self


class TrainingConfig(Group):
    """How a network is trained."""

    learning_rate: float = Field(1.5e-2, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    gradient_clip: float = Field(12.0, gt=0, description="largest norm of the gradient")
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the run over which the learning rate rises")
    average: float = Field(0.99, ge=0, lt=1, description="decay per step of the averaged weights that are kept; 0: off")
    foreground: float = Field(0.33, ge=0, le=1, description="share of patches centred on a labelled voxel")
    growth: float = Field(
        0.9, ge=0, le=1, description="share of the run over which patches grow from half their edges to the whole"
    )
    validations: int = Field(5, ge=0, description="whole-volume validations spread over the run")
    checkpoint_seconds: float = Field(60.0, gt=0)
    workers: int | None = Field(
        None, ge=0, description="processes that prepare batches, which do not depend on it; as many as suit the device"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class AugmentationConfig(Group):
    """Probabilities and ranges of the random transforms; the start is nnU-Net v2's table.

    They are those of a patch that is changed. At first few are: a network that has seen each case a few times has not
    learned them by heart yet, and learns faster from scans as they are (benchmarks/EXPERIMENTS.md).
    """

    passes: float = Field(
        100.0, ge=0, description="over the cases until all patches are changed; the share rises linearly from 0"
    )
    rotation: float = Field(0.2, ge=0, le=1)
    rotation_degrees: float = Field(
        30.0, ge=0, le=180, description="each axis; strongly anisotropic plans turn freely in the plane instead"
    )
    scaling: float = Field(0.2, ge=0, le=1)
    scaling_range: Range = (0.7, 1.4)
    mirror: float = Field(0.5, ge=0, le=1, description="per allowed axis")
    noise: float = Field(0.1, ge=0, le=1)
    noise_variance: float = Field(0.01, ge=0, description="largest; nnU-Net calls its deviation of 0.1 a variance")
    blur: float = Field(0.2, ge=0, le=1)
    blur_sigma: Range = (0.5, 1.0)
    brightness: float = Field(0.15, ge=0, le=1)
    brightness_range: Range = (0.75, 1.25)
    contrast: float = Field(0.15, ge=0, le=1)
    contrast_range: Range = (0.75, 1.25)
    low_resolution: float = Field(0.25, ge=0, le=1)
    low_resolution_range: Shares = (0.5, 1.0)
    gamma: float = Field(0.3, ge=0, le=1)
    gamma_inverted: float = Field(0.1, ge=0, le=1)
    gamma_range: Range = (0.7, 1.5)


class Config(Frozen):
    """One YAML file: choices about the plan, how to train, and how to augment."""

    plan: PlanChoices = PlanChoices()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"the key '{name}' is on line {lines[name]} and again on line {line}")
            lines[name] = line
        return node


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `key=value` overrides such as `training.learning_rate=0.001`.

    Raises:
        ConfigError: a missing file, an unknown key or a value of the wrong kind, by name.
    """
    document = read_yaml(path) if path else {}
    # YAML reads a group without values as None.
    document = {key: {} if value is None else value for key, value in document.items()}
    for override in overrides:
        _apply_override(document, override)
    return checked(Config, document, str(path) if path else "the configuration")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as a dict; an empty file is an empty dict.

    Raises:
        ConfigError: not readable, not YAML, a key that stands twice in one mapping, or not a mapping.
    """
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Could not read {path}: {error}. Give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds a {type(document).__name__}, expected a mapping of keys to values.")
    return document


def checked(kind: type[Value], document: Any, source: str, refusal: type[VolsegError] = ConfigError) -> Value:
    """Validate `document` as `kind`, turning every complaint into one readable sentence raised as `refusal`."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        complaints = [_complaint(detail) for detail in error.errors()]
        more = [f"and {len(complaints) - SHOWN} more"] if len(complaints) > SHOWN else []
        raise refusal(f"{source} is not usable: {'; '.join(complaints[:SHOWN] + more)}.") from error


def _complaint(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{place}'"
    if detail["type"] == "missing":
        return f"'{place}' is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "model_type":
        message = "expected a mapping of keys to values"
    found = repr(detail["input"])
    found = found if len(found) <= QUOTED else f"{found[:QUOTED]}..."
    return f"'{place}': {message}, found {found}" if place else message


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override!r} has no value; write key=value, for example training.learning_rate=0.001."
        )
    *parents, last = key.strip().split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise ConfigError(f"--set {override!r}: '{parent}' is a value, not a group of values.")
    try:
        document[last] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value.") from error
