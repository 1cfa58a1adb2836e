"""Mutations of headers that are text: NRRD and MetaImage."""

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzzing.changes import Change, cut, flipped
from tests.reading import metaimage, nrrd
from tests.reading.right import REFUSED, SHORT, Right
from tests.reading.volume import Volume

OPERATIONS = (
    "removed", "removed", "empty", "zero", "nan", "infinite", "huge", "negative", "swapped", "one less", "one more",
    "other", "of another field", "twice",
)  # fmt: skip
# Values that stand in other files of the formats.
OTHERS = {
    "type": ("ushort", "float", "uchar", "int16", "block", "half"),
    "encoding": ("gzip", "raw", "ascii", "bzip2", "hex"),
    "endian": ("big", "little", "pdp"),
    "space": ("RAS", "scanner-xyz", "left-anterior-superior", "LPST", "3D-right-handed"),
    "kinds": ("list domain domain", "domain domain time", "space space space"),
    "space units": ('"um" "um" "um"', '"m" "m" "m"', '"mm" "mm" "um"', '"" "" ""'),
    "dimension": ("4", "2"),
    "data file": ("gone.raw", "LIST", "scan.nhdr"),
    "ElementType": ("MET_USHORT", "MET_FLOAT", "MET_UCHAR", "MET_SHORT_ARRAY", "MET_OTHER"),
    "NDims": ("2", "4"),
    "CompressedData": ("True", "False"),
    "BinaryData": ("False",),
    "BinaryDataByteOrderMSB": ("True", "False"),
    "ElementDataFile": ("LOCAL", "gone.raw", "LIST", "scan%02d.raw 1 3 1"),
    "ObjectType": ("Scene", "Tube"),
}


def nrrd_file(name: str, encoding: str = "raw") -> Any:
    """A maker of NRRD inputs."""

    def make(rng: np.random.Generator, volume: Volume, folder: Path) -> tuple[Path, Change, Right]:
        order = str(rng.choice(["<", ">"]))
        space = str(rng.choice(["left-posterior-superior", "RAS", "left-anterior-superior"]))
        fields = nrrd.header(volume, encoding, order, space)
        return _made(rng, folder / name, fields, nrrd.packed(volume.voxels, encoding, order), nrrd, "data file")

    return make


def metaimage_file(name: str, compressed: bool = False) -> Any:
    """A maker of MetaImage inputs."""

    def make(rng: np.random.Generator, volume: Volume, folder: Path) -> tuple[Path, Change, Right]:
        order = str(rng.choice(["<", ">"]))
        data = metaimage.packed(volume.voxels, order)
        data = zlib.compress(data, 1) if compressed else data
        fields = metaimage.header(volume, len(data) if compressed else None, order)
        fields["ElementDataFile"] = "LOCAL"
        return _made(rng, folder / name, fields, data, metaimage, "ElementDataFile")

    return make


def _made(
    rng: np.random.Generator, path: Path, fields: dict[str, str], voxels: bytes, kind: Any, link: str
) -> tuple[Path, Change, Right]:
    """Write a mutated file, and the file of its voxels if its name says that it has one."""
    beside = path.with_suffix(".raw") if path.suffix in (".nhdr", ".mhd") else None
    if beside is not None:
        fields[link] = beside.name
    choice, change = rng.random(), Change("nothing")
    if 0.03 <= choice < 0.75:
        change = _field(rng, fields)
        if choice > 0.6:
            change += _field(rng, fields)
    data = kind.contents(fields, b"" if beside else voxels)
    if choice >= 0.88:
        data, change = flipped(rng, data, len(kind.contents(fields, b"")))
    elif choice >= 0.75 and beside is None:
        data, change = cut(rng, data)
    elif choice >= 0.75:
        voxels, change = cut(rng, voxels)
    path.write_bytes(data)
    if beside is not None:
        beside.write_bytes(voxels)
    if beside is None:
        return path, change, kind.meaning(data)
    named = re.search(rf"^{link}\s*[:=] ?(.*)$".encode(), data, re.MULTILINE)
    if named is not None and named[1] == beside.name.encode():
        return path, change, kind.meaning(data, voxels)
    # A name of another file leads nowhere, or to too few bytes; without a name, the voxels are not there at all.
    other = b"" if named is None else named[1]
    return path, change, SHORT if other in (b"", b"LOCAL", path.name.encode()) else REFUSED


def _field(rng: np.random.Generator, fields: dict[str, str]) -> Change:
    """Change a field in place."""
    name = str(rng.choice(list(fields)))
    operation = str(rng.choice(OPERATIONS))
    value = fields.pop(name)
    what = Change(f"{name}: {operation}", odd_numbers=operation in ("nan", "infinite", "huge"))
    if operation == "removed":
        return what
    # Fields keep their place, which matters in MetaImage.
    after = [one for one in fields if one in ("ElementDataFile",)]
    if operation == "twice" and name != "ElementDataFile":
        separator = " = " if "ObjectType" in {name, *fields} else ": "
        fields[name] = f"{value}\n{name}{separator}{_changed(rng, name, value, 'negative', fields)}"
    else:
        operation = "other" if operation == "twice" else operation
        fields[name] = _changed(rng, name, value, operation, fields)
    for one in after:
        fields[one] = fields.pop(one)
    return what


def _changed(rng: np.random.Generator, name: str, value: str, operation: str, fields: dict[str, str]) -> str:
    """The value after an operation."""
    if operation == "of another field":
        return str(rng.choice(list(fields.values())))
    if operation == "empty":
        return ""
    if operation == "other" and name in OTHERS:
        return str(rng.choice(OTHERS[name]))
    words = value.split() or ["1"]
    at = int(rng.integers(len(words)))
    if operation == "one less":
        del words[at]
    elif operation == "one more":
        words.insert(at, words[at])
    elif operation == "swapped":
        other = int(rng.integers(len(words)))
        words[at], words[other] = words[other], words[at]
    else:
        words[at] = _number(rng, words[at], operation)
    return " ".join(words)


def _number(rng: np.random.Generator, word: str, operation: str) -> str:
    """A word with one of its numbers changed, or a number in place of a word without one."""
    found = list(re.finditer(r"-?\d+(\.\d+)?(e[-+]\d+)?", word))
    chosen = found[rng.integers(len(found))] if found else None
    number = chosen[0] if chosen else "1"
    fresh = {
        "zero": "0", "nan": "nan", "infinite": "inf", "negative": f"-{number}".removeprefix("--"),
        "huge": ("1e30", "65536", "4000000000", "1e300")[rng.integers(4)], "other": f"{float(number) * 2:g}",
    }[operation]  # fmt: skip
    return fresh if chosen is None else word[: chosen.start()] + fresh + word[chosen.end() :]
