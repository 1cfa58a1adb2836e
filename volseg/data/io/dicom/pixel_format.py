"""How the pixels of a file are stored, and whether all of them are there."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from pydicom.uid import UID

from volseg.data.io.dicom.header import Header
from volseg.data.io.dicom.values import number, text
from volseg.errors import InputError

# Attributes that say how pixels are stored (DICOM PS3.3 C.7.6.3). All are required; none has a default.
_NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_ALLOCATED = (8, 16, 32, 64)


@dataclass(frozen=True)
class PixelFormat:
    """How one frame is stored: `stored` bits, the highest of which is number `high` of `allocated` ones.

    `spare` is the number of zeros that follow the pixels of the file.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    signed: bool
    spare: int = 0

    @property
    def frame_bytes(self) -> int:
        """The bytes of a frame without compression."""
        return self.rows * self.columns * self.allocated // 8

    def values(self, words: np.ndarray) -> np.ndarray:
        """The stored values of unsigned words of `allocated` bits: bits of overlays are dropped, the sign is extended.

        MONOCHROME1 says how an image is shown; its stored values stay.
        """
        above, unused = self.allocated - 1 - self.high, self.allocated - self.stored
        moved = words << above if above else words
        typed = moved.view(f"i{words.itemsize}") if self.signed else moved
        kept: np.ndarray = typed >> unused if unused else typed
        return kept


def format_of(header: Header, source: str, photometrics: Collection[str] = _GREY) -> PixelFormat:
    """How the pixels of a file are stored, after all checks that need no pixel.

    Args:
        header: of the file.
        source: for messages.
        photometrics: the photometric interpretations that are accepted.

    Raises:
        InputError: colour, an attribute that is absent or contradicts another, or fewer or more bytes than it states.
    """
    where = header.among(source)
    stated = {name: number(header.data, name) for name in _NEEDED}
    photometric = text(header.data, "PhotometricInterpretation")
    if photometric and photometric not in photometrics:
        raise InputError(f"{where}: the pixels are in colour ({photometric}), expected one grey value per pixel.")
    if not photometric:
        raise InputError(f"{where}: PhotometricInterpretation is absent, expected MONOCHROME1 or MONOCHROME2.")
    absent = [name for name, value in stated.items() if value is None or not float(value).is_integer()]
    if absent:
        raise InputError(
            f"{where}: {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} absent or no whole number, so the "
            "pixels have no meaning; export the series again."
        )
    rows, columns, allocated, stored, high, signed, samples = (int(value or 0) for value in stated.values())
    if samples != 1:
        raise InputError(f"{where}: SamplesPerPixel is {samples} (colour), expected one grey value per pixel.")
    if rows < 1 or columns < 1:
        raise InputError(f"{where}: Rows x Columns is {rows} x {columns}, expected positive sizes.")
    if allocated not in _ALLOCATED or not 1 <= stored <= allocated or not stored - 1 <= high < allocated:
        raise InputError(
            f"{where}: BitsAllocated {allocated}, BitsStored {stored} and HighBit {high} contradict each other or are "
            "not supported, expected stored bits within 8, 16, 32 or 64 bits; export the series again."
        )
    if signed not in (0, 1):
        raise InputError(f"{where}: PixelRepresentation is {signed}, expected 0 (unsigned) or 1 (signed).")
    found = PixelFormat(rows, columns, allocated, stored, high, bool(signed))
    return replace(found, spare=_count(header, found, where))


def _count(header: Header, form: PixelFormat, where: str) -> int:
    """Compare the bytes that the header promises with those that are there; the number of zeros behind them."""
    if not UID(header.syntax).is_transfer_syntax:
        raise InputError(
            f"{where}: the transfer syntax {header.syntax}, which the standard does not have, is not supported; store "
            "it uncompressed, for example with dcmconv or gdcmconv."
        )
    if header.encapsulated != (header.length is None):
        raise InputError(
            f"{where}: PixelData is {'not ' * header.encapsulated}compressed, but the transfer syntax is "
            f"{UID(header.syntax).name}; export the series again."
        )
    if header.encapsulated:
        return 0
    needed = form.frame_bytes * header.frames
    # An even number of bytes is stored.
    stated = header.length or 0
    here = stated if header.offset is None else min(stated, header.size - header.offset)
    if here < needed:
        raise InputError(
            f"{where} is cut short: {header.frames} x {form.rows} x {form.columns} pixels of {form.allocated} bits are "
            f"{needed} bytes, found {max(here, 0)}; copy it again."
        )
    spare = stated - needed - needed % 2
    # Some writers fill up a block with zeros. Other bytes are pixels, so the stated sizes are wrong.
    if spare > 0 and (spare >= form.frame_bytes or any(header.stored(needed))):
        raise InputError(
            f"{where}: PixelData has {stated} bytes, but NumberOfFrames x Rows x Columns ({header.frames} x "
            f"{form.rows} x {form.columns}) of {form.allocated} bits are {needed}; export the series again."
        )
    return max(spare, 0)
