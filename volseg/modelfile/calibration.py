"""The calibration of a model: how its probabilities relate to the truth, measured on cases it was not trained on."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from volseg.config.values import Frozen, Name

# Temperatures beyond these are no calibration: probabilities would be all equal, or all 0 and 1.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 50.0
# Bins of a reliability diagram, and labels of a model.
BINS, MOST_LABELS = 10, 10_000
# Numbers that the expected Dice is made from.
FEATURES = 6

Weight = Annotated[float, Field(ge=-1000, le=1000)]
Unit = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Temperature = Annotated[float, Field(ge=LOWEST_TEMPERATURE, le=HIGHEST_TEMPERATURE)]


class LabelCalibration(Frozen):
    """How the estimates of one label are made from its probabilities, see `volseg.confidence.estimate`.

    The errors and the coverage are those of cases that took no part in the fit.
    """

    intercept: Weight = Field(0.0, description="of the logit of the expected Dice")
    weights: Annotated[tuple[Weight, ...], Field(min_length=FEATURES, max_length=FEATURES)] = Field(
        (1.0, *(0.0,) * (FEATURES - 1)), description="of the features, see volseg.confidence.estimate.features"
    )
    lowest: Annotated[tuple[Weight, ...], Field(min_length=FEATURES, max_length=FEATURES)] = Field(
        (-100.0,) * FEATURES, description="features are kept between those of the fit"
    )
    highest: Annotated[tuple[Weight, ...], Field(min_length=FEATURES, max_length=FEATURES)] = (100.0,) * FEATURES
    typical_ml: float | None = Field(None, gt=0, le=1e18, description="median volume of the label in the references")
    error: Unit | None = Field(None, description="mean absolute error of expected_dice, clean and degraded scans")
    clean_error: Unit | None = Field(None, description="the same on clean scans alone")
    low_confidence: Unit | None = Field(None, description="expected_dice below which the label is flagged")
    volume_low: float | None = Field(None, ge=-1e6, le=1e6, description="bounds of the 90 % interval of the volume")
    volume_high: float | None = Field(None, ge=-1e6, le=1e6)
    volume_coverage: Unit | None = Field(None, description="of the interval on clean scans")
    cases: Count = Field(0, description="clean scans with the label")

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if (self.volume_low is None) != (self.volume_high is None):
            raise ValueError("volume_low and volume_high belong together; give both or neither")
        if self.volume_low is not None and self.volume_high is not None and self.volume_low > self.volume_high:
            raise ValueError(f"volume_low {self.volume_low:g} is above volume_high {self.volume_high:g}")
        if any(low > high for low, high in zip(self.lowest, self.highest, strict=True)):
            raise ValueError("lowest has a number above the one at its place in highest")
        return self


class Reliability(Frozen):
    """A reliability diagram over ten bins of equal width of the probability of a label."""

    voxels: Annotated[tuple[Count, ...], Field(min_length=BINS, max_length=BINS)]
    probability: Annotated[tuple[Unit, ...], Field(min_length=BINS, max_length=BINS, description="mean of each bin")]
    frequency: Annotated[
        tuple[Unit, ...], Field(min_length=BINS, max_length=BINS, description="fraction with the label in each bin")
    ]
    error: Unit = Field(description="expected calibration error: mean |frequency - probability|, weighted by voxels")


class Calibration(Frozen):
    """What turns the logits of a model into probabilities and estimates that agree with the truth."""

    temperature: Temperature = Field(1.0, description="logits are divided by it before softmax or sigmoid")
    labels: Annotated[dict[Name, LabelCalibration], Field(max_length=MOST_LABELS)]
    before: Reliability = Field(description="at the tried temperature nearest to 1")
    after: Reliability = Field(description="at `temperature`")
    cases: Count = Field(0, description="clean scans")
    degraded: Count = Field(0, description="degraded copies of them")
    out_of_fold: bool = Field(False, description="of an ensemble: each case by the member not trained on it")
