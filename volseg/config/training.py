"""The YAML configuration: choices that override the derived plan, training, and augmentation."""

import logging
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from volseg.config.network import MOST_STAGES, Blocks
from volseg.config.values import (
    LARGEST_NUMBER,
    Activation,
    Axes,
    FractionRange,
    Frozen,
    Mid,
    Name,
    Norm,
    Normalisation,
    Positive,
    Range,
    Size,
    Spacing,
)

logger = logging.getLogger(__name__)


def _has_boolean(value: Any) -> bool:
    """Whether a value, or one in its lists, is True or False."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_has_boolean, value)))


def _shares(value: Any) -> Any:
    """The shares of datasets."""
    named = isinstance(value, dict) and value and all(_is_positive(one) for one in value.values())
    if value not in ("cases", "equal") and not named:
        raise ValueError("expected cases, equal, or a number above 0 for each dataset, such as {A: 2, B: 1}")
    return value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST_NUMBER


class Group(Frozen):
    """A group of keys in a YAML configuration, where yes, no, on and off are booleans."""

    # Old key: the key that has replaced it. An old key is read for one release, with a warning.
    RENAMED: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_old_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        current = dict(given)
        for old, new in cls.RENAMED.items():
            if old in current:
                if new in current:
                    raise ValueError(f"'{old}' is the old name of '{new}'; give only '{new}'")
                logger.warning("The configuration key '%s' is now '%s'; the next release drops the old name.", old, new)
                current[new] = current.pop(old)
        return current

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes True for the number 1.
        if _has_boolean(value) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise ValueError("expected no boolean (YAML reads yes, no, on and off as one)")
        return value


class PlanChoices(Group):
    """The parts of the plan that a user may set; None: derived from the data."""

    dimensions: Literal[2, 3] | None = Field(
        None, description="2: slice by slice, with in-plane kernels only; 3: kernels through the plane too"
    )
    spacing_mm: tuple[Spacing, Spacing, Spacing] | None = None
    patch_size: tuple[Size, Size, Size] | None = None
    batch_size: Size | None = None
    memory_gb: float | None = Field(
        None, gt=0, le=10_000, description="that patch and batch are planned for; default: 8 at most, 0.5 on a CPU"
    )
    normalisation: Normalisation | dict[Name, Normalisation] | None = Field(
        None, description="of all channels, or by the name of a channel"
    )
    crop: Literal["none", "nonzero"] | None = None
    image_resampling: Literal["nearest", "linear", "cubic"] | None = None
    label_resampling: Literal["nearest", "linear"] | None = None
    antialias: bool | None = Field(None, description="average over the voxels that one of a coarser plan stands for")
    mirror_axes: Axes | None = None
    sides: tuple[tuple[Name, Name], ...] | None = Field(
        None, description="names of left and right labels that a flip along R exchanges; []: none"
    )
    architecture: Name | None = Field(None, description="a name in `volseg.networks.NETWORKS`")
    block: Blocks | None = Field(None, description="of all stages, or one for each entry of features")
    mid: Mid | None = None
    encoder: Literal["plain", "residual"] | None = None
    features: tuple[Size, ...] | None = Field(None, min_length=2, max_length=MOST_STAGES)
    blocks_per_stage: Size | None = None
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

    RENAMED: ClassVar[dict[str, str]] = {
        "average": "ema_decay",
        "foreground": "oversample_foreground",
        "growth": "progressive_patch_size",
    }

    loss: str = Field("dice_ce", description="a name in `volseg.losses.LOSSES`")
    learning_rate: float = Field(1.5e-2, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    pull_to_model: float = Field(
        0.0, ge=0, description="weight decay towards the model that a run starts from, of all kernels but the heads'"
    )
    gradient_clip: float = Field(12.0, gt=0, description="maximum gradient norm")
    warmup: float = Field(0.02, ge=0, lt=1, description="fraction of the run over which the learning rate rises")
    ema_fraction: float = Field(
        0.03, ge=0, le=0.5, description="mean age of the weights in their EMA, as a fraction of the run; 0: no EMA"
    )
    ema_decay: float | None = Field(None, ge=0, lt=1, description="decay of the EMA per step, instead of ema_fraction")
    oversample_foreground: float = Field(
        0.33, ge=0, le=1, description="least fraction of each batch's patches that hold a label chosen at random"
    )
    dataset_shares: Annotated[Literal["cases", "equal"] | dict[Name, Positive], BeforeValidator(_shares)] = Field(
        "cases", description="of several datasets in the samples: as many as cases, equal, or {dataset: share}"
    )
    progressive_patch_size: float = Field(
        0.9,
        ge=0,
        le=1,
        description="fraction of the run over which patch edges grow from half to full; 0: full patches",
    )
    validations: int = Field(5, ge=0, le=1_000_000, description="number of whole-volume validations during the run")
    checkpoint_seconds: float = Field(60.0, gt=0)
    workers: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="processes that prepare batches (same batches for any number); None: chosen for the device",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class AugmentationConfig(Group):
    """Probabilities and ranges of the random transforms, after nnU-Net v2's table.

    They apply to augmented patches, whose fraction rises from 0 to 1 over the warm-up. A network that has seen each
    case only a few times does not overfit yet, and learns faster without augmentation (benchmarks/EXPERIMENTS.md).
    """

    RENAMED: ClassVar[dict[str, str]] = {"passes": "warmup_epochs"}

    warmup_epochs: float = Field(
        100.0, ge=0, description="epochs until every patch is augmented; the fraction rises linearly from 0"
    )
    rotation: float = Field(0.2, ge=0, le=1)
    rotation_degrees: float = Field(
        30.0, ge=0, le=180, description="about each axis; strongly anisotropic plans rotate freely in-plane instead"
    )
    scaling: float = Field(0.2, ge=0, le=1)
    scaling_range: Range = (0.7, 1.4)
    mirror: float = Field(0.5, ge=0, le=1, description="per axis in the plan's mirror_axes")
    noise: float = Field(0.1, ge=0, le=1)
    noise_variance: float = Field(0.01, ge=0, description="largest; nnU-Net calls its deviation of 0.1 a variance")
    blur: float = Field(0.2, ge=0, le=1)
    blur_sigma: Range = (0.5, 1.0)
    brightness: float = Field(0.15, ge=0, le=1)
    brightness_range: Range = (0.75, 1.25)
    contrast: float = Field(0.15, ge=0, le=1)
    contrast_range: Range = (0.75, 1.25)
    low_resolution: float = Field(0.25, ge=0, le=1)
    low_resolution_range: FractionRange = (0.5, 1.0)
    gamma: float = Field(0.3, ge=0, le=1)
    gamma_inverted: float = Field(0.1, ge=0, le=1)
    gamma_range: Range = (0.7, 1.5)
    channel_dropout: float = Field(
        0.0, ge=0, le=1, description="one of several channels is set to 0; also in patches that are not augmented yet"
    )


# Of a run that starts from a model, where the user sets nothing else: large steps would undo what it has learned, and
# it overfits a few cases from the first step on.
FROM_MODEL: dict[str, dict[str, float]] = {
    "training": {"learning_rate": 5e-3, "warmup": 0.1, "pull_to_model": 5.0},
    "augmentation": {"warmup_epochs": 0.0},
}


class Config(Frozen):
    """One YAML file: plan choices, training and augmentation."""

    plan: PlanChoices = PlanChoices()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()

    def from_model(self) -> Self:
        """The configuration of a run that starts from a model: `FROM_MODEL` where nothing was given."""
        changes = {}
        for name, values in FROM_MODEL.items():
            group = getattr(self, name)
            unset = {key: value for key, value in values.items() if key not in group.model_fields_set}
            changes[name] = group.model_copy(update=unset)
        return self.model_copy(update=changes)
