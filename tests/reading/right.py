"""What is right for a file, however it came about: the volumes that may be read, and the words of a warning."""

from dataclasses import dataclass, field

from tests.reading.volume import Volume


@dataclass(frozen=True)
class Right:
    """What is right.

    Args:
        volumes: any of them may be read; none: the file has to be refused.
        warn: any of these words has to be in a warning if a volume is read; empty: no warning is needed.
        whole: the file is plain, so refusing it is wrong.
        short: it has fewer bytes than its header promises, or is damaged, so the sentence may say that.
    """

    volumes: tuple[Volume, ...] = ()
    warn: tuple[str, ...] = ()
    whole: bool = False
    short: bool = False


REFUSED = Right()
SHORT = Right(short=True)


@dataclass
class Doubts:
    """What a reference reader noticed: words that a warning has to have, and whether refusing is right as well."""

    warn: list[str] = field(default_factory=list)
    refusable: bool = False

    def about(self, *words: str) -> None:
        self.warn += words
        self.refusable = True

    def about_spare(self, spare: bytes) -> None:
        """Bytes after the voxels, which are said, or a part of something else that is in doubt."""
        if spare and not self.warn:
            self.about("after the voxels")

    def right(self, *volumes: Volume) -> Right:
        return Right(volumes, tuple(self.warn), whole=not self.refusable)


class NonsenseError(Exception):
    """A reference reader found a statement without a meaning: the file has to be refused."""
