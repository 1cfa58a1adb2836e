"""Which models a series is for: rules on DICOM attributes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from volseg.api.outputs import find_format
from volseg.config import Frozen
from volseg.data.io.dicom.values import texts
from volseg.errors import UsageError

# UIDs, versions and dates with dashes are texts.
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


class Bounds(Frozen):
    """A number within limits, both included."""

    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: str) -> bool:
        """Whether a value is a number within the limits."""
        try:
            number = float(value)
        except ValueError:
            return False
        return not (
            (self.at_least is not None and not number >= self.at_least)
            or (self.at_most is not None and not number <= self.at_most)
        )


def _attribute(name: str) -> str:
    tag = tag_for_keyword(name)
    if tag is None:
        raise ValueError(f"{name!r} is no keyword of a DICOM attribute, such as Modality or SeriesDescription")
    if dictionary_VR(tag) == "SQ":
        raise ValueError(f"{name} is a sequence; a rule takes attributes with a value")
    return name


def _format(name: str) -> str:
    try:
        find_format(name)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return name


def _condition(value: Any) -> "Bounds | tuple[str, ...]":
    if isinstance(value, dict):
        bounds = {key: float(limit) for key, limit in value.items() if isinstance(limit, int | float)}
        if not value or bounds.keys() != value.keys() or not value.keys() <= set(Bounds.model_fields):
            raise ValueError("expected at_least, at_most or both, with numbers")
        return Bounds(**bounds)
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in listed):
        raise ValueError("expected a value, a list of values, or at_least and at_most")
    return tuple(str(one) for one in listed)


def _files(names: tuple[str, ...]) -> tuple[str, ...]:
    suffixes = [find_format(name).suffix or "" for name in names]
    if len(set(suffixes)) < len(suffixes):
        raise ValueError("expected formats of different files")
    if not any(suffix.endswith(".dcm") for suffix in suffixes):
        raise ValueError("expected a DICOM format, because nothing else is sent to an archive")
    return names


Condition = Annotated[Any, AfterValidator(_condition)]
Attribute = Annotated[str, AfterValidator(_attribute)]


class Rule(Frozen):
    """A model, the formats of its results, and the series it is for."""

    model: str
    when: dict[Attribute, Condition] = Field(default_factory=dict, description="all of them have to hold")
    to: Annotated[tuple[Annotated[str, AfterValidator(_format)], ...], AfterValidator(_files)] = ("dicom-seg",)

    def matches(self, data: Dataset) -> bool:
        """Whether all conditions hold for the header of an instance; an attribute without value fulfils none."""
        return all(_holds(condition, texts(data, name)) for name, condition in self.when.items())


def matching(rules: Iterable[Rule], data: Dataset, models: Mapping[str, str]) -> dict[str, Rule]:
    """The rules for a series by the SHA-256 of their model; of several with one model, the first.

    Args:
        rules: in the order of the configuration.
        data: the header of one instance of the series.
        models: the SHA-256 of each model.
    """
    found: dict[str, Rule] = {}
    for rule in rules:
        if rule.matches(data):
            found.setdefault(models[rule.model], rule)
    return found


def _holds(condition: Bounds | tuple[str, ...], values: Sequence[str]) -> bool:
    """Whether any of the values fulfils the condition."""
    if isinstance(condition, Bounds):
        return any(condition.holds(value) for value in values)
    return any(_like(value, pattern) for value in values for pattern in condition)


def _like(value: str, pattern: str) -> bool:
    """Whether a value is like a shell pattern, whatever the case; numbers are compared as numbers."""
    if _NUMBER.fullmatch(pattern):
        return Bounds(at_least=float(pattern), at_most=float(pattern)).holds(value)
    return fnmatchcase(value.strip().upper(), pattern.upper())
