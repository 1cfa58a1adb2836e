"""What an object is about: the source, the labels and the model of one result."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from volseg.config import Label
from volseg.dicom.identity import Identity, identity_of
from volseg.dicom.objects import name_of, one_line
from volseg.dicom.source import Source, source_of

# Of the record of a result, what decides on its labels.
_DECISIVE = ("precision", "overlap", "mirror_axes", "crop", "postprocessing", "series", "volume", "untilted")


@dataclass(frozen=True)
class About:
    """A result as DICOM objects need it.

    Args:
        source: the series.
        identity: where UIDs, dates and times come from.
        labels: of the model.
        model: its name.
        model_sha256: of its file.
    """

    source: Source
    identity: Identity
    labels: tuple[Label, ...]
    model: str
    model_sha256: str

    def with_options(self, options: Iterable[str]) -> "About":
        """The same, with UIDs of its own for an object that is written with options of its format."""
        chosen = sorted(options)
        if not chosen:
            return self
        return replace(self, identity=replace(self.identity, seed=self.identity.uid("options", *chosen)))

    def tracking(self, label: Label) -> tuple[str, str]:
        """The tracking UID and identifier of a label; its value tells labels of one name apart."""
        uid = self.identity.uid("segment", str(label.value), label.name)
        return uid, one_line(f"{self.model}: {name_of(label)}")


def about_result(result: Any) -> About:
    """What the objects of a `volseg.Result` are about.

    Raises:
        InputError: its scan is no DICOM series that objects can refer to.
    """
    source, run = source_of(result.scan), result.run
    options = {name: run[name] for name in _DECISIVE if name in run}
    identity = identity_of(source, run["model"]["sha256"], options, result.labels)
    return About(source, identity, result.shown, run["model"]["name"], run["model"]["sha256"])
