"""The voxels of sorted slices: counted before they are read, and with the meaning that their tags state."""

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from volseg.data.io.dicom.decode import decoded, is_lossy, may_be_lossy, pixel_bytes
from volseg.data.io.dicom.frames import Frame
from volseg.data.io.dicom.pixel_format import PixelFormat, format_of
from volseg.data.io.dicom.values import element, items, number, numbers, parsing, shown, text
from volseg.data.io.readers.streams import scaled
from volseg.errors import InputError

# Philips' private scale slope, next to which RescaleSlope gives the values that are displayed.
_PHILIPS_SCALE = 0x2005100E
# The private sequence that holds it in the functional groups of a frame.
_PHILIPS_FRAME = 0x2005140F


def voxels(slices: Sequence[Frame], source: str) -> tuple[np.ndarray, list[str]]:
    """The voxels (I, J, K) of sorted slices after their modality transforms, and warnings.

    Integers where all slopes and intercepts are whole numbers, else float32 or, where that is not exact, float64.

    Raises:
        InputError: pixels are missing, corrupt, in colour, or their meaning is not stated.
    """
    formats = {header: format_of(header, source) for header in dict.fromkeys(frame.header for frame in slices)}
    for frame in slices:
        _check_transform(frame, source)
    columns, rows = slices[0].size
    array, padded = np.empty((0, rows, columns), np.uint8), 0
    for k, frame in enumerate(slices):
        form = formats[frame.header]
        values = form.values(_words(frame, form, source))
        padded += _padding(frame.header.data, values, form)
        meant = _meant(frame, values, form, source)
        array = _with_room(array, meant.dtype, k, len(slices))
        array[k] = meant
    if array.dtype in (np.int32, np.int64) and array.min() >= -(2**15) and array.max() < 2**15:
        array = array.astype(np.int16)
    spare = max(form.spare for form in formats.values())
    filled = [f"PixelData has up to {spare} more bytes than pixels, all zero; they are not used."] if spare else []
    return array.transpose(2, 1, 0), _warnings(slices, padded) + filled


def _with_room(array: np.ndarray, kind: np.dtype, filled: int, count: int) -> np.ndarray:
    """An array of `count` slices that can hold values of a type; the first `filled` are kept."""
    together = kind if not filled else np.result_type(array.dtype, kind)
    if len(array) == count and array.dtype == together:
        return array
    wider = np.empty((count, *array.shape[1:]), together)
    wider[:filled] = array[:filled]
    return wider


def _words(frame: Frame, form: PixelFormat, source: str) -> np.ndarray:
    """The words (rows, columns) of a frame as unsigned integers in native byte order."""
    header = frame.header
    if header.encapsulated:
        if form.high != form.stored - 1:
            raise InputError(f"{header.among(source)}: HighBit {form.high} is not supported in compressed pixels.")
        # Pixels that are compressed are decoded with the sign extended.
        return decoded(frame, form, source).view(f"u{form.allocated // 8}")
    kind = np.dtype(f"{'>' if header.big_endian else '<'}u{form.allocated // 8}")
    content = pixel_bytes(header, frame.index * form.frame_bytes, form.frame_bytes, kind.itemsize)
    if len(content) != form.frame_bytes:
        raise InputError(f"{header.among(source)} ends before its last pixel; copy it again.")
    words = np.frombuffer(content, kind).reshape(form.rows, form.columns)
    return words.astype(kind.newbyteorder("="), copy=False)


def _check_transform(frame: Frame, source: str) -> None:
    """Reject a modality transform that is not stated whole."""
    slope, intercept = frame.slope, frame.intercept
    where = frame.header.among(source)
    with parsing(where):
        table = items(frame.header.data, "ModalityLUTSequence")
    if (slope is None) != (intercept is None):
        absent = "RescaleSlope" if slope is None else "RescaleIntercept"
        raise InputError(f"{where}: {absent} is absent, so the values have no meaning; export the series again.")
    if table and slope is not None:
        raise InputError(f"{where} has a Modality LUT Sequence and a RescaleSlope, expected one of them.")
    if slope is not None and intercept is not None and not (np.isfinite((slope, intercept)).all() and slope):
        raise InputError(
            f"{where}: RescaleSlope is {shown(slope)} and RescaleIntercept {shown(intercept)}, expected finite "
            "numbers and no slope of 0; export the series again."
        )


def _meant(frame: Frame, values: np.ndarray, form: PixelFormat, source: str) -> np.ndarray:
    """What the stored values of a frame mean: RescaleSlope and RescaleIntercept, or the table, applied."""
    table = items(frame.header.data, "ModalityLUTSequence")
    if table:
        return _looked_up(table[0], values, form, frame.header.big_endian, frame.header.among(source))
    slope, intercept = frame.slope, frame.intercept
    if slope is None or intercept is None or (slope, intercept) == (1.0, 0.0):
        return values
    if not (slope.is_integer() and intercept.is_integer()):
        return scaled(values, slope, intercept)
    ends = [int(end) * int(slope) + int(intercept) for end in (values.min(), values.max())]
    kind = next((kind for kind in (np.int16, np.int32, np.int64) if _holds(kind, ends)), None)
    if kind is None:
        return scaled(values, slope, intercept)
    # The product may pass the type where the sum does not, so it is computed in 64 bits unless it is the value.
    narrow = slope == 1.0 and _holds(kind, [int(values.min()), int(values.max()), int(intercept)])
    wide = np.multiply(values, int(slope), dtype=kind if narrow else np.int64)
    wide += int(intercept)
    whole: np.ndarray = wide.astype(kind, copy=False)
    return whole


def _holds(kind: type[np.signedinteger], ends: Sequence[int]) -> bool:
    limits = np.iinfo(kind)
    return min(ends) >= limits.min and max(ends) <= limits.max


def _looked_up(table: Dataset, values: np.ndarray, form: PixelFormat, big_endian: bool, where: str) -> np.ndarray:
    """The values of a Modality LUT (DICOM PS3.3 C.11.1.1): stored values before its first entry have that entry."""
    stated = numbers(table, "LUTDescriptor")
    found = element(table, "LUTData")
    if len(stated) != 3 or found is None or not np.isfinite(stated).all():
        raise InputError(f"{where}: the Modality LUT Sequence has no LUTDescriptor or LUTData; export it again.")
    count, first, bits = int(stated[0]) or 2**16, int(stated[1]), int(stated[2])
    if form.signed and first >= 2**15:
        first -= 2**16
    kind = ">u2" if big_endian else "<u2"
    content = found.value if isinstance(found.value, bytes) else np.array(found.value, kind).tobytes()
    narrow = bits <= 8 and len(content) < 2 * count
    words = np.frombuffer(content[: len(content) // 2 * 2], kind)
    entries = words.astype("<u2").view("u1") if narrow else words
    if len(entries) < count:
        raise InputError(f"{where}: the Modality LUT has {len(entries)} of its {count} entries; export it again.")
    meant: np.ndarray = entries[np.clip(values.astype(np.int64) - first, 0, count - 1)]
    return meant.astype(entries.dtype.newbyteorder("="), copy=False)


def _padding(data: Dataset, values: np.ndarray, form: PixelFormat) -> int:
    """The number of pixels that state no measurement: PixelPaddingValue, or up to PixelPaddingRangeLimit."""
    padding = number(data, "PixelPaddingValue")
    if padding is None or not np.isfinite(padding):
        return 0
    limit = number(data, "PixelPaddingRangeLimit")
    ends = sorted(_as_stored(end, form) for end in (padding, padding if limit is None else limit))
    return int(np.count_nonzero(values == ends[0] if ends[0] == ends[1] else (values >= ends[0]) & (values <= ends[1])))


def _as_stored(value: float, form: PixelFormat) -> int:
    """A value of 16 bits, whose sign an unsigned value representation loses, as the pixels store it."""
    return int(value) - 2**16 if form.signed and value >= 2**15 else int(value)


def _has_philips_scale(frame: Frame) -> bool:
    """Whether Philips' own scale is stated for a frame, in the dataset or in its functional groups."""
    data = frame.header.data
    with parsing(frame.header.name):
        groups = items(data, "PerFrameFunctionalGroupsSequence")
        private = items(groups[frame.index], _PHILIPS_FRAME) if groups else ()
        return any(element(one, _PHILIPS_SCALE) is not None for one in (data, *private))


def _warnings(slices: Sequence[Frame], padded: int) -> list[str]:
    """What the record has to say about the values."""
    data, found = slices[0].header.data, []
    modality, scaling = text(data, "Modality"), {(frame.slope, frame.intercept) for frame in slices}
    plain = any(frame.slope is None and not items(frame.header.data, "ModalityLUTSequence") for frame in slices)
    if modality == "CT" and plain:
        found.append("RescaleSlope and RescaleIntercept are absent; the stored values are taken as Hounsfield units.")
    kinds = slices[0].contrast.get("rescale type", ())
    if modality == "CT" and not plain and isinstance(kinds, tuple) and kinds not in ((), ("HU",)):
        found.append(f"RescaleType of the CT is {kinds[0]}, so its values may not be Hounsfield units.")
    if modality == "PT" and plain:
        found.append("RescaleSlope and RescaleIntercept are absent; the stored values are taken as activity.")
    if modality == "PT" and (units := text(data, "Units")) != "GML":
        found.append(f"The PET values are in {units or 'unstated units'} (Units), not in SUV.")
    if _has_philips_scale(slices[0]) and any(slope not in (None, 1.0) for slope, _ in scaling):
        found.append(
            "Philips MR: RescaleSlope gives displayed values; the scanner's own scale (2005,100E) is not applied."
        )
    if padded:
        found.append(f"{padded} pixels have the PixelPaddingValue, so nothing was measured there; they are kept.")
    if any(is_lossy(frame.header) for frame in slices):
        found.append("The pixels were compressed with loss (LossyImageCompression); intensities are approximate.")
    elif any(may_be_lossy(frame.header) for frame in slices):
        found.append("The pixels may have been compressed with loss; LossyImageCompression is absent.")
    return found
