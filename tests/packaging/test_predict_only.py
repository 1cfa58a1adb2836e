"""An installation by deploy/predict.txt segments, scores and describes, and says what training needs."""

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import typer

from tests.packaging.installing import ROOT, copy_checkout, fresh_environment, index_refusal, install, pip, run
from volseg.cli.console import NOT_FOR_PREDICTION, guarded

PHANTOMS = ROOT / "data_samples" / "phantoms"
SCAN = PHANTOMS / "imagesTs" / "phantom_013.nii.gz"


@dataclass(frozen=True)
class PredictOnly:
    """The environment, and an empty folder to work in."""

    python: Path
    folder: Path

    def volseg(self, *arguments: object):
        return run(self.python.parent / "volseg", *arguments, cwd=self.folder)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> PredictOnly:
    folder = tmp_path_factory.mktemp("predict_only")
    if reason := index_refusal(folder / "download"):
        pytest.skip(f"pip reaches no package index: {reason}")
    python = fresh_environment(folder / "environment")
    install(python, "--no-deps", "-r", ROOT / "deploy" / "predict.txt")
    if run(python, "-c", "import torch").returncode:
        # The build for CUDA, whose NVIDIA packages come as the list says.
        install(python, "--force-reinstall", "-c", ROOT / "constraints.txt", "torch")
    install(python, "--no-deps", copy_checkout(folder / "checkout"))
    (folder / "work").mkdir()
    return PredictOnly(python, folder / "work")


@pytest.mark.slow
def test_the_list_is_complete(installed: PredictOnly) -> None:
    missing = pip("check", python=installed.python).stdout.splitlines()
    assert {line.split(" requires ")[1] for line in missing} == {
        f"{name}, which is not installed." for name in NOT_FOR_PREDICTION
    }


@pytest.mark.slow
def test_it_segments_a_scan(installed: PredictOnly) -> None:
    output = installed.folder / "seg.nii.gz"
    done = installed.volseg("predict", SCAN, "--model", "hippocampus", "--output", output, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    scan, labels = nibabel.load(SCAN), nibabel.load(output)
    assert labels.shape == scan.shape
    assert np.array_equal(labels.affine, scan.affine)
    found = np.asarray(labels.dataobj)
    record = json.loads((installed.folder / "seg.json").read_text())
    assert {name: label["voxels"] for name, label in record["labels"].items()} == {
        "Anterior": int((found == 1).sum()),
        "Posterior": int((found == 2).sum()),
    }
    assert (found > 0).any()


@pytest.mark.slow
def test_it_describes_and_scores(installed: PredictOnly) -> None:
    for path in ("hippocampus", SCAN):
        done = installed.volseg("info", path, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["what"]
    references = PHANTOMS / "labelsTs"
    done = installed.volseg("evaluate", references, references, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mean"]["foreground_dice"] == 1.0
    done = installed.volseg("profile", "--model", "hippocampus", "--json")
    assert done.returncode == 0, done.stderr
    findings = {one["what"]: one["found"] for one in json.loads(installed.volseg("doctor", "--json").stdout)}
    assert findings["monai"] == "not installed, only training needs it"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (("train", PHANTOMS, "--output", "run", "--steps", 1), "blosc2"),
        (("plan", PHANTOMS), "blosc2"),
        (("demo", "--output", "demo"), "blosc2"),
        (("predict", SCAN, "--model", "hippocampus", "--output", "drawn.nii.gz", "--preview"), "matplotlib"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_it_cannot_do_names_what_to_install(
    installed: PredictOnly, arguments: tuple[object, ...], package: str
) -> None:
    before = set(installed.folder.iterdir())
    done = installed.volseg(*arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"Error: The package {package} is not installed, but this command needs it: "
        "this installation is for prediction only. Install the rest with: pip install volseg"
    ]
    assert set(installed.folder.iterdir()) == before


@pytest.mark.parametrize("name", ["monai.transforms", "tensorboard"])
def test_a_package_that_is_left_out_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def verb() -> int:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(typer.Exit) as ended:
        guarded(verb)()
    assert ended.value.exit_code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"Error: The package {name.split('.')[0]} is not installed")
    assert said.endswith("pip install volseg\n")


def test_any_other_missing_module_keeps_its_traceback() -> None:
    def verb() -> int:
        raise ModuleNotFoundError("No module named 'volseg.dta'", name="volseg.dta")

    with pytest.raises(ModuleNotFoundError, match=r"volseg\.dta"):
        guarded(verb)()
