"""Which volume of an input is meant, where it holds several."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What the user chose.

    Args:
        series: SeriesInstanceUID or SeriesNumber of a DICOM series; None: the only one.
        volume: number of a volume of a 4-D image, from 1; None: it has to be 3-D, or to have the model's channels.
        modality: the DICOM modality that the model takes, such as "CT"; None: unknown. Where there are several series,
            those of another modality and derived ones are set aside.
        untilt: resample a CT with gantry tilt to an upright grid for the network.
    """

    series: str | None = None
    volume: int | None = None
    modality: str | None = None
    untilt: bool = False


# Nothing was chosen.
ONLY = Choice()
