"""The files of an input: a file, a folder with its sub-folders, a .zip, or the files that a DICOMDIR lists.

Files are often named after the patient. So messages name them by number, "file 12 of 40 by name", and with --debug as
they are; the same holds for temporary files.
"""

import lzma
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO

from pydicom import dcmread

from volseg.data.io.dicom.values import element, items, parsing, texts
from volseg.data.io.formats import DICOM_SUFFIXES, content_of, image_suffix
from volseg.errors import InputError, ResourceError
from volseg.files import access_to, folders_below, is_hidden, open_to_read
from volseg.text import shows_names

LARGEST_ZIP_BYTES = 16 * 2**30
# Files of a .zip: more than the largest series have slices.
MOST_MEMBERS = 30_000
# How many times its size a .zip may unpack to if that is more than so many bytes: slices shrink to a third,
# segmentations to a hundredth.
MOST_TIMES, UNSUSPICIOUS_BYTES = 300, 2**28
# Files that are so small that they cannot be DICOM: what begins the format has 132 bytes.
SMALLEST_FILE, MOST_SMALL = 132, 1000
DICOMDIR = "DICOMDIR"
# Methods of compression by their numbers in a .zip (PKWARE, APPNOTE.TXT 6.3.10, section 4.4.5).
_METHODS = {
    1: "shrink", 6: "implode", 9: "deflate64", 10: "implode", 12: "bzip2", 14: "lzma", 93: "zstd", 94: "mp3", 95: "xz",
    96: "jpeg", 97: "wavpack", 98: "ppmd",
}  # fmt: skip
# What zipfile raises for damaged archives.
_CORRUPT = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, RuntimeError
)  # fmt: skip
# The record at the end of a .zip, what locates its 64-bit form, and that form (APPNOTE.TXT, sections 4.3.14 to 4.3.16).
_END, _LOCATOR, _END64 = b"PK\5\6", b"PK\6\7", b"PK\6\6"
_END_BYTES, _LOCATOR_BYTES, _LONGEST_COMMENT = 22, 20, 2**16
# Bytes of a file in the list of files: a long name, and what programs add.
_ENTRY_BYTES = 300
_ENCRYPTED, _PATCHED = 0x1 | 0x40, 0x20
_BLOCK = 2**20


@contextmanager
def files_of(path: Path) -> Iterator[dict[Path, str]]:
    """The files of an input with their names for messages; those of a .zip are there until the end of the block.

    Raises:
        InputError: a folder or .zip cannot be read, or a file that a DICOMDIR lists is missing.
        ResourceError: the temporary folder has no room for the files of a .zip.
    """
    if path.is_dir():
        with access_to(path, private=True):
            files = sorted(_files_below(path))
        yield numbered({file: str(file.relative_to(path)) for file in files})
    elif path.suffix.lower() == ".zip":
        with tempfile.TemporaryDirectory(prefix="volseg-") as folder:
            yield _unpacked(path, Path(folder))
    elif path.name.upper() == DICOMDIR:
        yield _listed(path)
    else:
        yield {path: path.name}


def numbered(names: Mapping[Path, str]) -> dict[Path, str]:
    """What messages call files, in the same order: each by its number in the order of their names.

    Args:
        names: within their input.
    """
    if shows_names():
        return dict(names)
    ordered = sorted(names, key=lambda file: name_order(names[file]))
    numbers = {file: f"file {number} of {len(ordered)} by name" for number, file in enumerate(ordered, 1)}
    return {file: numbers[file] for file in names}


def name_order(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts names like `ls -v`: the numbers in them by value."""
    return [(not digits, int(digits or 0), other) for digits, other in re.findall(r"(\d+)|(\D+)", name)]


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
    entries: dict[Path, dict[str, str]] = {}
    with access_to(path.parent, private=True):
        files = numbered({_in_any_case(path.parent, one, entries): "/".join(one) for one in parts if one})
    missing = [name for file, name in files.items() if not file.is_file()]
    if missing:
        raise InputError(
            f"{path} lists {len(files)} files, but {len(missing)} are not there, such as {missing[0]}; "
            "copy the whole file set, or give the folder of one series."
        )
    return files


def _in_any_case(folder: Path, parts: list[str], entries: dict[Path, dict[str, str]]) -> Path:
    """A path below a folder, even if letters there are upper case instead of lower case, as some systems copy a CD.

    Args:
        folder: of the DICOMDIR.
        parts: its folders and its name.
        entries: the names in each folder by their lower case, as far as they are known.
    """
    for part in parts:
        if not (folder / part).exists() and folder.is_dir():
            if folder not in entries:
                entries[folder] = {name.lower(): name for name in sorted(os.listdir(folder))}
            part = entries[folder].get(part.lower(), part)
        folder = folder / part
    return folder


def _unpacked(path: Path, folder: Path) -> dict[Path, str]:
    """Extract the files of a .zip into one folder, as numbers in the order of their names and with neutral suffixes."""
    names: dict[Path, str] = {}
    kinds: dict[str, int] = {}
    with access_to(path), open_to_read(path) as stream:
        listed = _list_bytes(stream)
    if listed > MOST_MEMBERS * _ENTRY_BYTES:
        raise _unusable(path, f"has a list of files of {listed / 2**20:.0f} MiB")
    with _unzipping(path), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if _is_meant(member)]
        _reject_unusable(members, path)
        _require_room(sum(member.file_size for member in members), folder, path)
        for number, member in enumerate(sorted(members, key=lambda one: name_order(one.filename))):
            extracted = folder / f"{number:06}{_neutral_end(member.filename, kinds)}"
            names[extracted] = member.filename
            with archive.open(member) as stream:
                _write_blocks(_blocks_of(stream), extracted, path)
    return numbered(names)


def _list_bytes(stream: IO[bytes]) -> int:
    """The size of the list of files in a .zip, which zipfile reads whole; 0 if there is none."""
    size = stream.seek(0, os.SEEK_END)
    start = stream.seek(max(size - _END_BYTES - _LONGEST_COMMENT - _LOCATOR_BYTES, 0))
    last = stream.read()
    place = last.rfind(_END)
    if place < 0 or len(last) < place + _END_BYTES:
        return 0
    locator = last[max(place - _LOCATOR_BYTES, 0) : place]
    if locator.startswith(_LOCATOR) and len(locator) == _LOCATOR_BYTES:
        (offset,) = struct.unpack_from("<Q", locator, 8)
        # The stated place is wrong where something was put before the .zip; the record itself is before its locator.
        for begin in (offset, start + place - _LOCATOR_BYTES - 56):
            stream.seek(min(max(begin, 0), size))
            record = stream.read(56)
            if record.startswith(_END64) and len(record) == 56:
                return int(struct.unpack_from("<Q", record, 40)[0])
    return int(struct.unpack_from("<L", last, place + 12)[0])


def _require_room(total: int, folder: Path, path: Path) -> None:
    """Check that the temporary folder has room for the files of a .zip.

    Raises:
        ResourceError: it has not.
    """
    if total > (free := shutil.disk_usage(folder).free):
        raise ResourceError(
            f"{path} unpacks to {total / 2**20:.0f} MiB, but the temporary folder (TMPDIR) has {free / 2**20:.0f} MiB "
            "left. Free some space there, set TMPDIR to another folder, or unpack it and give the folder."
        )


def _neutral_end(name: str, kinds: dict[str, int]) -> str:
    """The end of a file's name that tells its kind, without the name; `kinds` numbers the unusual ones."""
    if name.upper().endswith(DICOMDIR):
        return DICOMDIR
    kind = kind_of(name)
    return kind if kind in (*DICOM_SUFFIXES, ".0", "") else f".kind{kinds.setdefault(kind, len(kinds))}"


def _is_meant(member: zipfile.ZipInfo) -> bool:
    """Whether an entry of a .zip is a file that is not hidden."""
    return not member.is_dir() and not any(map(is_hidden, PurePath(member.filename).parts))


def _reject_unusable(members: list[zipfile.ZipInfo], path: Path) -> None:
    """Reject a .zip that is too large, or has files that cannot be extracted, or are archives themselves."""
    total = sum(member.file_size for member in members)
    inner = [member for member in members if member.filename.lower().endswith(".zip")]
    scans = {suffix for member in members if (suffix := image_suffix(Path(member.filename)))}
    packed = sum(member.compress_size for member in members)
    if len(members) > MOST_MEMBERS:
        reason = f"contains {len(members)} files, at most {MOST_MEMBERS} are accepted"
    elif (small := sum(member.file_size < SMALLEST_FILE for member in members)) > MOST_SMALL:
        reason = f"contains {small} files that are too small for DICOM"
    elif total > max(MOST_TIMES * packed, UNSUSPICIOUS_BYTES):
        reason = f"unpacks to {total / max(packed, 1):.0f} times its size ({total / 2**20:.0f} MiB), as no series does"
    elif total > LARGEST_ZIP_BYTES:
        reason = f"unpacks to {total / 2**30:.1f} GiB, at most {LARGEST_ZIP_BYTES / 2**30:.1f} are accepted"
    elif any(member.flag_bits & _ENCRYPTED for member in members):
        reason = "is encrypted"
    elif inner:
        reason = f"contains {len(inner)} .zip within the .zip"
    elif scans:
        reason = f"contains scans that are not DICOM ({', '.join(sorted(scans))})"
    elif methods := [method for member in members if (method := _unknown_method(member))]:
        reason = f"is compressed by a method that is not supported here ({methods[0]})"
    else:
        return
    raise _unusable(path, reason)


def _unusable(path: Path, reason: str) -> InputError:
    return InputError(f"{path} {reason}; unpack it and give the folder.")


def _unknown_method(member: zipfile.ZipInfo) -> str:
    """How a file is compressed, if it cannot be extracted here; else empty."""
    if member.flag_bits & _PATCHED:
        return "patched data"
    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        return ""
    return _METHODS.get(member.compress_type, f"number {member.compress_type}")


def _blocks_of(stream: IO[bytes]) -> Iterator[bytes]:
    """The content of a file in a .zip."""
    try:
        while block := stream.read(_BLOCK):
            yield block
    # As bz2 calls corrupt data; the caller takes an OSError for one of the temporary folder.
    except OSError as error:
        raise zipfile.BadZipFile(str(error)) from error


def _write_blocks(blocks: Iterator[bytes], target: Path, path: Path) -> None:
    """Write a file of the .zip at `path` to the temporary folder."""
    try:
        with open(target, "wb") as file:
            file.writelines(blocks)
    except OSError as error:
        raise ResourceError(
            f"Could not unpack {path} to the temporary folder (TMPDIR): {error.strerror or error}. Free some space "
            "there, set TMPDIR to another folder, or unpack it and give the folder."
        ) from error


@contextmanager
def _unzipping(path: Path) -> Iterator[None]:
    """Turn the errors of zipfile into one sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} says that its file names are UTF-8, but they are not; unpack it and give the folder."
        ) from error
    except NotImplementedError as error:
        raise InputError(f"{path} needs a newer unzip program ({error}); unpack it and give the folder.") from error
    except _CORRUPT as error:
        with access_to(path), open_to_read(path) as stream:
            start = stream.read(544)
        if start and not start.startswith(b"PK"):
            content, advice = content_of(start) or (
                "of another kind",
                "unpack it and give the folder, or copy it again",
            )
            raise InputError(f"{path} is not a .zip file but {content}; {advice}.") from error
        reason = "it is empty" if not start else _without_names(error) or "it ends within a file"
        raise InputError(
            f"{path} is not a readable .zip file ({reason}); copy it again, or unpack it and give the folder."
        ) from error


def _without_names(error: Exception) -> str:
    """What zipfile says, without the names of files, which it quotes as Python does."""
    return re.sub(r"b?(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")", "...", str(error)).rstrip(".")
