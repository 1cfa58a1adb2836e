"""volseg node."""

from pathlib import Path
from typing import Annotated, Any

import typer

from volseg.cli.app import Json, app
from volseg.cli.console import guarded, show_json, show_table
from volseg.errors import UsageError

# Rows of a table of work that waits or has failed; --json has all.
SHOWN = 50


@app.command()
@guarded
def node(
    action: Annotated[str, typer.Argument(metavar="[status]", help="status: show the state of everything")] = "run",
    *,
    config: Annotated[Path, typer.Option(help="the configuration of the node, YAML")],
    as_json: Json = False,
) -> int:
    """Run a DICOM node: it receives series, segments them and sends the results to an archive."""
    if action == "run":
        from volseg.modelfile import check_cards

        check_cards(_models(config))
        from volseg.node.service import serve

        serve(config)
    elif action == "status":
        from volseg.node.status import status

        found = status(config)
        show_json(found) if as_json else _show(found)
    else:
        raise UsageError(f"volseg node has no action {action!r}. Leave it out to run the node, or use status.")
    return 0


def _models(config: Path) -> list[Path]:
    """The models that the rules of a configuration name; what is wrong with it is told where it is read."""
    from volseg.config import read_yaml

    rules = read_yaml(config).get("rules")
    named = [rule.get("model") for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []
    return [config.absolute().parent / name for name in named if isinstance(name, str)]


def _show(found: dict[str, Any]) -> None:
    """The number of everything in each state, and what waits or has failed."""
    counts = [(what, state, count) for what, states in found["counts"].items() for state, count in states.items()]
    show_table("Queue", ("what", "state", "number"), counts)
    rows = [
        (kind, row["series_uid"], row["state"], row["attempts"], row["reason"])
        for kind in ("jobs", "deliveries", "fetches")
        for row in found[kind]
        if row["state"] not in ("done", "sent")
    ]
    rows += [
        ("series", row["series_uid"], row["state"], "", "") for row in found["series"] if row["state"] == "no rule"
    ]
    rows += [
        (
            "jobs",
            row["series_uid"],
            row["state"],
            row["attempts"],
            f"{row['late']} objects came too late for the result",
        )
        for row in found["jobs"]
        if row["late"]
    ]
    if rows:
        show_table("Not finished", ("what", "series", "state", "attempts", "reason"), rows[:SHOWN])
