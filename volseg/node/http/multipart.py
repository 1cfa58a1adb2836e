"""Multipart bodies (RFC 2046) as streams."""

import re
from collections.abc import Iterator

from volseg.errors import InputError

# The longest header of a part.
_LONGEST_HEAD = 2**14


def parts_of(blocks: Iterator[bytes], content_type: str) -> Iterator[Iterator[bytes]]:
    """The parts of a multipart body, each as blocks without its header; nothing is held in memory.

    Each part has to be read before the next one.

    Raises:
        InputError: it is not multipart, or ends within a part.
    """
    # RFC 2046 allows 70 characters; Orthanc takes 73.
    boundary = re.search(r'boundary="?([^";,]{1,200})', content_type)
    if not content_type.lower().startswith("multipart/related") or not boundary:
        raise InputError("The request is not multipart/related with a boundary.")
    reader = _Parts(blocks, b"\r\n--" + boundary[1].strip().encode("latin-1"))
    for _ in reader.until_delimiter():
        pass
    while reader.begins_part():
        yield reader.until_delimiter()


class _Parts:
    """The state of `parts_of`: what was read of the body and not yet given out."""

    def __init__(self, blocks: Iterator[bytes], delimiter: bytes) -> None:
        self._blocks, self._delimiter = blocks, delimiter
        # A body may begin with the delimiter without its line end.
        self._held = bytearray(b"\r\n")

    def _more(self) -> None:
        try:
            self._held += next(self._blocks)
        except StopIteration as error:
            raise InputError("The multipart body ends within a part.") from error

    def until_delimiter(self) -> Iterator[bytes]:
        """The blocks before the next delimiter, which is taken away."""
        keep = len(self._delimiter) - 1
        while (place := self._held.find(self._delimiter)) < 0:
            if len(self._held) > keep:
                yield bytes(self._held[: len(self._held) - keep])
                del self._held[: len(self._held) - keep]
            self._more()
        yield bytes(self._held[:place])
        del self._held[: place + len(self._delimiter)]

    def begins_part(self) -> bool:
        """Whether another part follows the delimiter; its header is taken away."""
        while len(self._held) < 2:
            self._more()
        if self._held.startswith(b"--"):
            return False
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > _LONGEST_HEAD:
                raise InputError("The header of a part is too long.")
            self._more()
        # The line end stays: a part without content is followed by the delimiter, which begins with one.
        del self._held[: end + 4]
        return True
