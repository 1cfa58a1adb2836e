"""Descriptions of images that predict accepts or rejects, and of paths that are neither image, model nor run."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.images import OBLIQUE, SHEARED, STRAIGHT, nifti, orthogonal, patched, ramp, save, write_series
from tests.pipeline import tiny_plan, write_model
from volseg.api.describe import describe, profile_document
from volseg.config import Channel, ComponentRule, Label, load_config
from volseg.config.plan import LabelCode
from volseg.data.io.reading import read_scan
from volseg.errors import InputError, UsageError
from volseg.modelfile import ModelCard, find_model, save_model
from volseg.networks import UNet
from volseg.networks.profile import compare_blocks
from volseg.planning.planner import network_of_choices
from volseg.version import __version__

COLOUR = [("R", "u1"), ("G", "u1"), ("B", "u1")]
KINDS = "an image, a DICOM series, SEG or RTSTRUCT, a model or a run folder"


def holding(value):
    array = ramp(dtype=np.float32)
    array[0, 0, 0] = value
    return array


def described(path):
    """The description of `path`, which must be valid JSON."""
    found = describe(path)
    json.dumps(found, allow_nan=False)
    return found


@pytest.mark.parametrize(
    ("array", "extremes", "words"),
    [
        (holding(np.nan), (1.0, 59.0), "contains 1 NaN or infinite voxels; replace them, for example by 0."),
        (holding(-np.inf), (1.0, 59.0), "contains 1 NaN or infinite voxels; replace them, for example by 0."),
        (
            np.full((3, 4, 5), np.nan),
            (None, None),
            "contains 60 NaN or infinite voxels; replace them, for example by 0.",
        ),
        (ramp().astype(np.complex64), (None, None), "the voxels are complex (complex64)"),
        (
            np.zeros((3, 4, 5), COLOUR),
            (None, None),
            "the voxels are in colour (RGB), expected one real number per voxel",
        ),
        (ramp((4, 5)), (0.0, 19.0), "is 2-D (4 x 5), expected a 3-D volume."),
        (np.full((3, 4, 5), 7, np.int16), (7.0, 7.0), "the image is constant (every voxel is 7)"),
        (
            ramp((3, 4, 5, 1, 2)),
            (0.0, 119.0),
            "is 5-D (3 x 4 x 5 x 1 x 2, several values per voxel such as vectors), expected a 3-D volume.",
        ),
    ],
)
def test_an_image_that_predict_rejects_is_described_with_the_error(tmp_path, array, extremes, words):
    path = save(nifti(array), tmp_path / "scan.nii.gz")
    found = described(path)
    with pytest.raises(InputError) as rejected:
        read_scan(path)
    assert found["refused_by_predict"] == str(rejected.value)
    assert words in found["refused_by_predict"]
    assert (found["minimum"], found["maximum"]) == extremes
    assert found["shape"] == " x ".join(map(str, array.shape))
    grid = (found["spacing_mm"], found["axes"], found["voxel_ml"])
    if array.ndim == 2:
        assert grid == (None, None, None)
    else:
        assert grid == ("0.8 x 1.5 x 3.0", "LAS", pytest.approx(0.0036))


def test_an_image_with_a_singular_affine_is_described_with_the_error(tmp_path):
    # Zeros in srow_y of the header.
    path = patched(save(nifti(ramp(), qform=0), tmp_path / "scan.nii"), 296, bytes(16))
    found = described(path)
    assert (
        found["refused_by_predict"] == f"{path}: a spacing is zero or infinite, found 0.8 x 0 x 3 mm; fix the header."
    )
    assert (found["spacing_mm"], found["axes"], found["voxel_ml"]) == (None, None, None)
    assert (found["minimum"], found["maximum"]) == (0.0, 59.0)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (STRAIGHT, "none"),
        (orthogonal(OBLIQUE), "The image axes are oblique by 20 degrees and are not straightened."),
        (SHEARED, "The image axes are sheared (they meet at 73.3 degrees) and are not straightened."),
        (
            np.diag([100, 100, 100, 1.0]),
            "The voxel size 100 x 100 x 100 mm is implausible; it is used unchanged, but check the header's unit.",
        ),
    ],
)
def test_warnings_equal_those_of_predict(tmp_path, affine, words):
    path = save(nifti(ramp(), affine, qform=0), tmp_path / "scan.nii.gz")
    found = described(path)
    assert found["warnings"] == words == ("; ".join(read_scan(path).warnings) or "none")
    assert found["refused_by_predict"] is None


def test_several_volumes_need_a_model_with_as_many_channels(tmp_path):
    found = described(save(nifti(ramp((3, 4, 5, 2))), tmp_path / "scan.nii.gz"))
    assert found["warnings"] == "It holds 2 volumes, so it needs a model with 2 channels, or --volume."
    assert found["refused_by_predict"] is None


@pytest.mark.parametrize("name", ["missing", "missing.nii.gz", "missing.zip"])
def test_a_missing_path(name):
    with pytest.raises(InputError) as rejected:
        describe(Path(name))
    assert str(rejected.value) == (
        f"There is no file or folder {name}, and no bundled model of that name (hippocampus); give {KINDS}."
    )


def test_a_missing_model_file():
    with pytest.raises(InputError, match=r"^There is no model 'missing.safetensors'\."):
        describe(Path("missing.safetensors"))


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"is a folder\. .* is its model\.safetensors"):
        find_model(tmp_path)


def test_a_folder_is_described_by_its_only_scan(tmp_path):
    path = save(nifti(ramp()), tmp_path / "scan.nii.gz")
    assert described(tmp_path)["file"] == str(path)
    save(nifti(ramp()), tmp_path / "also.nii.gz")
    with pytest.raises(InputError) as rejected:
        describe(tmp_path)
    first = tmp_path / "also.nii.gz"
    assert str(rejected.value) == f"{tmp_path} is a folder of 2 scans; give one of them: {first}, {path}."


def test_the_folder_of_a_dicom_series_is_one_image(tmp_path):
    folder = write_series(tmp_path / "series", ramp(), [(0, 0, 2 * k) for k in range(5)])
    assert (described(folder)["file"], described(folder)["shape"]) == (str(folder), "3 x 4 x 5")


def test_only_dicom_is_searched_for_series(tmp_path, monkeypatch):
    monkeypatch.setattr("volseg.api.describe._series", lambda _: pytest.fail("searched for DICOM series"))
    assert described(save(nifti(ramp()), tmp_path / "scan.nii.gz"))["what"] == "image"


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError) as rejected:
        describe(tmp_path)
    assert str(rejected.value).startswith(f"{tmp_path} is not {KINDS}: {tmp_path} holds no scan.")


@pytest.mark.parametrize("names", [("imagesTr", "labelsTr"), ("images", "labels")])
def test_a_dataset_folder_leads_to_volseg_plan(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError) as rejected:
        describe(tmp_path)
    assert str(rejected.value) == (
        f"{tmp_path} is a training dataset; use 'volseg plan {tmp_path}' for it, or give {KINDS}."
    )


def test_a_bundled_name_means_that_model_unless_a_run_has_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hippocampus"
    folder.mkdir()
    save(nifti(ramp()), folder / "scan.nii.gz")
    assert described(Path("hippocampus"))["what"] == "model Hippocampus-ensemble5"
    assert described(folder)["what"] == "image"
    (folder / "settings.yaml").touch()
    (folder / "metrics.jsonl").touch()
    assert described(Path("hippocampus"))["what"] == "run"


def test_every_field_of_a_model(tmp_path):
    labels = (
        Label(name="all", value=1, parts=(1, 2), code=LabelCode(scheme="SCT", value="1", meaning="All")),
        Label(name="core", value=2, parts=(2,)),
    )
    network = tiny_plan().network.model_copy(
        update={"classes": 2, "block": ("conv2plus1d", "conv3d"), "in_channels": 2}
    )
    plan = tiny_plan(
        labels=labels, regions=True, network=network, ignore=9, mirror_axes=(0, 2),
        channels=(Channel(name="T1"), Channel(name="CT", normalisation="none")),
    )  # fmt: skip
    card = ModelCard(
        name="tiny", plan=plan, scores={"foreground_dice": 0.5, "out_of_fold": {
            "foreground_dice": 0.75}, "members": [{"foreground_dice": 0.25}, {}]}, members=2,
        training={"dataset": "d", "cases": 3, "fold": None, "members": [{"name": "a"}, {"name": "b"}]},
    )  # fmt: skip
    path = tmp_path / "m.safetensors"
    weights = UNet(plan.network).state_dict()
    save_model(
        path, card, {f"{member}.{name}": value.clone() for member in range(2) for name, value in weights.items()}
    )
    assert described(path) == {
        "what": "model tiny",
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size_mb": round(path.stat().st_size / 1e6, 2),
        "volseg_version": __version__,
        "channels": "T1 (zscore), CT (none)",
        "labels": "1 all (of 1, 2), 2 core (of 2)",
        "codes": "all: All (SCT 1)",
        "ignored_value": 9,
        "spacing_mm": "2.0 x 1.5 x 1.5",
        "patch_size": "16 x 16 x 16",
        "network": "plain U-Net of conv2plus1d, conv3d, features 4, 8",
        "mirror_axes": "0, 2",
        "members": "2 (Dice of each: a 0.2500, b -)",
        "postprocessing": "none",
        "trained_on": "dataset d, cases 3",
        "foreground_dice": 0.75,
        "calibration": "none: results state no expected Dice",
    }
    rules = {"ball": ComponentRule(smallest_ml=0.5), "rod": ComponentRule(largest_only=True)}
    card = ModelCard(name="tiny", plan=tiny_plan(), postprocessing=rules)
    save_model(path, card, UNet(card.plan.network).state_dict())
    assert described(path)["postprocessing"] == f"ball: {rules['ball']}; rod: {rules['rod']}"
    plain = described(write_model(tmp_path / "plain.safetensors"))
    assert {"codes", "ignored_value"}.isdisjoint(plain)
    assert (plain["network"], plain["mirror_axes"]) == ("plain U-Net of conv3d, features 4, 8", "none")
    assert (plain["members"], plain["postprocessing"], plain["foreground_dice"]) == ("1", "none", None)


def test_every_field_of_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.yaml").touch()
    expected = {
        "what": "run",
        "folder": str(run),
        "step": 0,
        "minutes": 0.0,
        "progress": 0,
        "loss": None,
        "model": "not finished",
        "foreground_dice": None,
        "dice": None,
        "postprocessing": "none",
    }
    assert described(run) == expected
    records = [{"step": step, "seconds": 31.0 * step, "progress": step / 4, "loss": 1 / step} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    expected |= {"step": 2, "minutes": 1.03, "progress": 0.5, "loss": 0.5}
    assert described(run) == expected
    (run / "model.safetensors").touch()
    mean = {"foreground_dice": 0.625, "labels": {"a": {"dice": 0.75}, "b": {"dice": None}, "c": {"dice": 0.5}}}
    rule = ComponentRule(largest_only=True)
    (run / "validation.json").write_text(json.dumps({"mean": mean, "postprocessing": {"a": rule.model_dump()}}))
    assert described(run) == expected | {
        "model": str(run / "model.safetensors"),
        "foreground_dice": 0.625,
        "dice": "a 0.7500, c 0.5000",
        "postprocessing": f"a: {rule}",
    }


def test_the_costs_of_a_network_are_those_of_its_profile(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    config = tmp_path / "c.yaml"
    config.write_text("plan: {patch_size: [16, 16, 16], spacing_mm: [2, 1.5, 1.5], features: [4, 8]}\n")
    for document, network in (
        (profile_document(None, str(model)), tiny_plan().network),
        (profile_document(config, None), network_of_choices(load_config(config).plan)[0]),
    ):
        assert document["patch_size"] == [16, 16, 16]
        profiles = compare_blocks(network, (16, 16, 16))
        assert document["blocks"].keys() == profiles.keys()
        for name, profile in profiles.items():
            rows = [*profile.stages, profile.total]
            assert document["blocks"][name]["stages"] == [
                {
                    "stage": row.name,
                    "parameters": row.parameters,
                    "gflops": row.flops / 1e9,
                    "activation_mib": row.activation_bytes / 2**20,
                }
                for row in rows
            ]
    for neither in ((None, None), (config, str(model))):
        with pytest.raises(UsageError, match="Give either --config or --model"):
            profile_document(*neither)
