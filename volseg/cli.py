"""The command line: parse, call the API, print. The heavy parts are imported when a verb runs."""

import atexit
import gc
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from volseg.console import guarded, progress_bar, show_error, show_json, show_line, show_table
from volseg.errors import Stopped, UsageError
from volseg.version import __version__

logger = logging.getLogger(__name__)
# New objects between two looks for garbage; Python starts with 700.
GARBAGE_THRESHOLD = 50_000
app = typer.Typer(
    name="volseg",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 3 some of several cases failed. "
    "--debug anywhere shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, changes the configuration")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="a YAML file; see configs/")]


@app.callback(invoke_without_command=True)
def version(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    """Segment medical volumes. For research; not a medical device."""
    if version:
        show_line(f"volseg {__version__}")
        raise typer.Exit


@app.command()
@guarded
def predict(
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="INPUT...", help="scans, DICOM folders or zips, or folders of scans")
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="a bundled name or a model file")],
    output: Annotated[Path, typer.Option(help="a file for one scan, else a folder")],
    channel: Annotated[list[str] | None, typer.Option(help="NAME=PATH, once per channel of the model")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    overlap: Annotated[float, typer.Option(help="share of a window its neighbour covers again")] = 0.5,
    tta: Annotated[str, typer.Option(help="none, or mirror: the mean over mirror images")] = "none",
    max_memory: Annotated[str | None, typer.Option(help="the most memory the process may take, such as 4G")] = None,
    crop: Annotated[str, typer.Option(help="none, or body: compute only a box around it, an approximation")] = "none",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="also write all probabilities, .npy")] = False,
    to: Annotated[str, typer.Option(help="nifti: an image of the suffix of --output, NIfTI in a folder")] = "nifti",
    preview: Annotated[bool, typer.Option("--preview", help="also write a picture")] = False,
    overwrite: Overwrite = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="leave out cases that have a result")] = False,
    as_json: Json = False,
) -> int:
    """Segment scans; each result lies on its scan's own grid, with a JSON record beside it."""
    from volseg.api.batch import PROBABILITIES, segment_files
    from volseg.api.segmenter import Segmenter
    from volseg.data.inputs import find_cases, plan_outputs

    if to != "nifti":
        raise UsageError(f"--to {to} is not there yet: results are images, such as NIfTI. Leave --to out.")
    segmenter = Segmenter.load(model, device, precision, overlap, tta, max_memory, crop)
    names = tuple(one.name for one in segmenter.card.plan.channels)
    cases = find_cases(inputs or [], names, _named(channel))
    also = [suffix for suffix, wanted in ((PROBABILITIES, probabilities), (".png", preview)) if wanted]
    jobs = plan_outputs(cases, output, overwrite, skip_existing, also)
    if len(jobs) < len(cases):
        logger.info("%d of %d cases have a result and are left out", len(cases) - len(jobs), len(cases))
    with progress_bar() as progress:
        written = segment_files(segmenter, jobs, _writers(preview), progress, probabilities)
        done = _as_they_come(written, len(jobs), overwrite)
    return _report_cases(done, as_json)


@app.command()
@guarded
def train(
    dataset: Annotated[Path, typer.Argument(help="a Decathlon or nnU-Net v2 folder, or one with images/ and labels/")],
    *,
    output: Annotated[Path, typer.Option(help="the run folder")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    fold: Annotated[str | None, typer.Option(help="0 to folds - 1, or all (default 0)")] = None,
    folds: Annotated[int | None, typer.Option(help="number of folds (default 5)")] = None,
    seed: Annotated[int | None, typer.Option(help="of weights and random draws (default 0)")] = None,
    minutes: Annotated[float | None, typer.Option(help="wall-clock budget of the training loop")] = None,
    steps: Annotated[int | None, typer.Option(help="exact number of steps instead")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the folder, or begin it")] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Train a network; the run folder holds the model, its scores and a report."""
    from volseg.api.run import train as run_training

    with progress_bar() as progress:
        run = run_training(
            dataset, output, config=config, overrides=overrides or (), fold=_fold(fold), folds=folds, seed=seed,
            minutes=minutes, steps=steps, resume=resume, overwrite=overwrite, device=device, progress=progress,
        )  # fmt: skip
    from volseg.api.describe import describe

    _show_description(describe(run), as_json)
    return 0


@app.command()
@guarded
def plan(
    dataset: Annotated[Path, typer.Argument(help="a data set folder, as for train")],
    *,
    output: Annotated[Path | None, typer.Option(help="where to write the plan; else it is printed")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    device: Device = "auto",
) -> int:
    """Look at a data set and say how volseg would train on it, each choice with its reason."""
    from volseg.api.run import plan_dataset
    from volseg.files import write_text

    text = plan_dataset(dataset, config, overrides or (), device)
    if output:
        write_text(output, text)
    else:
        show_line(text.rstrip())
    return 0


@app.command()
@guarded
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="a label image or a folder of them")],
    references: Annotated[Path, typer.Argument(help="its reference or a folder of them")],
    *,
    labels: Annotated[Path | None, typer.Option(help="names and values: a dataset.json, JSON or YAML")] = None,
    output: Annotated[Path | None, typer.Option(help="report.json; a .csv is written beside it")] = None,
    as_json: Json = False,
) -> int:
    """Compare label images with references: overlap and volumes per case and label."""
    from volseg.api.evaluation import evaluate as compare

    document = compare(predictions, references, labels, output)
    if as_json:
        show_json(document)
        return 0
    mean, spread = document["mean"], document["spread"]["labels"]
    rows = [
        (
            name,
            row["cases"],
            row["dice"],
            spread[name]["dice"],
            row["iou"],
            row["precision"],
            row["recall"],
            row["volume_difference_ml"],
        )
        for name, row in mean["labels"].items()
    ]
    columns = ("label", "cases", "Dice", "sd", "IoU", "precision", "recall", "difference ml")
    show_table(f"Means over {len(document['cases'])} cases", columns, rows)
    show_line(f"mean foreground Dice: {_figure(mean['foreground_dice'])}")
    return 0


@app.command()
@guarded
def import_nnunet(
    folder: Annotated[Path, typer.Argument(help="a trained nnU-Net v2 model: plans.json, dataset.json, fold_*/")],
    *,
    output: Annotated[Path, typer.Option(help="the model file, .safetensors")],
    checkpoint: Annotated[str, typer.Option(help="file name in each fold's folder")] = "checkpoint_final.pth",
    folds: Annotated[str | None, typer.Option(help="such as 0,1 or all; else all numbered folds there are")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Turn a trained nnU-Net v2 model folder into one safe model file; nothing in the folder is executed."""
    from volseg.api.describe import describe
    from volseg.api.interop import import_nnunet as import_folder

    wanted = [fold.strip() for fold in folds.split(",")] if folds else None
    model = import_folder(folder, output, checkpoint=checkpoint, folds=wanted, overwrite=overwrite)
    _show_description(describe(model), as_json)
    return 0


@app.command()
@guarded
def ensemble(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="run folders or model files, two or more")],
    *,
    output: Annotated[Path, typer.Option(help="the model file, .safetensors")],
    half: Annotated[bool, typer.Option("--half", help="weights in float16: half the file")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Put the models of several runs, such as all folds, into one file that answers with their mean."""
    from volseg.api.describe import describe
    from volseg.api.ensemble import ensemble as join

    _show_description(describe(join(models, output, half=half, overwrite=overwrite)), as_json)
    return 0


@app.command()
@guarded
def info(
    path: Annotated[Path, typer.Argument(help="a model, an image or a run folder")],
    *,
    as_json: Json = False,
) -> int:
    """Say what a model, an image or a run folder is."""
    from volseg.api.describe import describe

    _show_description(describe(path), as_json)
    return 0


@app.command()
@guarded
def profile(
    *,
    config: ConfigFile = None,
    model: Annotated[str | None, typer.Option(help="a bundled name or a model file")] = None,
    as_json: Json = False,
) -> int:
    """Parameters, FLOPs and activation memory per stage: Conv3d against (2+1)D."""
    from volseg.api.describe import profile_document

    document = profile_document(config, model)
    if as_json:
        show_json(document)
        return 0
    figures = {"parameters": "parameters", "gflops": "GFLOP", "activation_mib": "MiB kept"}
    columns = ["stage", *(f"{title}\n{block}" for title in figures.values() for block in document["blocks"])]
    rows = [
        (stages[0]["stage"], *(stage[figure] for figure in figures for stage in stages))
        for stages in zip(*(block["stages"] for block in document["blocks"].values()), strict=True)
    ]
    show_table(f"Forward pass of one patch of {' x '.join(map(str, document['patch_size']))} voxels", columns, rows)
    return 0


@app.command()
@guarded
def doctor(*, as_json: Json = False) -> int:
    """Say what volseg finds here: device, memory, versions, known-bad combinations."""
    from volseg.api.doctor import examine

    findings = examine()
    if as_json:
        show_json([finding._asdict() for finding in findings])
    else:
        show_table("This machine", ("what", "found", "verdict"), findings)
    return 0 if all(finding.verdict == "ok" for finding in findings) else 1


@app.command()
@guarded
def demo(
    *,
    output: Annotated[Path, typer.Option(help="folder for everything the demo makes")] = Path("volseg_demo"),
    samples: Annotated[Path | None, typer.Option(help="phantoms to use; else they are made")] = None,
    overwrite: Overwrite = False,
) -> int:
    """Train on phantoms for about a minute, segment scans it has not seen, and score them."""
    from volseg.api.demo import run_demo

    with progress_bar() as progress:
        outcome = run_demo(output, samples, overwrite, progress)
    show_table(
        "Volumes of the scans that were segmented", ("case", "label", "ml", "reference ml", "Dice"), outcome.rows
    )
    show_line(f"preview: {outcome.preview}")
    show_line(f"best threshold baseline Dice: {_figure(outcome.threshold_dice)}")
    show_line(f"mean foreground Dice: {_figure(outcome.dice, 2)}")
    return 0


def main() -> None:
    """Run the command line; --debug may stand anywhere in it."""
    if "--debug" in sys.argv:
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
        logging.getLogger("volseg").setLevel(logging.DEBUG)
    # Loading torch makes a million objects that stay; looking through them for garbage, time and again and once more
    # at the end, takes as long as a scan.
    gc.set_threshold(GARBAGE_THRESHOLD)
    atexit.register(gc.freeze)
    app()


def _writers(preview: bool) -> list[Any]:
    """What is written beside each label image and its record; drawing loads matplotlib, so only when asked for."""
    if not preview:
        return []
    from volseg.api.pictures import write_preview

    return [write_preview]


def _named(channels: list[str] | None) -> dict[str, Path] | None:
    """--channel NAME=PATH as a mapping."""
    pairs = [text.partition("=") for text in channels or []]
    for name, separator, path in pairs:
        if not (name and separator and path):
            raise UsageError(f"--channel {name}{separator}{path} is not NAME=PATH.")
    named = {name: Path(path) for name, _, path in pairs}
    if len(named) < len(pairs):
        raise UsageError("--channel names a channel twice. Give each channel of the model once.")
    return named or None


def _as_they_come(written: Iterable[Any], count: int, overwrite: bool) -> list[Any]:
    """All cases; what went wrong with one of several is also said at once."""
    done = []
    try:
        for one in written:
            done.append(one)
            if one.error and count > 1:
                logger.error("%s: %s", one.case.name, one.error)
    except Stopped as stop:
        # Results that are to be replaced cannot be told from those that already were.
        how = "The same command begins anew." if overwrite else "Go on with the same command and --skip-existing."
        raise Stopped(f"{stop} {how}") from stop
    return done


def _report_cases(done: list[Any], as_json: bool) -> int:
    """Print what became of the cases; the exit code that follows."""
    failed = [one for one in done if one.error]
    for one in done:
        for said in _said_of_scan(one.record or {}):
            logger.warning("%s: %s", one.case.name, said)
    if as_json:
        show_json({"cases": [_case_document(one) for one in done]})
    else:
        rows = [
            (one.case.name, label, found["voxels"], found["volume_ml"], ", ".join(found["flags"]))
            for one in done
            if one.record
            for label, found in one.record["labels"].items()
        ]
        if rows:
            show_table("Volumes", ("case", "label", "voxels", "ml", "flags"), rows)
    for one in failed:
        show_error(f"{one.case.name}: {one.error}" if len(done) > 1 else one.error)
    if not failed:
        return 0
    return 3 if len(done) > 1 else int(failed[0].error.exit_code)


def _fold(text: str | None) -> int | str | None:
    """--fold as a number where it is one."""
    return int(text) if text and text.isdecimal() else text


def _figure(value: float | None, digits: int = 4) -> str:
    return "none (no label was found in any case)" if value is None else f"{value:.{digits}f}"


def _said_of_scan(record: dict[str, Any]) -> list[str]:
    """What was assumed about a scan, and the flags that concern it as a whole."""
    return [*record.get("warnings", []), *(flag for flag in record.get("flags", []) if flag.startswith("scan: "))]


def _case_document(one: Any) -> dict[str, Any]:
    """One case of predict --json."""
    outcome = one.record or {"error": str(one.error)}
    return {
        "name": one.case.name,
        "inputs": [str(path) for path in one.case.paths],
        "output": str(one.output),
        **outcome,
    }


def _show_description(description: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(description)
    else:
        show_table(description["what"], ("", ""), [(key, value) for key, value in description.items() if key != "what"])
