"""What a calibration is fitted on: sums of every scan, kept beside a run so that ensembles can pool them."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from volseg.confidence.sums import Sums
from volseg.config import Frozen
from volseg.config.values import Name
from volseg.modelfile.calibration import BINS

# Temperatures in steps of a fifth.
TEMPERATURES = tuple(round(0.45 * 1.19**step, 3) for step in range(16))
FILE_NAME = "calibration.json"

_Number = Annotated[float, Field(ge=0, le=1e18)]
_PerTemperature = Annotated[
    tuple[tuple[_Number, _Number, _Number, _Number], ...],
    Field(min_length=len(TEMPERATURES), max_length=len(TEMPERATURES)),
]
_Bins = Annotated[tuple[tuple[_Number, _Number, _Number], ...], Field(min_length=BINS, max_length=BINS)]


class LabelRecord(Frozen):
    """One label of one scan.

    `sums` are those of `Sums`, in its order, at each of `TEMPERATURES`; volumes are in the size that the scan states.
    """

    dice: float | None = Field(ge=0, le=1, description="None where nobody looked for the label, or neither has it")
    reference_ml: _Number | None
    volume_ml: _Number
    sums: _PerTemperature

    def at(self, index: int) -> Sums:
        """The sums at the temperature of this index."""
        return Sums(*self.sums[index])  # type: ignore[arg-type]  # numbers in place of arrays


class ScanRecord(Frozen):
    """One scan; `bins` and `loss` per temperature only of clean ones, see `volseg.confidence.reliability`."""

    case: Name
    group: int = Field(0, description="of an ensemble: the member")
    kind: str = Field("", max_length=20, description="how it was degraded; empty: not at all")
    voxel_ml: float = Field(gt=0, description="of network space")
    labels: Annotated[dict[Name, LabelRecord], Field(max_length=10_000)]
    bins: Annotated[tuple[_Bins, ...], Field(max_length=len(TEMPERATURES))] = ()
    loss: Annotated[tuple[_Number, ...], Field(max_length=len(TEMPERATURES))] = ()

    @field_validator("bins", "loss")
    @classmethod
    def _check_all_or_none(cls, found: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(found) not in (0, len(TEMPERATURES)):
            raise ValueError(f"expected {len(TEMPERATURES)}, one per temperature, or none; found {len(found)}")
        return found


class Records(Frozen):
    """calibration.json of a run."""

    temperatures: tuple[float, ...] = TEMPERATURES
    scans: Annotated[tuple[ScanRecord, ...], Field(max_length=100_000)]
