"""One suspicion about a scan."""

from typing import NamedTuple

from volseg.inference.quality import ScanFlag


class Finding(NamedTuple):
    """A flag of a scan, and a sentence for the warnings of the record that says what was found against what."""

    flag: ScanFlag
    sentence: str
