"""Parts of one's own through the public seams: a loss, a network, a transform and an output format, end to end."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import MapTransform, Randomizable

import volseg
from tests.pipeline import blob, write_model
from volseg.api.outputs import add_format, find_format, format_names
from volseg.config import NetworkConfig
from volseg.data.cases.phantom import write_phantoms
from volseg.errors import ConfigError, UsageError
from volseg.losses import LOSSES, cross_entropy
from volseg.modelfile import read_card
from volseg.networks import NETWORKS, UNet, build_network

TINY = ("plan.features=[4,8]", "plan.patch_size=[16,16,16]", "training.validations=0", "training.workers=0")
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, 3, 7, "mr")
    return folder


def trained(phantoms, run, overrides=(), **options):
    return volseg.train(phantoms, run, fold="all", steps=2, overrides=(*TINY, *overrides), device="cpu", **options)


def losses_of(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_loss_by_name_and_as_a_function(tmp_path, phantoms, monkeypatch):
    monkeypatch.setitem(LOSSES, "half_ce", lambda *arguments: cross_entropy(*arguments) / 2)
    by_name = losses_of(trained(phantoms, tmp_path / "name", ["training.loss=half_ce"]))
    run = trained(phantoms, tmp_path / "function", loss=lambda logits, target: cross_entropy(logits, target) / 2)
    plain = losses_of(trained(phantoms, tmp_path / "plain", ["training.loss=ce"]))
    assert by_name == losses_of(run)
    assert by_name[0] == pytest.approx(plain[0] / 2, rel=1e-5)
    assert "<lambda>" in read_card(run / "model.safetensors").training["custom_loss"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.loss=focal", r"There is no loss 'focal' \(training.loss\); known are dice_ce, dice, ce"),
        ("plan.architecture=transformer", "Unknown network architecture 'transformer'; known are unet"),
    ],
)
def test_unknown_names_are_rejected_before_anything_is_written(tmp_path, phantoms, override, message):
    with pytest.raises(ConfigError, match=message):
        trained(phantoms, tmp_path / "run", [override])
    assert not (tmp_path / "run" / "config.yaml").exists()


class Pointwise(torch.nn.Module):
    """A network with one layer."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(config.in_channels, config.classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_a_network_is_trained_saved_loaded_and_profiled(tmp_path, phantoms, monkeypatch):
    monkeypatch.setitem(NETWORKS, "pointwise", Pointwise)
    model = trained(phantoms, tmp_path / "run", ["plan.architecture=pointwise"]) / "model.safetensors"
    segmenter = volseg.Segmenter.load(model, device="cpu", precision="fp32")
    assert isinstance(segmenter.labeller.network, Pointwise)
    assert segmenter((blob((24, 20, 30)), AFFINE)).labels.shape == (24, 20, 30)
    config = read_card(model).plan.network
    assert volseg.networks.profile_network(config, (16, 16, 16)).total.parameters == 3 * 1 + 3
    monkeypatch.delitem(NETWORKS, "pointwise")
    with pytest.raises(ConfigError, match=r"is 'pointwise', which this process does not know"):
        volseg.Segmenter.load(model)


def test_the_architecture_is_the_unet_unless_told_otherwise():
    assert isinstance(build_network(NetworkConfig()), UNet)


class RandOffsetd(Randomizable, MapTransform):
    """Adds a random number to images, as a user's own transform would."""

    seen: list[float]

    def __init__(self, keys) -> None:
        MapTransform.__init__(self, keys)
        self.seen = []

    def __call__(self, data):
        offset = 1000 + float(self.R.uniform())
        self.seen.append(offset)
        return {**data, **{key: data[key] + offset for key in self.keys}}


def test_a_transform_changes_every_augmented_patch_and_draws_from_the_seed_of_the_run(tmp_path, phantoms):
    seen = []
    for name in ("one", "two"):
        mine = RandOffsetd("image")
        run = trained(phantoms, tmp_path / name, ["augmentation.warmup_epochs=0"], transforms=[mine])
        seen.append(mine.seen)
        assert "RandOffsetd" in read_card(run / "model.safetensors").training["custom_transforms"]
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == len(seen[0]) == 4


@pytest.fixture
def table():
    """An output format that writes volumes as a table."""
    from volseg.api import outputs  # noqa: PLC0415 - the registry itself

    def write(result, path):
        rows = [f"{name},{volume}" for name, volume in result.volumes_ml.items()]
        path.write_text("\n".join(rows) + "\n")

    add_format("volumes-csv", ".volumes.csv", write)
    yield
    outputs._added.clear()


def test_an_output_format_from_save_and_predict(tmp_path, table):
    model = write_model(tmp_path / "m.safetensors")
    segmenter = volseg.Segmenter.load(model, device="cpu", precision="fp32")
    result = segmenter((blob((24, 20, 30)), AFFINE))
    result.save(tmp_path / "one.csv", to="volumes-csv")
    expected = "".join(f"{name},{volume}\n" for name, volume in result.volumes_ml.items())
    assert (tmp_path / "one.csv").read_text() == expected
    assert json.loads((tmp_path / "one.json").read_text())["model"]["name"] == "tiny"
    result.save(tmp_path / "scan.nii.gz")
    (outcome,) = volseg.predict(
        tmp_path / "scan.nii.gz", segmenter, tmp_path / "out", to="nifti,volumes-csv", preview=True
    )
    assert outcome.error is None
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"scan.nii.gz", "scan.json", "scan.volumes.csv", "scan.png"}


def test_an_output_format_may_be_a_file_of_the_package(tmp_path, monkeypatch):
    """A module next to the others is found by its name, - written as _."""
    from volseg.api import outputs  # noqa: PLC0415 - its place

    (tmp_path / "my_text.py").write_text("SUFFIX = '.txt'\ndef write(result, path):\n    path.write_text('done')\n")
    monkeypatch.setattr(outputs, "__path__", [*outputs.__path__, str(tmp_path)])
    assert "my-text" in format_names()
    assert find_format("my-text").suffix == ".txt"
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)


def test_formats_are_named_when_one_is_unknown(tmp_path):
    assert format_names() == ["dicom-sc", "dicom-seg", "dicom-sr", "nifti", "preview", "rtstruct", "uncertainty"]
    with pytest.raises(UsageError, match=f"no output format 'obj'. Use {', '.join(format_names())}"):
        find_format("obj")
    with pytest.raises(UsageError, match="no output format 'obj'"):
        volseg.predict(tmp_path, write_model(tmp_path / "m.safetensors"), tmp_path / "out", to="preview,obj")


def test_a_format_that_raises_is_the_error_of_its_case(tmp_path, table):
    def broken(result, path):
        raise ValueError("no table today")

    add_format("broken", ".broken", broken)
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(blob((24, 20, 30)), AFFINE), tmp_path / f"{name}.nii.gz")
    model = write_model(tmp_path / "m.safetensors")
    outcomes = list(volseg.predict(tmp_path, model, tmp_path / "out", device="cpu", to="nifti,broken"))
    assert [str(one.error).partition(" failed: ")[2] for one in outcomes] == ["ValueError: no table today."] * 2


def test_channels_are_given_without_inputs(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    name = read_card(model).plan.channels[0].name
    nibabel.save(nibabel.Nifti1Image(blob((24, 20, 30)), AFFINE), tmp_path / "a.nii.gz")
    (outcome,) = volseg.predict(None, model, tmp_path / "out", device="cpu", channels={name: tmp_path / "a.nii.gz"})
    assert outcome.error is None
    assert outcome.output.exists()


@pytest.mark.parametrize("parts", [{"loss": "dice"}, {"transforms": [3]}])
def test_what_is_no_function_is_rejected_before_training(tmp_path, phantoms, parts):
    with pytest.raises(UsageError, match=r"has to be a function, found .*; training.loss takes the name of a loss"):
        trained(phantoms, tmp_path / "run", **parts)
    assert not (tmp_path / "run").exists()
