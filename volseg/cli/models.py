"""volseg import-nnunet, ensemble, info and profile: what there is to do with models."""

import os
from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.app import ConfigFile, Json, Overwrite, app, show_description
from volseg.cli.console import guarded, show_json, show_table


@app.command()
@guarded
def import_nnunet(
    folder: Annotated[Path, typer.Argument(help="a trained nnU-Net v2 model: plans.json, dataset.json, fold_*/")],
    *,
    output: Annotated[Path, typer.Option(help="the model file, .safetensors")],
    checkpoint: Annotated[str, typer.Option(help="file name in each fold's folder")] = "checkpoint_final.pth",
    folds: Annotated[
        str | None, typer.Option(help="folds to import, e.g. 0,1 or all (default: every numbered fold)")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Convert a trained nnU-Net v2 model folder to one safe model file; no code from the folder is run."""
    from volseg.api.describe import describe
    from volseg.api.importing import import_nnunet as import_folder

    wanted = [fold.strip() for fold in folds.split(",")] if folds else None
    model = import_folder(folder, output, checkpoint=checkpoint, folds=wanted, overwrite=overwrite)
    show_description(describe(model), as_json)
    return 0


@app.command()
@guarded
def ensemble(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="run folders or model files, two or more")],
    *,
    output: Annotated[Path, typer.Option(help="the model file, .safetensors")],
    half: Annotated[bool, typer.Option("--half", help="store float16 weights: half the file size")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Combine the models of several runs, such as all folds, in one file that averages their logits."""
    from volseg.modelfile import check_cards

    check_cards(models)
    from volseg.api.describe import describe
    from volseg.api.ensemble import ensemble as join

    show_description(describe(join(models, output, half=half, overwrite=overwrite)), as_json)
    return 0


@app.command()
@guarded
def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="a model, an image or a run folder")],
    *,
    series: Annotated[
        str | None, typer.Option(metavar="UID|NUMBER", help="which DICOM series, where an image holds several")
    ] = None,
    volume: Annotated[int | None, typer.Option(metavar="N", help="which volume of a 4-D image, from 1")] = None,
    untilt: Annotated[bool, typer.Option("--untilt", help="accept CT with gantry tilt, as predict does")] = False,
    as_json: Json = False,
) -> int:
    """Describe a model, an image or a run folder."""
    from volseg.modelfile import check_cards

    check_cards([] if os.path.isdir(path) else [path], run=False)
    from volseg.api.describe import describe

    show_description(describe(path, series, volume, untilt), as_json)
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
    from volseg.modelfile import check_cards

    check_cards([model] if model else [])
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
