"""A plan as YAML, with the reason for each value as a comment."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from volseg.config import Plan


def plan_text(plan: Plan, reasons: Mapping[str, str], about: Iterable[str] = ()) -> str:
    """A plan as YAML: the lines `about` the data as a header, and the reason for each value as a comment above it."""
    about = (f"Plan for {plan.dataset}. Each comment is the reason for the value below it.", *about)
    lines = [_comment(line) for line in about]
    stored = plan.model_dump(mode="json", exclude_none=True)
    network = stored.pop("network")
    # Of what is stored only where it differs from older plans, the value is shown, too.
    document = {key: stored.get(key, getattr(plan, key)) for key in type(plan).model_fields if key != "network"}
    for key, value in document.items():
        if value is None:
            continue
        lines += _yaml_lines(key, value, reasons.get(key))
    lines += ["network:"]
    for key, value in network.items():
        lines += [f"  {line}" for line in _yaml_lines(key, value, reasons.get(f"network.{key}"))]
    return "\n".join(lines) + "\n"


def _yaml_lines(key: str, value: object, reason: str | None) -> list[str]:
    """One entry of the plan's YAML, with its reason as a comment above it."""
    # Lists of numbers on one line; a scalar must not become "{key: value}".
    flow = None if isinstance(value, list) else False
    options: dict[str, Any] = {"default_flow_style": flow, "sort_keys": False, "width": 110}
    text = yaml.safe_dump({key: value}, allow_unicode=True, **options)
    # YAML keeps marks of the direction of writing, which a terminal obeys.
    if not text.replace("\n", "").isprintable():
        text = yaml.safe_dump({key: value}, allow_unicode=False, **options)
    return [*([_comment(reason)] if reason else []), *text.rstrip().split("\n")]


def _comment(text: str) -> str:
    """A YAML comment; line breaks in names and characters that YAML does not allow become spaces."""
    return f"# {''.join(one if one.isprintable() else ' ' for one in text)}"
