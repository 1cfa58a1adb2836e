"""Value types of configurations, and validation of documents with readable errors."""

import re
import reprlib
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from volseg.errors import ConfigError, VolsegError
from volseg.text import shortened

Triple = tuple[int, int, int]
Axis = Literal[0, 1, 2]
# Bounds, so that what a file or a stranger's model says takes no more memory or time than a real model could:
# sizes of arrays and numbers of things, physical lengths, intensities (of float32) and names.
LARGEST_COUNT, LARGEST_NUMBER = 10**9, 3e38
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Size = Annotated[int, Field(ge=1, le=4096)]
Byte = Annotated[int, Field(ge=0, le=255)]
Positive = Annotated[float, Field(gt=0, le=LARGEST_NUMBER)]
# From a tenth of a nanometre to ten metres.
Spacing = Annotated[float, Field(ge=1e-7, le=1e4)]
Length = Annotated[float, Field(ge=1e-7, le=1e8)]
Offset = Annotated[float, Field(ge=-1, le=1)]
Intensity = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Volume = Annotated[float, Field(ge=0, le=LARGEST_NUMBER)]
Name = Annotated[str, Field(max_length=500)]
# Of sizes and intensities, in augmentation.
Factor = Annotated[float, Field(gt=0, le=100)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Mid = Literal["light", "matched"] | Size
Norm = Literal["instance", "batch", "group", "none"]
Activation = Literal["leaky_relu", "relu", "gelu"]
Normalisation = Literal["zscore", "zscore_nonzero", "ct", "rescale", "rgb", "none"]

# Normalisations after which an intensity means the same in every scan, so that its range over scans says something.
ABSOLUTE = ("ct", "rgb", "none")
# The levels of quantiles that describe a histogram. Symmetric, so that the quantiles of inverted intensities are those
# of the original in reverse.
LEVELS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
# DICOM modalities by the names that channels have in datasets.
MODALITIES = {
    **dict.fromkeys(("ct", "cbct"), "CT"),
    **dict.fromkeys(("mr", "mri", "t1", "t1w", "t1ce", "t1gd", "t1c", "t2", "t2w", "flair", "pd", "dwi", "adc"), "MR"),
    **dict.fromkeys(("pet", "pt", "fdg", "fdg-pet"), "PT"),
}
# The class index of voxels that nobody annotated: the loss leaves them out.
IGNORED = -1
# Errors listed in one message, and the characters of a value that each of them quotes.
SHOWN = 10
QUOTED = 200
# Characters of a name that is numbered, so that it stays a `Name`.
_NAME = 400
_QUOTES = reprlib.Repr()
_QUOTES.maxlevel, _QUOTES.maxstring, _QUOTES.maxother = 3, 3 * QUOTED, 3 * QUOTED
_QUOTES.maxlist = _QUOTES.maxtuple = _QUOTES.maxdict = 20


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of channels that nobody can mix up: those that are alike but for case and blanks get their numbers.

    {"0": "T2", "1": "CT", "2": "CT"} are T2, CT_1 and CT_2, as nnU-Net numbers their files.
    """
    keys = [" ".join(name.casefold().split()) for name in names]
    if len(set(keys)) == len(keys):
        return tuple(names)
    return distinct_names(
        [f"{name.strip()[:_NAME]}_{at}" if keys.count(keys[at]) > 1 else name for at, name in enumerate(names)]
    )


def known_name(name: str, known: Collection[str]) -> str | None:
    """Which of some names in lower case a channel has, whether or not `distinct_names` numbered it; None: none of them.

    Of "ct" and "rescale_to_0_1", those are the names of CT_1 and rescale_to_0_1_2.
    """
    name = name.strip().lower()
    while name not in known:
        shorter = re.sub(r"_[0-9]+$", "", name)
        if shorter == name:
            return None
        name = shorter
    return name


class Frozen(BaseModel):
    """An immutable value that rejects unknown keys, NaN and infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"expected the lower value first, [{pair[1]:g}, {pair[0]:g}]")
    return pair


def _unique(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError("expected each axis only once")
    return axes


IntensityRange = Annotated[tuple[Intensity, Intensity], AfterValidator(_ascending)]
LengthRange = Annotated[tuple[Length, Length], AfterValidator(_ascending)]
OffsetRange = Annotated[tuple[Offset, Offset], AfterValidator(_ascending)]
VolumeRange = Annotated[tuple[Volume, Volume], AfterValidator(_ascending)]
Range = Annotated[tuple[Factor, Factor], AfterValidator(_ascending)]
FractionRange = Annotated[tuple[Fraction, Fraction], AfterValidator(_ascending)]
Axes = Annotated[tuple[Axis, ...], AfterValidator(_unique)]
Value = TypeVar("Value", bound=Frozen)


def checked(kind: type[Value], document: Any, source: str, error_type: type[VolsegError] = ConfigError) -> Value:
    """Validate `document` as `kind`.

    Args:
        kind: the expected type.
        document: of plain dicts, lists, strings and numbers.
        source: its origin, for the message.
        error_type: of the error.

    Raises:
        VolsegError: of `error_type`; one sentence that names each invalid key with its value.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        found = error.errors()
        # What is wrong within a list or mapping counts, not that the whole is wrong, too.
        inner = {detail["loc"][:at] for detail in found for at in range(len(detail["loc"]))}
        complaints = [_complaint(detail, kind) for detail in found if detail["loc"] not in inner]
        more = [f"and {len(complaints) - SHOWN} more"] if len(complaints) > SHOWN else []
        raise error_type(f"{source} is invalid: {'; '.join(complaints[:SHOWN] + more)}.") from error


def _complaint(detail: Any, kind: type[Frozen]) -> str:
    place = shortened(".".join(str(part) for part in detail["loc"]), QUOTED)
    if detail["type"] == "extra_forbidden":
        similar = get_close_matches(str(detail["loc"][-1]), _keys(kind, detail["loc"][:-1]), n=1)
        return f"unknown key '{place}'" + "".join(f" (a similar key is '{key}')" for key in similar)
    if detail["type"] == "missing":
        return f"'{place}' is missing"
    message = shortened(detail["msg"].removeprefix("Value error, ").rstrip("."), 2 * QUOTED)
    if detail["type"] == "model_type":
        message = "expected a mapping of keys to values"
    if detail["type"] == "tuple_type":
        message = "expected a list"
    found = _QUOTES.repr(detail["input"])
    found = found if len(found) <= QUOTED else f"{found[:QUOTED]}..."
    return f"'{place}': {message}, found {found}" if place else message


def _keys(kind: Any, place: tuple[str | int, ...]) -> list[str]:
    """The known keys of the mapping at `place` within `kind`; none where a list or a choice lies in between."""
    for part in place:
        field = getattr(kind, "model_fields", {}).get(part)
        kind = field.annotation if field else None
    return list(getattr(kind, "model_fields", {}))
