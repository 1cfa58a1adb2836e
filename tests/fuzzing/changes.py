"""What is done to bytes, whatever their format."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Change:
    """Args:
    what: in words.
    damaged: bytes were cut off or flipped.
    odd_numbers: a number may have become NaN or infinite.
    """

    what: str
    damaged: bool = False
    odd_numbers: bool = False

    def __add__(self, other: "Change") -> "Change":
        what = "; ".join(filter(None, (self.what, other.what)))
        return Change(what, self.damaged or other.damaged, self.odd_numbers or other.odd_numbers)


def cut(rng: np.random.Generator, data: bytes) -> tuple[bytes, Change]:
    """The first part of some bytes: so many sixteenths, or some bytes less than all."""
    sixteenths = int(rng.integers(17))
    end = len(data) * sixteenths // 16 if sixteenths < 16 else len(data) - int(rng.integers(1, 17))
    return data[:end], Change(f"cut to {end} of {len(data)} bytes", damaged=True)


def flipped(rng: np.random.Generator, data: bytes, end: int) -> tuple[bytes, Change]:
    """One to three of the first `end` bytes replaced."""
    changed = bytearray(data)
    places = rng.integers(0, end, int(rng.integers(1, 4)))
    for at in places:
        changed[at] ^= int(rng.integers(1, 256))
    where = ", ".join(map(str, sorted(places.tolist())))
    return bytes(changed), Change(f"bytes flipped at {where}", damaged=True, odd_numbers=True)
