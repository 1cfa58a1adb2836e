"""Which volume of an input is meant, where it holds several."""

from dataclasses import dataclass
from numbers import Integral

from volseg.errors import UsageError
from volseg.text import shortened, whole_number


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


def chosen(series: object, volume: object, untilt: bool) -> Choice:
    """What was chosen by the options series and volume.

    Args:
        series: a text, a whole number, or None.
        volume: a whole number from 1, or None.
        untilt: see `Choice`.

    Raises:
        UsageError: another type, an empty text, or a number below 1.
    """
    named = isinstance(series, str | Integral) and not isinstance(series, bool) and str(series).strip()
    if series is not None and not named:
        raise UsageError(f"--series is {series!r}. Give a SeriesInstanceUID or the number of a series.")
    if volume is not None and (not isinstance(volume, Integral) or isinstance(volume, bool) or volume < 1):
        raise UsageError(
            f"volume is {shortened(repr(volume), 100)}. Give the number of a volume, from 1; "
            "volseg.predict takes volume='all' as well."
        )
    return Choice(None if series is None else str(series), None if volume is None else int(volume), untilt=untilt)


def volume_number(volume: int | str | None) -> int | None:
    """The number of a volume; None for all, and where none was chosen.

    Raises:
        UsageError: it is neither a positive number nor "all".
    """
    if volume is None or volume == "all":
        return None
    number = whole_number(volume)
    if not number:
        raise UsageError(f"--volume is {shortened(str(volume), 100)}. Give the number of a volume, from 1, or all.")
    return number
