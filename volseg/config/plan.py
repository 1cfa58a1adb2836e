"""The plan: all choices made before training, and everything that prediction needs besides the weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from volseg.config.network import NetworkConfig
from volseg.config.values import (
    LEVELS,
    Axes,
    Axis,
    Byte,
    Count,
    Frozen,
    Intensity,
    IntensityRange,
    LengthRange,
    Name,
    Normalisation,
    OffsetRange,
    Positive,
    Size,
    Spacing,
    Triple,
    Volume,
    VolumeRange,
    distinct_names,
)

# Bounds that no real model comes near. 512 x 512 x 512 voxels are 2**27.
MOST_CHANNELS, MOST_LABELS, MOST_PATCH_VOXELS = 1000, 4000, 2**27
# What DICOM takes as one value of a text: no backslash, no control character, not blank.
_ONE_VALUE = r"^[^\\\x00-\x1f\x7f]*[^\\\x00-\x20\x7f][^\\\x00-\x1f\x7f]*$"


class Channel(Frozen):
    """One input channel and how its intensities are normalised."""

    name: Name = "image"
    normalisation: Normalisation = "zscore"
    clip: IntensityRange | None = Field(None, description="ct: 0.5 and 99.5 percentile of the foreground")
    mean: Intensity | None = Field(None, description="ct: mean of the foreground")
    std: Positive | None = Field(None, description="ct: standard deviation of the foreground")
    mean_range: IntensityRange | None = Field(
        None, description="lowest and highest mean intensity of a training scan, stored units"
    )

    @model_validator(mode="after")
    def _ct_has_numbers(self) -> Self:
        if self.normalisation == "ct" and None in (self.clip, self.mean, self.std):
            raise ValueError("normalisation 'ct' needs clip, mean and std of the training foreground")
        return self


class CodedName(Frozen):
    """A term of a coding scheme, such as 64033007, SCT, Kidney: what DICOM objects say of a label."""

    value: str = Field(min_length=1, max_length=16, pattern=_ONE_VALUE, description="code value")
    scheme: str = Field(min_length=1, max_length=16, pattern=_ONE_VALUE, description="SCT for SNOMED CT, DCM, ...")
    meaning: str = Field(min_length=1, max_length=64, pattern=_ONE_VALUE, description="the term in words")


class LabelCode(CodedName):
    """The term for what a label is, with its category and a modifier such as its side where they are stated."""

    category: CodedName | None = None
    modifier: CodedName | None = None

    def __str__(self) -> str:
        """The term and its modifier in words, with their codes."""
        parts = [self, *([self.modifier] if self.modifier else [])]
        return ", ".join(f"{one.meaning} ({one.scheme} {one.value})" for one in parts)


class Sides(Frozen):
    """Labels that exist once on the left and once on the right: a flip along the sagittal axis exchanges them."""

    axis: Axis = Field(description="network axis that runs from left to right")
    pairs: tuple[tuple[int, int], ...] = Field(
        min_length=1, max_length=MOST_LABELS, description="values of the labels that belong together"
    )


class Label(Frozen):
    """A foreground label: its name, its value in label images, its colour and its code."""

    name: Name
    value: int = Field(ge=1, le=65535)
    parts: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        (), max_length=MOST_LABELS, description="a region's stored values, its own included; () for a plain label"
    )
    colour: tuple[Byte, Byte, Byte] | None = None
    volume_ml_range: VolumeRange | None = Field(
        None, description="smallest and largest volume in the training references, mL"
    )
    code: LabelCode | None = Field(None, description="what it is in DICOM objects; without one, its name decides")

    @model_serializer(mode="wrap")
    def _without_missing_code(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Older versions read the plans and model files of labels without a code.
        document: dict[str, Any] = handler(self)
        if document.get("code") is None:
            document.pop("code", None)
        return document

    @property
    def stored_values(self) -> tuple[int, ...]:
        """The values of the label in label images: a region's parts, else its own."""
        return self.parts or (self.value,)


def labels_by_rule(labels: Sequence[Label]) -> dict[str, tuple[Label, ...]]:
    """The labels that may have a rule for their components, by name: each with the labels inside it.

    These are all plain labels, and the regions that no other region contains or overlaps only in part, such as a whole
    tumour: a component of it is removed with everything in it.

    Returns:
        In the order of `labels`: the label itself, then those whose stored values are all among its own.
    """
    owner: dict[int, str] = {}
    inside: dict[str, list[Label]] = {}
    cut: set[str | None] = set()
    for label in sorted(labels, key=lambda one: -len(set(one.stored_values))):
        owners = {owner.get(value) for value in label.stored_values}
        if owners == {None}:
            inside[label.name] = [label]
        elif len(owners) > 1:
            cut |= owners
        else:
            inside.get(owner[label.stored_values[0]], []).append(label)
        for value in label.stored_values:
            owner.setdefault(value, label.name)
    return {one.name: tuple(inside[one.name]) for one in labels if one.name in inside and one.name not in cut}


class ComponentRule(Frozen):
    """Which 26-connected components of a label are kept; all others become background.

    The Dice values are of the cases that the rule was chosen on, so they are slightly optimistic.
    """

    smallest_ml: Volume = Field(0.0, description="smallest volume that is kept, mL")
    largest_only: bool = Field(False, description="keep only the largest of these; all of several equally large ones")
    dice_before: float | None = Field(
        None, description="mean Dice of the label on the validation cases without the rule; of folds, out of fold"
    )
    dice_after: float | None = Field(None, description="the same with the rule")

    def __str__(self) -> str:
        """The rule in words, with its Dice values if it has any."""
        least = f"of at least {self.smallest_ml:g} mL" if self.smallest_ml else ""
        largest = f"only the largest component{least and f', if {least}'}"
        kept = largest if self.largest_only else f"components {least}"
        if self.dice_before is None or self.dice_after is None:
            return kept
        return f"{kept} (Dice {self.dice_before:.4f} before, {self.dice_after:.4f} after)"


def rules_in_words(rules: Mapping[str, ComponentRule]) -> str:
    """Rules in words, by label name."""
    return "; ".join(f"{name}: {rule}" for name, rule in rules.items()) or "none"


Quantiles = Annotated[tuple[IntensityRange, ...], Field(min_length=len(LEVELS), max_length=len(LEVELS))]


class ScanRanges(Frozen):
    """What all training scans have been like: the lowest and the highest value of each measurement.

    Only of scans that state the size of their voxels. Along R, A, S: the axes of the closest RAS+ order.
    """

    spacing_mm: tuple[LengthRange, LengthRange, LengthRange]
    extent_mm: tuple[LengthRange, LengthRange, LengthRange] = Field(description="of the whole scan")
    quantiles: tuple[Quantiles, ...] = Field(
        max_length=MOST_CHANNELS, description="per channel, of intensities, see `volseg.data.grid.histogram`"
    )
    offsets: dict[Name, tuple[OffsetRange, OffsetRange, OffsetRange]] = Field(
        default_factory=dict,
        max_length=MOST_LABELS,
        description="per label, of its centre from that of all labels, in edges of the bounding box of all labels",
    )


class Resampling(Frozen):
    """How values are resampled: by B-splines of an order, axis by axis.

    nnU-Net resamples an axis that is much coarser than the others separately; see
    `volseg.data.grid.resample.separate_axis`.
    """

    order: Literal[0, 1, 2, 3, 4, 5] = Field(1, description="0 nearest, 1 linear, 3 cubic")
    separate: Literal["never", "always", "anisotropic"] = Field(
        "never", description="when the coarsest axis is resampled separately"
    )
    separate_order: Literal[0, 1, 2, 3, 4, 5] = Field(0, description="spline order of the separate axis")
    anisotropy: Positive = Field(3.0, description="spacing ratio above which 'anisotropic' applies")
    nearest: Literal["scipy", "torch"] = Field(
        "scipy", description="whose arithmetic at order 0 decides between two voxels that are equally near"
    )
    antialias: bool = Field(
        False, description="average along axes that become coarser, over the voxels that one of the result stands for"
    )

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Plans without these stay as they were, and with them the keys of cached cases.
        return _without(handler(self), nearest="scipy", antialias=False)


def exchanged_order(count: int, pairs: tuple[tuple[int, int], ...]) -> list[int]:
    """The numbers below `count` with those of each pair exchanged: what a flip from left to right makes of classes."""
    order = list(range(count))
    for one, other in pairs:
        order[one], order[other] = other, one
    return order


def _without(document: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """A document without the keys that have these values."""
    return {key: value for key, value in document.items() if key not in defaults or value != defaults[key]}


class Plan(Frozen):
    """All choices made before training, and everything that prediction needs besides the weights.

    Class 0 is the background; class c >= 1 is `labels[c - 1]`, written to label images as its `value`. With `regions`
    there is no background class and classes overlap: class c is `labels[c]`, present where its logit is above 0, and
    later regions are written over earlier ones.
    """

    dataset: Name
    channels: tuple[Channel, ...] = Field(max_length=MOST_CHANNELS)
    labels: tuple[Label, ...] = Field(max_length=MOST_LABELS)
    regions: bool = False
    ignore: int | None = Field(None, ge=1, le=65535, description="value of voxels that nobody annotated (ignore label)")
    orientation: Literal["ras", "stored"] = Field(
        "ras", description="voxel order of the input: closest RAS+, or as stored"
    )
    axes: Triple = Field((2, 0, 1), description="axes of the oriented scan that become D, H, W; D is through-plane")
    dimensions: Literal[2, 3] = Field(
        3, description="2: each slice by itself, at the distance that the scan has; D of spacing_mm is the usual one"
    )
    crop: Literal["none", "nonzero"] = Field("none", description="none, or the bounding box of all nonzero voxels")
    image_resampling: Resampling = Resampling()
    label_resampling: Literal["nearest", "linear"] = Field(
        "nearest", description="of training references: nearest, or linear per label, where the largest wins"
    )
    logits_resampling: Resampling = Resampling()
    spacing_mm: tuple[Spacing, Spacing, Spacing]
    patch_size: tuple[Size, Size, Size]
    batch_size: Size = 2
    mirror_axes: Axes = Field(
        (), description="network axes that may be flipped in augmentation and test-time augmentation"
    )
    sides: Sides | None = Field(None, description="which labels a flip from left to right exchanges; None: none")
    steps: Count = 20_000
    scan_ranges: ScanRanges | None = Field(None, description="of the training scans; None in older and imported models")
    network: NetworkConfig

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Older versions read the plans and model files that do without these.
        return _without(handler(self), dimensions=3, label_resampling="nearest", sides=None, scan_ranges=None)

    @model_validator(mode="after")
    def _slices_are_flat(self) -> Self:
        if self.dimensions == 2 and self.patch_size[0] != 1:
            raise ValueError(f"dimensions are 2, but patch_size {self.patch_size} has more than one slice")
        if self.dimensions == 2 and 0 in self.mirror_axes:
            raise ValueError("dimensions are 2, but mirror_axes has 0, the axis through the slices")
        return self

    @field_validator("channels")
    @classmethod
    def _distinct_channels(cls, channels: tuple[Channel, ...]) -> tuple[Channel, ...]:
        # Of models that others trained, and of older ones.
        names = distinct_names([channel.name for channel in channels])
        return tuple(one.model_copy(update={"name": name}) for one, name in zip(channels, names, strict=True))

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        self._check_labels()
        if self.sides:
            self._check_sides(self.sides)
        if self.network.in_channels != len(self.channels):
            raise ValueError(
                f"network.in_channels is {self.network.in_channels}, but there are {len(self.channels)} channels"
            )
        if self.scan_ranges and len(self.scan_ranges.quantiles) != len(self.channels):
            raise ValueError(
                f"scan_ranges.quantiles are of {len(self.scan_ranges.quantiles)} channels, but there are "
                f"{len(self.channels)}"
            )
        needed = len(self.labels) + (not self.regions)
        if self.network.classes != needed:
            what = "regions" if self.regions else "labels and background"
            raise ValueError(f"network.classes is {self.network.classes}, but {len(self.labels)} {what} need {needed}")
        if self.logits_resampling.order != 1 or self.logits_resampling.separate_order > 1:
            raise ValueError("logits_resampling has to be linear, with nearest or linear along a separate axis")
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"axes are {self.axes}, expected each of 0, 1 and 2 once")
        if (voxels := math.prod(self.patch_size)) > MOST_PATCH_VOXELS:
            raise ValueError(
                f"patch_size {self.patch_size} has {voxels:,} voxels, at most {MOST_PATCH_VOXELS:,} are supported"
            )
        for size, divisor in zip(self.patch_size, self.network.divisor, strict=True):
            if size < 1 or size % divisor:
                raise ValueError(
                    f"patch_size {self.patch_size} is not a multiple of the network's strides {self.network.divisor}"
                )
        return self

    def _check_labels(self) -> None:
        """Reject labels that cannot be told apart."""
        if len({label.value for label in self.labels}) != len(self.labels) or len(
            {label.name for label in self.labels}
        ) != len(self.labels):
            raise ValueError("two labels share a name or a value")
        if self.ignore in self.stored_values:
            raise ValueError(f"ignore is {self.ignore}, which is the value of a label")

    def _check_sides(self, sides: Sides) -> None:
        """Reject sides that the labels, the axes or the regions do not allow."""
        values = [value for pair in sides.pairs for value in pair]
        unknown = set(values) - {label.value for label in self.labels}
        if self.regions or len(set(values)) < len(values) or unknown:
            raise ValueError(f"sides.pairs are {sides.pairs}, expected each plain label at most once")
        if self.orientation != "ras" or self.axes[sides.axis] != 0:
            raise ValueError(f"sides.axis is {sides.axis}, expected the network axis that runs from left to right")

    @property
    def side_pairs(self) -> tuple[tuple[int, int], ...]:
        """The classes that a flip along `sides.axis` exchanges, in pairs; none without sides."""
        classes = {label.value: index for index, label in enumerate(self.labels, start=1)}
        return tuple((classes[one], classes[other]) for one, other in (self.sides.pairs if self.sides else ()))

    def spacing_of(self, scan_spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """The spacing of a scan in network space: the plan's, but with two dimensions that of the scan along D.

        Args:
            scan_spacing_mm: of the scan along D, H, W.
        """
        through = scan_spacing_mm[0] if self.dimensions == 2 else self.spacing_mm[0]
        return (through, *self.spacing_mm[1:])

    @property
    def stored_values(self) -> tuple[int, ...]:
        """The values of all labels in references, each once; those of plain labels in the order of the classes."""
        return tuple(dict.fromkeys(value for label in self.labels for value in label.stored_values))
