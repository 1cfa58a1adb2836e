"""volseg predict."""

import logging
from typing import Annotated, Any

import typer

from volseg.cli.app import Device, Json, Overwrite, app
from volseg.cli.console import guarded, progress_bar, show_error, show_json, show_table
from volseg.errors import Stopped, UsageError
from volseg.text import first_few

logger = logging.getLogger(__name__)


@app.command()
@guarded
def predict(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="scans, DICOM folders or zips, or folders of scans")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="a bundled name (hippocampus) or a model file")],
    output: Annotated[str, typer.Option(metavar="PATH", help="a file for one scan, else a folder")],
    channel: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH, once per channel of the model, instead of INPUT")
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    overlap: Annotated[float, typer.Option(help="overlap of neighbouring sliding windows, 0 to <1")] = 0.5,
    tta: Annotated[str, typer.Option(help="test-time augmentation: none, or mirror (average over flips)")] = "none",
    max_memory: Annotated[str | None, typer.Option(help="memory limit of the process, for example 4G")] = None,
    crop: Annotated[
        str, typer.Option(help="none, or body: run inference only inside the body's bounding box (approximate)")
    ] = "none",
    series: Annotated[
        str | None, typer.Option(metavar="UID|NUMBER", help="which DICOM series, where an input holds several")
    ] = None,
    volume: Annotated[
        str | None,
        typer.Option(metavar="N|all", help="which volume of a 4-D scan, from 1; all: a result NAME_tN of each"),
    ] = None,
    untilt: Annotated[
        bool,
        typer.Option("--untilt", help="make tilted CT upright for the network; labels stay on the slices"),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="also write the class probabilities, .npy")
    ] = False,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMATS",
            help="with commas: nifti (the label image, always), preview, uncertainty, dicom-seg, rtstruct, dicom-sr, "
            "dicom-sc",
        ),
    ] = "nifti",
    preview: Annotated[bool, typer.Option("--preview", help="also write a picture of three planes, .png")] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="also write the entropy of the probabilities, .uncertainty.nii.gz")
    ] = False,
    overwrite: Overwrite = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="skip cases whose result already exists")
    ] = False,
    as_json: Json = False,
) -> int:
    """Segment scans. Each label image has the grid of its scan; a JSON sidecar has volumes and flags."""
    from volseg.modelfile import check_cards

    # Before torch is imported, which takes seconds.
    check_cards([model])
    from volseg.api.predict import predict as start

    done: list[Any] = []
    try:
        with progress_bar() as progress:
            predictions = start(
                inputs or [], model, output, channels=_named(channel), device=device, precision=precision,
                overlap=overlap, tta=tta, max_memory=max_memory, crop=crop, series=series, volume=volume,
                untilt=untilt, probabilities=probabilities, to=to, preview=preview, uncertainty=uncertainty,
                overwrite=overwrite, skip_existing=skip_existing, progress=progress,
            )  # fmt: skip
            if predictions.skipped:
                total = len(predictions) + predictions.skipped
                logger.info("Skipping %d of %d cases whose result exists", predictions.skipped, total)
            _collect(predictions, done)
    except Stopped as stop:
        # The same command, continued, skips them and says nothing about them.
        _show(done, as_json)
        raise Stopped(f"{stop} {_how_to_go_on(done, overwrite)}") from stop
    return _report(done, as_json)


def _named(channels: list[str] | None) -> dict[str, str] | None:
    """--channel NAME=PATH as a mapping."""
    pairs = [text.partition("=") for text in channels or []]
    for name, separator, path in pairs:
        if not (name and separator and path):
            raise UsageError(f"--channel {name}{separator}{path} is not NAME=PATH.")
    named = {name: path for name, _, path in pairs}
    if len(named) < len(pairs):
        raise UsageError("--channel names a channel twice. Give each channel of the model once.")
    return named or None


def _collect(predictions: Any, done: list[Any]) -> None:
    """Append all outcomes to `done`; the error of one case of several is shown at once."""
    for outcome in predictions:
        done.append(outcome)
        if outcome.error and len(predictions) > 1:
            show_error(f"{outcome.name}: {outcome.error}")


def _how_to_go_on(done: list[Any], overwrite: bool) -> str:
    """What to do after an interrupt; with --overwrite, new results cannot be told from old ones."""
    if overwrite or not any(outcome.record for outcome in done):
        return "Run the same command again."
    return "Resume with the same command and --skip-existing."


def _report(done: list[Any], as_json: bool) -> int:
    """Print the outcome of the cases; return the exit code."""
    failed = [outcome for outcome in done if outcome.error]
    _show(done, as_json)
    if as_json:
        show_json({"cases": [_document(outcome) for outcome in done]})
    if not failed:
        return 0
    if len(done) > 1:
        logger.error("%d of %d cases failed: %s", len(failed), len(done), first_few([one.name for one in failed]))
    else:
        show_error(failed[0].error)
    if len(failed) < len(done):
        return 3
    return int(failed[0].error.exit_code)


def _show(done: list[Any], as_json: bool) -> None:
    """Log what is to be said about the scans and, unless JSON is printed, show their volumes."""
    for outcome in done:
        for line in _about_scan(outcome.record or {}):
            logger.warning("%s: %s", outcome.name, line)
    if not as_json:
        labels = [
            (outcome.name, label, found)
            for outcome in done
            for label, found in (outcome.record or {"labels": {}})["labels"].items()
        ]
        if labels:
            # Models without a calibration estimate neither.
            estimated = any(found["expected_dice"] is not None for *_, found in labels)
            more = ("90 % interval", "expected Dice") if estimated else ()
            rows = [
                (case, name, one["voxels"], one["volume_ml"], *_estimates(one)[: len(more)], ", ".join(one["flags"]))
                for case, name, one in labels
            ]
            show_table("Volumes", ("case", "label", "voxels", "mL", *more, "flags"), rows)
        _say_where([outcome for outcome in done if outcome.record])


def _estimates(found: dict[str, Any]) -> tuple[str | None, float | None]:
    """The interval of the volume of a label, and its expected Dice."""
    low, high = found["volume_ml_low"], found["volume_ml_high"]
    return (None if low is None or high is None else f"{low:.4g} to {high:.4g}"), found["expected_dice"]


def _say_where(written: list[Any]) -> None:
    """Log where the results are, and in which formats."""
    if written:
        where = written[0].output if len(written) == 1 else written[0].output.parent
        formats = dict.fromkeys(name for outcome in written for name in outcome.record["formats"])
        logger.info("Wrote %s (%s)", where, ", ".join(formats))


def _about_scan(record: dict[str, Any]) -> list[str]:
    """The warnings about a scan, and the flags that concern it as a whole."""
    return [*record.get("warnings", []), *(flag for flag in record.get("flags", []) if flag.startswith("scan: "))]


def _document(outcome: Any) -> dict[str, Any]:
    """One case of --json."""
    return {
        "name": outcome.name,
        "inputs": [str(path) for path in outcome.inputs],
        "output": str(outcome.output),
        **(outcome.record or {"error": str(outcome.error)}),
    }
