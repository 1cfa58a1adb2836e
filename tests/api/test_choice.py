"""--series, --volume and the series that a model can mean."""

import json

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.data.images import write_series
from tests.pipeline import blob, tiny_plan, write_model
from volseg import Segmenter, predict
from volseg.cli import app
from volseg.config import Channel
from volseg.data.io.choice import Choice
from volseg.data.io.read_cost import reading_bytes
from volseg.errors import InputError, UsageError

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
SHAPE = (20, 24, 18)


def as_slices(folder, volume, uid, number, **tags):
    """A series with the grid of AFFINE but for the directions of LPS+."""
    positions = np.stack([np.zeros(SHAPE[2]), np.zeros(SHAPE[2]), 2.0 * np.arange(SHAPE[2])], axis=1)
    return write_series(
        folder,
        volume,
        positions,
        spacing=(1.5, 1.5),
        series=uid,
        first=int(number) * 100,
        **{"0020_0011": number},
        **tags,
    )


def volume(seed):
    return blob(SHAPE, seed)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def segmenter(model):
    return Segmenter.load(model, device="cpu", precision="fp32")


@pytest.fixture
def study(tmp_path):
    """A folder with three series among each other: MR 3, MR 4, and CT 5."""
    as_slices(tmp_path / "study", volume(1), "1.2.3", "3")
    as_slices(tmp_path / "study", volume(2), "1.2.4", "4")
    as_slices(tmp_path / "study", volume(3), "1.2.5", "5", **{"0008_0060": "CT"})
    return tmp_path / "study"


def test_several_series_are_listed(segmenter, study):
    with pytest.raises(InputError) as caught:
        segmenter(study)
    lines = str(caught.value).splitlines()
    assert "contains 3 DICOM series; choose one with --series NUMBER or UID" in lines[0]
    assert lines[1:] == [
        "  number 3: MR, 18 images of 20 x 24, 1.5 x 1.5 mm",
        "  number 4: MR, 18 images of 20 x 24, 1.5 x 1.5 mm",
        "  number 5: CT, 18 images of 20 x 24, 1.5 x 1.5 mm",
    ]


@pytest.mark.parametrize("series", [4, "4", "1.2.4"])
def test_a_series_is_chosen_by_number_or_uid(segmenter, study, series):
    result = segmenter(study, series=series)
    np.testing.assert_array_equal(result.scan.channels[0], volume(2))
    assert result.scan.warnings == ()
    assert result.record["series"] == {"uid": "1.2.4", "number": "4", "modality": "MR"}
    assert "volume" not in result.record


def test_the_only_series_of_the_model_is_taken_and_the_record_says_so(segmenter, study):
    """Of MR 3 and CT 5, a model of MR can only mean MR 3."""
    for file in study.glob("1.2.4-*"):
        file.unlink()
    result = segmenter(study)
    np.testing.assert_array_equal(result.scan.channels[0], volume(1))
    assert result.record["warnings"] == [
        "Series 3 is taken; set aside: number 5: CT, 18 images of 20 x 24, 1.5 x 1.5 mm (the model takes MR)."
    ]


def test_one_volume_of_a_4d_scan(segmenter, tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack([volume(1), volume(2)], axis=-1), AFFINE), path)
    with pytest.raises(InputError, match="2 volumes"):
        segmenter(path)
    expected = segmenter((volume(2), AFFINE)).labels
    np.testing.assert_array_equal(segmenter(path, volume=2).labels, expected)


def test_all_volumes_have_a_result_each(segmenter, tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack([volume(1), volume(2)], axis=-1), AFFINE), path)
    done = list(predict(path, segmenter, tmp_path / "out", volume="all"))
    assert [one.name for one in done] == ["a_t1", "a_t2"]
    for seed, one in enumerate(done, 1):
        labels = np.asarray(nibabel.load(tmp_path / "out" / f"a_t{seed}.nii.gz").dataobj)
        np.testing.assert_array_equal(labels, segmenter((volume(seed), AFFINE)).labels)
        assert one.record["volume"] == seed


def test_a_bad_scan_does_not_stop_the_volumes_of_others(model, segmenter, tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "b.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack([volume(1), volume(2)], axis=-1), AFFINE), path)
    (tmp_path / "in" / "a.nii.gz").write_bytes(path.read_bytes()[:500])
    bad, *good = predict(tmp_path / "in", segmenter, tmp_path / "out", volume="all")
    assert (bad.name, type(bad.error)) == ("a", InputError)
    assert [one.name for one in good if one.record] == ["b_t1", "b_t2"]
    with pytest.raises(InputError, match=r"cut short|corrupt"):
        predict(tmp_path / "in" / "a.nii.gz", segmenter, tmp_path / "alone", volume="all")
    arguments = ["predict", tmp_path / "in", "--model", model, "--output", tmp_path / "more", "--volume", "all"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    assert done.exit_code == 3, done.output


def test_an_image_of_five_dimensions_has_no_numbered_volumes(segmenter, tmp_path):
    image = np.stack([volume(1), volume(2)], axis=-1)[:, :, :, None]
    nibabel.save(nibabel.Nifti1Image(image, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"\(20 x 24 x 18 x 1 x 2\) has 5 dimensions, so its volumes have no single"):
        segmenter(tmp_path / "a.nii.gz", volume=2)
    (one,) = predict(tmp_path / "a.nii.gz", segmenter, tmp_path / "out", volume="all")
    assert "20 x 24 x 18 x 1 x 2" in str(one.error)


@pytest.mark.parametrize("wrong", ["all", "2", 1.0, True, 0, -3, [1]])
def test_a_call_takes_the_number_of_a_volume(segmenter, tmp_path, wrong):
    with pytest.raises(UsageError, match=r"^volume is .*\. Give the number of a volume, from 1; volseg\.predict takes"):
        segmenter(tmp_path / "a.nii", volume=wrong)


@pytest.mark.parametrize("wrong", [True, 1.5, "", " ", [3]])
def test_a_series_is_a_uid_or_a_number(segmenter, tmp_path, wrong):
    for call in (segmenter, lambda path, series: predict(path, segmenter, tmp_path / "out", series=series)):
        with pytest.raises(UsageError, match="Give a SeriesInstanceUID or the number of a series"):
            call(tmp_path, series=wrong)


def test_numbers_of_numpy_are_numbers(segmenter, tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack([volume(1), volume(2)], axis=-1), AFFINE), path)
    np.testing.assert_array_equal(segmenter(path, volume=np.int64(2)).scan.channels[0], volume(2))


def test_an_empty_path_is_not_the_current_folder(segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = (
        lambda: segmenter(""),
        lambda: predict("", segmenter, "out"),
        lambda: predict(["a.nii", ""], segmenter, "out"),
        lambda: predict(None, segmenter, "out", channels={"image": ""}),
        lambda: predict("a.nii", segmenter, ""),
    )
    (tmp_path / "a.nii").touch()
    for call in calls:
        with pytest.raises(UsageError, match="An empty path was given"):
            call()


def test_another_modality_than_the_models_is_a_warning(segmenter, study):
    result = segmenter(study, series=5)
    assert "The scan is CT, but the model takes MR." in result.record["warnings"]


@pytest.mark.parametrize(
    ("names", "modality"), [(("T1", "FLAIR"), "MR"), (("CT", "CT"), "CT"), (("CT", "PET"), None), (("a", "CT"), None)]
)
def test_channels_tell_the_modality_also_numbered(tmp_path, names, modality):
    network = tiny_plan().network.model_copy(update={"in_channels": 2})
    plan = tiny_plan(network=network, channels=tuple(Channel(name=name) for name in names))
    assert Segmenter.load(write_model(tmp_path / "m.safetensors", plan), device="cpu")._modality == modality


def test_memory_is_that_of_the_chosen_series(study):
    one = 3 * volume(1).size * 2
    assert reading_bytes(study, Choice(series="3")) == one
    assert reading_bytes(study) == 0
    for file in study.glob("1.2.4-*"):
        file.unlink()
    assert reading_bytes(study, Choice(modality="MR")) == one


@pytest.mark.parametrize("wrong", [0, -1, "first", "1.5", 1.0, True])
def test_a_volume_is_a_number_or_all(segmenter, tmp_path, wrong):
    with pytest.raises(UsageError, match=f"--volume is {wrong}. Give the number of a volume, from 1, or all."):
        predict(tmp_path, segmenter, tmp_path / "out", volume=wrong)


def test_the_options_of_the_command_line(model, study, tmp_path):
    common = ["predict", study, "--model", model, "--output", tmp_path / "out.nii.gz", "--device", "cpu", "--json"]
    refused = CliRunner().invoke(app, list(map(str, common)))
    assert refused.exit_code == 2
    assert "number 5: CT" in refused.output
    done = CliRunner().invoke(app, list(map(str, [*common, "--series", "4", "--volume", "1"])))
    assert done.exit_code == 0, done.output
    (case,) = json.loads(done.stdout)["cases"]
    assert case["warnings"] == []


def test_info_describes_a_chosen_series_and_volume(study, tmp_path):
    shown = CliRunner().invoke(app, ["info", str(study), "--json", "--series", "4"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["maximum"] == volume(2).max()
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack([volume(1), volume(2)], axis=-1), AFFINE), path)
    shown = CliRunner().invoke(app, ["info", str(path), "--json", "--volume", "2"])
    assert json.loads(shown.stdout)["maximum"] == volume(2).max()


def test_a_folder_of_several_series_is_listed_by_info(study):
    shown = CliRunner().invoke(app, ["info", str(study), "--json"])
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.stdout)
    assert document["what"] == "3 DICOM series"
    assert document["series 5"] == "CT, 18 images of 20 x 24, 1.5 x 1.5 mm, UID 1.2.5"
