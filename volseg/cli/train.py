"""volseg plan and volseg train."""

from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.app import ConfigFile, Device, Json, Overrides, Overwrite, app, show_description
from volseg.cli.console import guarded, progress_bar, show_line
from volseg.errors import UsageError
from volseg.text import whole_number


@app.command()
@guarded
def train(
    dataset: Annotated[
        list[Path],
        typer.Argument(help="a Decathlon or nnU-Net v2 folder, or one with images/ and labels/; several: one model"),
    ],
    *,
    output: Annotated[Path, typer.Option(help="the run folder")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    fold: Annotated[str | None, typer.Option(help="0 to folds - 1, or all (default 0)")] = None,
    folds: Annotated[int | None, typer.Option(help="number of folds (default 5)")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="folds as in splits_final.json (default: those that the dataset states)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="random seed of weights and samples (default 0)")] = None,
    minutes: Annotated[float | None, typer.Option(help="wall-clock budget of the training loop")] = None,
    steps: Annotated[int | None, typer.Option(help="number of optimiser steps (instead of --minutes)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="resume the run in --output, or start a new one")] = False,
    overwrite: Overwrite = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="end the run in --output now, with a model and scores")
    ] = False,
    from_model: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="start from a bundled model, a model file or a run")
    ] = None,
    freeze: Annotated[str | None, typer.Option(help="encoder: keep the weights of --from's encoder")] = None,
    keep_labels: Annotated[
        bool, typer.Option("--keep-labels", help="keep labels of --from that the dataset lacks")
    ] = False,
    label_map: Annotated[
        list[str] | None, typer.Option(metavar="NEW=OLD", help="the dataset's label NEW is the label OLD of --from")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Train a network; the run folder holds the model, its validation scores and a report."""
    from volseg.api.describe import describe
    from volseg.api.train import train as run_training

    with progress_bar() as progress:
        run = run_training(
            dataset, output, config=config, overrides=overrides or (), fold=_fold(fold), folds=folds, splits=splits,
            seed=seed, minutes=minutes, steps=steps, resume=resume, overwrite=overwrite, finish=finish, device=device,
            from_model=from_model, freeze=freeze, keep_labels=keep_labels, label_map=_label_map(label_map),
            progress=progress,
        )  # fmt: skip
    show_description(describe(run), as_json)
    return 0


@app.command()
@guarded
def plan(
    dataset: Annotated[list[Path], typer.Argument(help="one or more dataset folders, as for train")],
    *,
    output: Annotated[Path | None, typer.Option(help="write the plan to this file (default: print it)")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    device: Device = "auto",
) -> int:
    """Show the training plan for a dataset and the reason for each choice."""
    from volseg.api.train import plan_dataset
    from volseg.files import require_writable, write_text

    require_writable([output] if output else [])
    text = plan_dataset(dataset, config, overrides or (), device)
    if output:
        write_text(output, text)
    else:
        show_line(text.rstrip())
    return 0


def _fold(text: str | None) -> int | str | None:
    """--fold as a number where it is one."""
    number = whole_number(text)
    return text if number is None else number


def _label_map(given: list[str] | None) -> dict[str, str] | None:
    """--label-map NEW=OLD as a mapping."""
    pairs = [tuple(part.strip() for part in text.partition("=")) for text in given or []]
    for new, separator, old in pairs:
        if not (new and separator and old):
            raise UsageError(f"--label-map {new}{separator}{old} is not NEW=OLD.")
    if len({new for new, _, _ in pairs}) < len(pairs):
        raise UsageError("--label-map names a label of the dataset twice. Give each of them once.")
    return {new: old for new, _, old in pairs} or None
