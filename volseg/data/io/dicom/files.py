"""The files of an input: a file, a folder with its sub-folders, a .zip, or the files that a DICOMDIR lists."""

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from shutil import copyfileobj

from pydicom import dcmread

from volseg.data.io.dicom.values import element, items, parsing, texts
from volseg.data.io.formats import DICOM_SUFFIXES
from volseg.errors import InputError, ResourceError
from volseg.files import access_to, folders_below

LARGEST_ZIP_BYTES = 16 * 2**30
DICOMDIR = "DICOMDIR"


@contextmanager
def files_of(path: Path) -> Iterator[dict[Path, str]]:
    """The files of an input with their names for messages; those of a .zip are there until the end of the block.

    Raises:
        InputError: a folder or .zip cannot be read, or a file that a DICOMDIR lists is missing.
        ResourceError: the temporary folder has no room for the files of a .zip.
    """
    if path.is_dir():
        with access_to(path):
            files = sorted(_files_below(path))
        yield {file: str(file.relative_to(path)) for file in files}
    elif path.suffix.lower() == ".zip":
        with tempfile.TemporaryDirectory(prefix="volseg-") as folder:
            yield _unpacked(path, Path(folder))
    elif path.name.upper() == DICOMDIR:
        yield _listed(path)
    else:
        yield {path: path.name}


def kind_of(name: str) -> str:
    """The suffix of a file in lower case; numbers count as one suffix, because file names may be UIDs."""
    suffix = PurePath(name).suffix.lower()
    return ".0" if suffix[1:].isdecimal() else suffix


def _files_below(folder: Path) -> list[Path]:
    """The files in a folder and its sub-folders; one that is there twice by links counts once.

    A broken link with the suffix of a slice is included, so that reading it fails.
    """
    below = [parent / name for parent, names in folders_below(folder) for name in names]
    found = [file for file in below if file.is_file() or (file.is_symlink() and kind_of(file.name) in DICOM_SUFFIXES)]
    return list({os.path.realpath(file): file for file in sorted(found, reverse=True)}.values())


def _listed(path: Path) -> dict[Path, str]:
    """The files that a DICOMDIR lists."""
    try:
        with access_to(path), parsing(str(path)):
            data = dcmread(path)
            records = element(data, "DirectoryRecordSequence")
            # pydicom takes what is there of a sequence that is cut short.
            if records is not None and isinstance(records.value, bytes) and len(records.value) != records.length:
                raise EOFError
            parts = [texts(record, "ReferencedFileID") for record in items(data, "DirectoryRecordSequence")]
    except InputError as error:
        raise InputError(f"{path} is not a readable DICOMDIR; give the folder of its files.") from error
    files = {path.parent.joinpath(*one): "/".join(one) for one in parts if one}
    missing = [name for file, name in files.items() if not file.is_file()]
    if missing:
        raise InputError(
            f"{path} lists {len(files)} files, but {len(missing)} are not there, such as {missing[0]}; "
            "copy the whole file set, or give the folder of one series."
        )
    return files


def _unpacked(path: Path, folder: Path) -> dict[Path, str]:
    """Extract the files of a .zip into one folder as numbers; the archive's own names are used only in messages."""
    names = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            total = sum(member.file_size for member in members)
            if total > LARGEST_ZIP_BYTES:
                raise InputError(
                    f"{path} unpacks to {total / 2**30:.1f} GiB, at most {LARGEST_ZIP_BYTES / 2**30:.1f} are accepted; "
                    "unpack it and give the folder."
                )
            if any(member.flag_bits & 1 for member in members):
                raise InputError(f"{path} is encrypted; unpack it and give the folder.")
            for number, member in enumerate(members):
                extracted = folder / f"{number:06}"
                names[extracted] = member.filename
                with archive.open(member) as stream, open(extracted, "wb") as file:
                    copyfileobj(stream, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{path} is not a readable .zip file ({error}); copy it again.") from error
    except OSError as error:
        raise ResourceError(f"Could not unpack {path} to {folder}: {error.strerror or error}.") from error
    return names
