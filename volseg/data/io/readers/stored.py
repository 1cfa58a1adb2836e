"""What every reader returns, and the errors that a corrupt file raises in libraries."""

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from isal.isal_zlib import IsalError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from volseg.errors import InputError
from volseg.files import access_to

# Errors of nibabel, gzip and the system on corrupt files.
UNREADABLE = (
    OSError,
    EOFError,
    ArithmeticError,
    ValueError,
    TypeError,
    KeyError,
    IsalError,
    HeaderDataError,
    WrapStructError,
    MGHError,
)


class Stored(NamedTuple):
    """An image before its voxels are checked.

    Args:
        array: (I, J, K) or (I, J, K, C), the values that the file means.
        affine: 4 x 4 to RAS+ millimetres.
        header: nibabel header of a NIfTI or MGH image, else None.
        source: its path or kind, for messages.
        warnings: assumptions made when reading, one sentence each.
        unstated: why its size in millimetres is a convention and no statement of the file, so that no volume in mL
            can be given; empty if the file states it.
        chosen: what was read where a place may hold more, for the record: the "series" of DICOM and the "volume".
        slices: of a DICOM series, along K: one `volseg.data.io.dicom.frames.Frame` each; empty for other formats and
            for mosaics, whose slices are no frames.
    """

    array: np.ndarray
    affine: np.ndarray
    header: Any
    source: str
    warnings: list[str]
    unstated: str = ""
    chosen: Mapping[str, Any] = MappingProxyType({})
    slices: tuple[Any, ...] = ()


@contextlib.contextmanager
def unreadable_as_input_error(source: str) -> Iterator[None]:
    """Report any failure to read as a corrupt file, unless the system denies access to it."""
    try:
        with access_to(source):
            yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{source} cannot be read: corrupt, truncated or of an unknown type ({reason}); copy it again."
        ) from error
