"""UIDs, dates and times of results, derived from what the results are made of.

The same source, model, options and labels give the same UIDs, so a repeat is the same object in an archive, byte for
byte, and anything else has other UIDs.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from volseg.data.io.dicom.values import text
from volseg.dicom.source import Source
from volseg.version import __version__

# Where a source states no date at all and the standard requires one.
NO_DATE, NO_TIME = "19000101", "000000"
_DATES = ("Content", "Acquisition", "Series", "Study")
# Libraries that decide on bytes of the objects.
_WRITERS = ("pydicom", "highdicom")


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
        """The UID of a part of the result, such as ("segmentation", "series").

        Returns:
            2.25 and a UUID as a decimal number, DICOM PS3.5 B.2; the UUID is of version 5 in RFC 9562, by name.
        """
        digest = hashlib.sha256("\0".join((self.seed, *role)).encode()).digest()
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def identity_of(source: Source, model_sha256: str, options: Mapping[str, Any], labels: np.ndarray) -> Identity:
    """The identity of the result of a model for a source.

    Args:
        source: its SOP Instance UIDs and frames count.
        model_sha256: of the model file.
        options: everything else that decides on the result, as JSON values.
        labels: (I, J, K) integers, of any memory order; values and shape count.
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
    for k in range(labels.shape[2]):
        # Slice by slice, and as one dtype, so that no second array of the scan's size is needed.
        digest.update(np.ascontiguousarray(labels[:, :, k].T, dtype="<u2").data)
    return Identity(digest.hexdigest(), *_when(source))


def _when(source: Source) -> tuple[str, str]:
    """The first date that the source states, and its time: of its content, acquisition, series or study."""
    for name in _DATES:
        date, time = text(source.header, f"{name}Date"), text(source.header, f"{name}Time")
        if len(date) == 8 and date.isdecimal():
            return date, time if _is_time(time) else NO_TIME
    return NO_DATE, NO_TIME


def _is_time(value: str) -> bool:
    """Whether a text is a time of day as DICOM writes it: HHMMSS, with a fraction or without."""
    whole, _, fraction = value.partition(".")
    return len(whole) == 6 and whole.isdecimal() and len(fraction) <= 6 and (not fraction or fraction.isdecimal())
