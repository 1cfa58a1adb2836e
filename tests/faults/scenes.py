"""The commands that faults are tried on: what lies in the folder before, the command, and what goes on after it.

A scene lives in a folder `root`: `inputs` is shared by all trials and never counts; `trial` is the current folder of
the command, made anew from `before` for each trial.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from tests.data.images import nifti
from tests.data.io.dicom.writers import classic, write_kind
from tests.faults.client import NO_FAULT, Fault, Server
from tests.interop.folders import write_folder
from tests.interop.variants import Variant
from tests.pipeline import TINY, blob, tiny_plan, write_model
from volseg.files import read_json_lines

SCAN_SHAPE = (16, 18, 14)
TINY_RUN = [word for one in (*TINY, "training.workers=0")
            for word in ("--set", one)]  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A command under faults.

    Args:
        name: of the scene.
        arguments: of the command, in the folder `trial`.
        again: the command that goes on after a fault.
        earlier: a command whose results are there before; empty for none.
        inputs: writes what the commands read below `inputs`.
        patches: see `Server.run`.
        complete: what the command that goes on says, with exit code 2, where nothing was left to do.
        replaced: of the paths that the command removes before it makes new ones, a regular expression.
        resumes: whether what a kill left behind is removed by `again`, not only passed over.
    """

    name: str
    arguments: tuple[str, ...]
    again: tuple[str, ...]
    inputs: Callable[[Path], None]
    earlier: tuple[str, ...] = ()
    patches: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    complete: str = "exist"
    replaced: str = ""
    resumes: bool = False


def _scans(folder: Path) -> None:
    (folder / "scans").mkdir(parents=True)
    for name, seed in (("one.nii.gz", 1), ("two.nii.gz", 2)):
        image = nib.Nifti1Image(blob(SCAN_SHAPE, seed), np.diag([2, 1.5, 1.5, 1]))
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / "scans" / name)
    for seed in (0, 1):
        write_model(folder / f"model{seed}.safetensors", seed=seed)


def _formats(folder: Path) -> None:
    _scans(folder)
    (folder / "itk").mkdir()
    image = sitk.GetImageFromArray(blob(SCAN_SHAPE, 3))
    for suffix in ("nrrd", "mha"):
        sitk.WriteImage(image, folder / "itk" / f"{suffix}_scan.{suffix}")
    nib.save(nib.MGHImage(blob(SCAN_SHAPE, 4), np.eye(4)), folder / "itk" / "mgh_scan.mgz")
    nib.save(nifti(blob(SCAN_SHAPE, 5)), folder / "itk" / "plain_scan.nii")


def _series(folder: Path) -> None:
    _scans(folder)
    write_kind(folder / "series", classic, blob(SCAN_SHAPE, 6))


def _labels(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("predictions", "references", "others"):
        (folder / kind).mkdir(parents=True)
        for name in ("one", "two"):
            labels = rng.integers(0, 3, SCAN_SHAPE).astype(np.uint8)
            image = nib.Nifti1Image(labels, np.diag([2, 1.5, 1.5, 1]))
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / kind / f"{name}.nii.gz")


def _nnunet(folder: Path) -> None:
    write_folder(folder / "trained", Variant())
    write_folder(folder / "other", Variant(labels={"background": 0, "third": 1, "fourth": 2}))


def _dataset(folder: Path) -> None:
    """A Decathlon dataset of four small cases and one to test on."""
    for kind, count in (("Tr", 4), ("Ts", 1)):
        for place in ("images", "labels"):
            (folder / "dataset" / f"{place}{kind}").mkdir(parents=True)
        for seed in range(count):
            scan = blob(SCAN_SHAPE, seed)
            for place, array in (("images", scan), ("labels", (scan > 500).astype(np.uint8) + (scan > 650))):
                image = nib.Nifti1Image(array, np.diag([2, 1.5, 1.5, 1]))
                image.header.set_xyzt_units("mm")
                nib.save(image, folder / "dataset" / f"{place}{kind}" / f"case_{seed}.nii.gz")
    cases = [{"image": f"./imagesTr/case_{one}.nii.gz", "label": f"./labelsTr/case_{one}.nii.gz"} for one in range(4)]
    document = {
        "name": "Small", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "ball", "2": "rod"},
        "numTraining": 4, "numTest": 1, "training": cases, "test": ["./imagesTs/case_0.nii.gz"],
    }  # fmt: skip
    (folder / "dataset" / "dataset.json").write_text(json.dumps(document))


def _models(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed in (0, 1, 2):
        write_model(folder / f"model{seed}.safetensors", tiny_plan(), seed)


SCANS, MODEL, OLD_MODEL = "../inputs/scans", "../inputs/model0.safetensors", "../inputs/model1.safetensors"
PREDICT = ("predict", SCANS, "--model", MODEL, "--output", "out", "--probabilities")
OLD = ("predict", SCANS, "--model", OLD_MODEL, "--output", "out", "--probabilities")
ITK = ("predict", "../inputs/itk", "--model", MODEL, "--output", "out")
DICOM = ("predict", "../inputs/series", "--model", MODEL, "--output", "out/case.nii.gz", "--to",
         "nifti,dicom-seg,rtstruct,dicom-sr,dicom-sc,preview")  # fmt: skip
EVALUATE = ("evaluate", "../inputs/predictions", "../inputs/references", "--output", "out/report.json")
CONVERT = ("convert", "../inputs/scans/one.nii.gz", "--output", "out/one.mha")
ENSEMBLE = ("ensemble", "../inputs/model0.safetensors", "../inputs/model1.safetensors", "--output",
            "out/both.safetensors")  # fmt: skip
IMPORT = ("import-nnunet", "../inputs/trained", "--output", "out/model.safetensors")
PLAN = ("plan", "../inputs/dataset", "--output", "out/plan.yaml")
DEMO = ("demo", "--output", "out", "--samples", "../inputs/dataset")
TRAIN = ("train", "../inputs/dataset", "--output", "run", "--steps", "6", "--folds", "2", *TINY_RUN)
SHORT_DEMO = {
    "volseg.api.demo.STEPS": 2,
    "volseg.api.demo.OVERRIDES": [*TINY, "training.workers=0",
                                  "training.validations=0"],
}  # fmt: skip

SCENES = {
    scene.name: scene
    for scene in (
        Scene("predict", PREDICT, (*PREDICT, "--skip-existing"), _scans, resumes=True),
        Scene("predict --overwrite", (*PREDICT, "--overwrite"), (*PREDICT, "--overwrite"), _scans, OLD, resumes=True),
        Scene("predict formats", ITK, (*ITK, "--skip-existing"), _formats, resumes=True),
        Scene("predict --to", DICOM, (*DICOM, "--skip-existing"), _series, resumes=True),
        Scene("evaluate", EVALUATE, EVALUATE, _labels),
        Scene("evaluate again", EVALUATE, EVALUATE, _labels,
              ("evaluate", "../inputs/others", "../inputs/references", "--output", "out/report.json")),
        Scene("convert", CONVERT, CONVERT, _scans),
        Scene("convert --overwrite", (*CONVERT, "--overwrite"), (*CONVERT, "--overwrite"), _scans,
              ("convert", "../inputs/scans/two.nii.gz", "--output", "out/one.mha")),
        Scene("ensemble", ENSEMBLE, (*ENSEMBLE, "--overwrite"), _models),
        Scene("ensemble --overwrite", (*ENSEMBLE, "--overwrite"), (*ENSEMBLE, "--overwrite"), _models,
              ("ensemble", "../inputs/model0.safetensors", "../inputs/model2.safetensors", *ENSEMBLE[3:])),
        Scene("import-nnunet", IMPORT, (*IMPORT, "--overwrite"), _nnunet),
        Scene("import-nnunet --overwrite", (*IMPORT, "--overwrite"), (*IMPORT, "--overwrite"), _nnunet,
              ("import-nnunet", "../inputs/other", "--output", "out/model.safetensors")),
        Scene("plan", PLAN, PLAN, _dataset, environment={"VOLSEG_CACHE": "cache"}),
        Scene("demo", (*DEMO, "--overwrite"), (*DEMO, "--overwrite"), _dataset, patches=SHORT_DEMO),
        Scene("train", TRAIN, (*TRAIN, "--resume"), _dataset),
        Scene("train --resume", (*TRAIN, "--resume"), (*TRAIN, "--resume"), _dataset, (*TRAIN, "--steps", "2"),
              environment={"VOLSEG_CACHE": "cache"}, replaced=r"^run/(validation|report)"),
    )
}  # fmt: skip


class Stage:
    """A scene that was set up: its folders, its states before and after, and the calls of the undisturbed command.

    Args:
        scene: what is played.
        root: an empty folder for it.
        server: runs the commands.
    """

    def __init__(self, scene: Scene, root: Path, server: Server) -> None:
        self.scene, self.root, self.server = scene, root, server
        self.trial = root / "trial"
        scene.inputs(root / "inputs")
        (root / "before" / "tmp").mkdir(parents=True)
        if scene.earlier:
            self.clear()
            self.must_end_well(scene.earlier)
            shutil.rmtree(root / "before")
            self.trial.rename(root / "before")
        self.clear()
        self.before = state_of(self.trial)
        self.undisturbed = self.must_end_well(scene.arguments)
        self.after = state_of(self.trial)

    def clear(self) -> None:
        """Make the trial's folder anew."""
        shutil.rmtree(self.trial, ignore_errors=True)
        shutil.copytree(self.root / "before", self.trial)

    def run(self, arguments: tuple[str, ...], fault: Fault = NO_FAULT) -> Any:
        """Run a command in the trial's folder."""
        scene = self.scene
        # Inputs lie outside of the folder whose calls count.
        given = [one.replace("../inputs", str(self.root / "inputs")) for one in arguments]
        return self.server.run(given, self.trial, fault, scene.environment, scene.patches)

    def must_end_well(self, arguments: tuple[str, ...]) -> Any:
        """Run a command undisturbed."""
        ended = self.run(arguments)
        assert ended.code == 0, f"{arguments}: {ended}"
        return ended


# A model's hash is here because its card holds seconds.
VARYING = {"started", "seconds", "peak_memory_bytes", "sha256", "steps_per_second", "waiting_share"}


def state_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder by their paths, without what depends on the time; the temporary folder left out."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and path.parent != folder / "tmp")
    kept = [path for path in files if "cache" not in path.parts and "tfevents" not in path.name]
    return {str(path.relative_to(folder)): _content(path) for path in kept}


def _content(path: Path) -> bytes:
    """The bytes of a file; of records and logs only what is the same in every run."""
    if path.name == "metrics.jsonl":
        return json.dumps(_without_times(read_json_lines(path))).encode()
    if path.suffix == ".json":
        try:
            return json.dumps(_without_times(json.loads(path.read_text()))).encode()
        except ValueError:
            return path.read_bytes()
    if path.name in ("report.html", "log.txt"):
        return b"any"
    if path.suffix == ".safetensors":
        with suppress(SafetensorError):
            return bytes(save(dict(sorted(load_file(path).items()))))
    return path.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key not in VARYING}
    return [_without_times(one) for one in value] if isinstance(value, list) else value
