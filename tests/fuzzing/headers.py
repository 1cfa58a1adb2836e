"""Mutations of binary headers: NIfTI and MGH."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzzing.changes import Change, cut, flipped
from tests.reading import mgh as mgh_format
from tests.reading import nifti as nifti_format
from tests.reading.right import Right
from tests.reading.volume import Volume

OPERATIONS = ("zero", "nan", "infinite", "huge", "negative", "swapped", "other")


def nifti(name: str, version: int = 1) -> Any:
    """A maker of NIfTI inputs."""

    def make(rng: np.random.Generator, volume: Volume, folder: Path) -> tuple[Path, Change, Right]:
        slope, inter = ((0, 0), (0, 0), (2, -10), (-0.5, 3))[rng.integers(4)]
        record = nifti_format.header(volume, version, str(rng.choice(["<", ">"])), slope, inter)
        voxels = volume.voxels
        data, change = mutated(rng, record, lambda: nifti_format.contents(record, voxels))
        return _written(rng, folder / name, data, change, nifti_format.meaning)

    return make


def mgh(name: str) -> Any:
    """A maker of MGH inputs."""

    def make(rng: np.random.Generator, volume: Volume, folder: Path) -> tuple[Path, Change, Right]:
        record = mgh_format.header(volume)
        data, change = mutated(rng, record, lambda: mgh_format.contents(record, volume.voxels))
        return _written(rng, folder / name, data, change, mgh_format.meaning)

    return make


def mutated(rng: np.random.Generator, record: np.ndarray, contents: Any) -> tuple[bytes, Change]:
    """The bytes of a file after mutations of its header, or of its bytes."""
    choice = rng.random()
    if choice < 0.03:
        return contents(), Change("nothing")
    if choice < 0.75:
        change = _field(rng, record)
        return contents(), change + _field(rng, record) if choice > 0.6 else change
    data = contents()
    return cut(rng, data) if choice < 0.88 else flipped(rng, data, record.dtype.itemsize)


def _written(
    rng: np.random.Generator, path: Path, data: bytes, change: Change, meaning: Any
) -> tuple[Path, Change, Right]:
    """Write the bytes, compressed if the name says so; the stream may be mutated in turn."""
    if path.suffix in (".gz", ".mgz"):
        data = gzip.compress(data, 1, mtime=0)
        if not change.damaged and rng.random() < 0.15:
            data, more = cut(rng, data) if rng.random() < 0.7 else flipped(rng, data, len(data))
            change += more
    path.write_bytes(data)
    return path, change, meaning(data)


def _field(rng: np.random.Generator, record: np.ndarray) -> Change:
    """Change a field, or one of its elements, in place."""
    name = str(rng.choice(record.dtype.names))
    values = record[name]
    operation = str(rng.choice(OPERATIONS))
    if values.dtype.kind == "S":
        record[name] = {"zero": b"", "swapped": bytes(values)[::-1]}.get(operation, b"\xff%s{}")
        return Change(f"{name}: {operation}")
    at: Any = ...
    if values.ndim and rng.random() < 0.8:
        at = tuple(int(rng.integers(size)) for size in values.shape)
    if operation == "swapped" and values.ndim and rng.random() < 0.6:
        flat = values.ravel()
        one, two = rng.integers(flat.size, size=2)
        flat[[one, two]] = flat[[two, one]]
        record[name] = flat.reshape(values.shape)
        return Change(f"{name}: elements {one} and {two} swapped")
    changed = np.array(values)
    changed[at] = _changed(rng, changed[at], operation)
    record[name] = changed
    odd = operation in ("nan", "infinite", "swapped", "huge", "other")
    where = "" if at is ... else f" {list(at)}"
    return Change(f"{name}{where}: {operation}", odd_numbers=odd and values.dtype.kind == "f")


def _changed(rng: np.random.Generator, value: np.ndarray, operation: str) -> np.ndarray:
    """The value after an operation."""
    value = np.asarray(value)
    if operation == "swapped":
        return value.byteswap()
    if value.dtype.kind in "iu":
        limits = np.iinfo(value.dtype)
        huge = limits.max if rng.random() < 0.5 else limits.max // 2
        other = min(int(rng.integers(1, 64)), limits.max)
        # NaN and infinity do not exist for whole numbers.
        choices = {"zero": 0, "huge": huge, "negative": limits.min if limits.min and rng.random() < 0.2 else -1}
        return np.array(choices.get(operation, other)).astype(value.dtype)
    with np.errstate(all="ignore"):
        choices = {
            "zero": np.zeros_like(value), "nan": value * np.nan, "infinite": value * 0 + np.inf,
            "huge": value * 0 + 10.0 ** float(rng.integers(3, 38)), "negative": -np.abs(value),
            "other": value * float(rng.choice([0.5, 2.0, 1.01, 25.4])),
        }  # fmt: skip
        return choices[operation].astype(value.dtype)
