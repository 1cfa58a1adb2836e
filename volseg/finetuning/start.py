"""What a run takes from the model that it starts from, label by label and channel by channel.

It is written to RUN/ancestry.json, so that a run resumes without the model, and into the card of the new model.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.config import Frozen, Name, checked
from volseg.documents import read_json, read_or
from volseg.errors import InputError, UsageError
from volseg.text import first_few

logger = logging.getLogger(__name__)

FILE_NAME = "ancestry.json"


class Match(Frozen):
    """The labels or the channels of a dataset, matched with those of a model.

    Args:
        taken: the name in the dataset: that in the model, or None for a new one. In the order of the dataset.
        dropped: names of the model that the dataset lacks.
        kept: those that are learned from the model's own predictions (--keep-labels).
    """

    taken: dict[Name, Name | None]
    dropped: tuple[Name, ...] = ()
    kept: tuple[Name, ...] = ()

    @property
    def new(self) -> list[str]:
        """Names that the model lacks."""
        return [name for name, old in self.taken.items() if old is None]

    @property
    def copied(self) -> dict[str, str]:
        """The name in the dataset: that in the model."""
        return {name: old for name, old in self.taken.items() if old is not None}

    def near(self, name: str) -> list[str]:
        """Names of the model that differ from a name of the dataset only in case, blanks or hyphens."""
        return [one for one in (*self.dropped, *self.kept) if plain_name(one) == plain_name(name)]

    def record(self) -> dict[str, Any]:
        """For the model card; what is empty is left out."""
        parts = {"copied": self.copied, "new": self.new, "dropped": list(self.dropped), "kept": list(self.kept)}
        return {key: value for key, value in parts.items() if value}


class Start(Frozen):
    """How a run starts from a model.

    Args:
        name: of the model.
        sha256: of its file.
        member: the network of an ensemble; None for a single network.
        labels: matched by name.
        channels: matched by name.
        notes: what else is kept or planned anew, and why: lines of the table.
        seen: why the model may have been trained on cases that the run validates on; "" if nothing says so.
        earlier: the models that it started from itself, as their cards say.
    """

    name: Name
    sha256: str
    member: int | None = None
    labels: Match
    channels: Match
    notes: tuple[str, ...] = ()
    seen: str = ""
    earlier: tuple[dict[str, Any], ...] = ()

    def table(self, freeze: bool = False) -> list[str]:
        """Lines for the log, the plan and its report: each label and channel copied, new, kept or dropped.

        Args:
            freeze: whether the encoder is frozen.
        """
        member = "" if self.member is None else f", member {self.member}"
        frozen = "; the encoder keeps its weights (--freeze encoder)" if freeze else ""
        lines = [f"Starting from {self.name}{member} (sha256 {self.sha256[:12]}...){frozen}:"]
        rows = [
            *_rows("label", self.labels),
            *_rows("channel", self.channels),
        ]
        width = max(len(name) for _, name, _ in rows)
        lines += [f"  {kind:7}  {name:{width}}  {what}" for kind, name, what in rows]
        return [*lines, *(f"  {note}" for note in (*self.notes, self.seen) if note)]

    def record(self) -> list[dict[str, Any]]:
        """The ancestry for the model card: this model first, then the ones that it started from."""
        own: dict[str, Any] = {"name": self.name, "sha256": self.sha256}
        if self.member is not None:
            own["member"] = self.member
        return [{**own, "labels": self.labels.record(), "channels": self.channels.record()}, *self.earlier]

    def warnings(self) -> list[str]:
        """What may not be as meant: near matches that stay apart, no label in common, scores that are too good."""
        pairs = {name: found[0] for name in self.labels.new if (found := self.labels.near(name))}
        said = []
        if pairs:
            listed = first_few([f"{name!r} (the model has {other!r})" for name, other in pairs.items()])
            said.append(f"Labels that differ from the model's only in how they are written start anew: {listed}. "
                        "--label-map NEW=OLD joins them.")  # fmt: skip
        if not self.labels.copied and not self.labels.kept:
            said.append("No label of the model is taken over, because none has the name of one in the dataset.")
        said += self._of_channels()
        return [*said, *([f"{self.seen[0].upper()}{self.seen[1:]}."] if self.seen else [])]

    def _of_channels(self) -> list[str]:
        """Signs that channels were not matched as meant: their weights would be a mean, whatever the scans are."""
        new = self.channels.new
        pairs = [f"{name!r} (the model has {found[0]!r})" for name in new if (found := self.channels.near(name))]
        said = []
        if pairs:
            said.append(
                "Channels that differ from the model's only in how they are written start from the mean of its others: "
                f"{first_few(pairs)}. Where both are the same, give them one name in the dataset."
            )
        if not self.channels.copied:
            said.append("No channel of the model is taken over, because none has the name of one in the dataset.")
        return said


def read_start(run: Path) -> Start:
    """What a run wrote down when it began.

    Raises:
        InputError: the file is missing or changed.
    """
    path = run / FILE_NAME
    advice = "Restore it, or start again with --overwrite."
    return checked(Start, read_or(InputError, read_json, path, "readable JSON", advice), str(path), InputError)


def match_labels(names: Sequence[str], known: Sequence[str], label_map: Mapping[str, str], keep: bool) -> Match:
    """Match the labels of a dataset with those of a model by name.

    Args:
        names: of the dataset's labels.
        known: of the model's.
        label_map: the name in the dataset: that in the model, where they differ.
        keep: whether labels that the dataset lacks are kept.

    Raises:
        UsageError: `label_map` names a label that one of them lacks.
    """
    for place, given, known_there in (("dataset", label_map.keys(), names), ("model", label_map.values(), known)):
        if unknown := [name for name in given if name not in known_there]:
            raise UsageError(
                f"The label map names {unknown[0]!r}, but the labels of the {place} are {first_few(known_there)}. "
                "It gives NEW=OLD, the name in the dataset and that in the model, once for each label."
            )
    taken = {name: label_map.get(name, name if name in known else None) for name in names}
    # A name of the model that the map gives to another label is no match for its own.
    missing = tuple(name for name in known if name not in taken.values())
    if keep and (clash := [name for name in missing if name in taken]):
        raise UsageError(f"The label map gives {first_few(clash)} another meaning, so the model's cannot be kept.")
    if keep and not missing:
        logger.warning("The dataset has all labels of the model (%s), so there is none to keep", first_few(known))
    return Match(taken=taken, dropped=() if keep else missing, kept=missing if keep else ())


def match_channels(names: Sequence[str], known: Sequence[str]) -> Match:
    """Match the channels of a dataset with those of a model by name; where each has a single one, they are matched."""
    if len(names) == len(known) == 1:
        return Match(taken={names[0]: known[0]})
    taken = {name: name if name in known else None for name in names}
    return Match(taken=taken, dropped=tuple(name for name in known if name not in names))


def _rows(kind: str, match: Match) -> list[tuple[str, str, str]]:
    """The rows of the table for labels or channels."""
    rows = [(kind, name, _what(name, old, kind, match)) for name, old in match.taken.items()]
    rows += [(kind, name, "kept, learned from the model's confident predictions") for name in match.kept]
    return rows + [(kind, name, f"dropped, the dataset has no such {kind}") for name in match.dropped]


def _what(name: str, old: str | None, kind: str, match: Match) -> str:
    """What becomes of a label or channel of the dataset, in words."""
    if old is not None:
        return "copied" if old == name else f"copied from {old}"
    similar = match.near(name)
    if similar and kind == "label":
        return f"new; the model has {similar[0]!r}, which --label-map '{name}={similar[0]}' joins to it"
    if similar:
        return f"new; the model has {similar[0]!r}: where both are the same, give it that name in the dataset"
    return "new" if kind == "label" else "new, its weights are the mean of those of the others"


def plain_name(name: str) -> str:
    """A name without case, blanks and hyphens."""
    return "".join(one for one in name.casefold() if one.isalnum())
