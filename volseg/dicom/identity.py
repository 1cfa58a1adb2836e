"""UIDs, dates and times of results, derived from what the results are made of.

The same source, model, options and labels give the same UIDs, so a repeat is the same object in an archive, byte for
byte, and anything else has other UIDs.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date as day
from datetime import time as clock
from importlib.metadata import version
from typing import Any

import numpy as np

from volseg.data.io.dicom.values import text
from volseg.dicom.image.pixels import in_file_order
from volseg.dicom.source import Source
from volseg.dicom.uids import derived_uid
from volseg.version import __version__

# Where a source states no date at all and the standard requires one.
NO_DATE, NO_TIME = "19000101", "000000"
_DATES = ("Content", "Acquisition", "Series", "Study")
# Libraries that decide on bytes of the objects.
_WRITERS = ("pydicom", "highdicom", "contourpy")


@dataclass(frozen=True)
class Identity:
    """Where the UIDs of one result come from.

    Args:
        seed: hexadecimal digest of source, model, options and labels.
        date: DA of the source; `NO_DATE` if it states none.
        time: TM of the source.
    """

    seed: str
    date: str
    time: str

    def uid(self, *role: str) -> str:
        """The UID of a part of the result, such as ("segmentation", "series")."""
        return derived_uid(self.seed, *role)


def identity_of(source: Source, model_sha256: str, options: Mapping[str, Any], labels: np.ndarray) -> Identity:
    """The identity of the result of a model for a source.

    Args:
        source: its SOP Instance UIDs and frames count.
        model_sha256: of the model file.
        options: everything else that decides on the result, as JSON values.
        labels: (I, J, K) uint8 or uint16, of any memory order; values, type and shape count.
    """
    digest = hashlib.sha256()
    about = {
        "source": [[one.instance, one.frame] for one in source.references],
        "model": model_sha256,
        "options": dict(options),
        "shape": labels.shape,
        "versions": [__version__, *map(version, _WRITERS)],
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    pixels = in_file_order(labels)
    digest.update(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).data)
    return Identity(digest.hexdigest(), *_when(source))


def _when(source: Source) -> tuple[str, str]:
    """The first date that the source states, and its time: of its content, acquisition, series or study."""
    for name in _DATES:
        date, time = text(source.header, f"{name}Date"), text(source.header, f"{name}Time")
        if _is_date(date):
            return date, time if _is_time(time) else NO_TIME
    return NO_DATE, NO_TIME


def _is_date(value: str) -> bool:
    """Whether a text is a day of the calendar as DICOM writes it: YYYYMMDD."""
    with suppress(ValueError):
        return len(value) == 8 and value.isascii() and value.isdecimal() and bool(day.fromisoformat(value))
    return False


def _is_time(value: str) -> bool:
    """Whether a text is a time of day as DICOM writes it: HHMMSS, with a fraction or without."""
    whole, dot, fraction = value.partition(".")
    if not (len(whole) == 6 and (whole + fraction).isdecimal() and value.isascii()) or bool(dot) != bool(fraction):
        return False
    with suppress(ValueError):
        return len(fraction) <= 6 and bool(clock.fromisoformat(f"T{whole}"))
    return False
