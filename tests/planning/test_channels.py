"""How channels are normalised, and whether scans are cropped: by names, by zeros around the contents, by the user."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.images import nifti, save
from tests.planning.test_planner import case, planned
from volseg.config import PlanChoices, load_config
from volseg.data.cases.dataset import Dataset, open_dataset
from volseg.data.cases.labels import LabelSet
from volseg.errors import ConfigError
from volseg.planning.channels import MASKED
from volseg.planning.fingerprint import ChannelFingerprint, Fingerprint, take_fingerprint
from volseg.planning.planner import make_plan

CUBE = case((64, 64, 64), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "normalisation"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("CT_1", "ct"),
        ("noNorm_0", "none"),
        ("noNorm", "none"),
        ("NONORM", "none"),
        ("rescale_to_0_1", "rescale"),
        ("rgb_to_0_1", "rgb"),
        ("zscore", "zscore"),
        ("MRI", "zscore"),
        ("CTA", "zscore"),
        ("PET-CT", "zscore"),
    ],
)
def test_a_channel_is_normalised_as_its_name_says(name, normalisation):
    plan, reasons = planned(CUBE, channel=name)
    assert plan.channels[0].normalisation == normalisation
    assert (plan.channels[0].clip is not None) == (normalisation == "ct")
    why = "of each scan" if name in ("MRI", "CTA", "PET-CT") else "its name says so"
    assert reasons["channels"] == f"{name}: {normalisation}, {why}"


@pytest.mark.parametrize("name", ["zscore", "MRI", "rescale_to_0_1"])
def test_the_means_of_scans_without_a_unit_are_no_range(name):
    assert planned(CUBE, channel=name)[0].channels[0].mean_range is None
    assert planned(CUBE, channel="noNorm")[0].channels[0].mean_range == (99.0, 101.0)


def test_masked_scans_are_normalised_and_cropped_to_their_nonzero_region():
    for masked, expected in ((MASKED - 0.01, ("zscore", "none")), (MASKED, ("zscore_nonzero", "nonzero"))):
        plan, reasons = planned(*[replace(CUBE, masked=masked)] * 3)
        assert (plan.channels[0].normalisation, plan.crop) == expected
    assert "25 % of the median scan are zeros" in reasons["channels"]
    assert "25 % of the median scan are zeros" in reasons["crop"]
    # Air that is 0 HU after someone's masking changes nothing about HU.
    assert planned(replace(CUBE, masked=0.6), channel="CT")[0].channels[0].normalisation == "ct"
    # One odd scan does not make a dataset masked.
    assert planned(CUBE, CUBE, replace(CUBE, masked=0.9))[0].crop == "none"


def test_no_label_is_cropped_away():
    odd = replace(CUBE, name="odd", masked=0.5, cut_ml=0.01)
    plan, reasons = planned(replace(CUBE, masked=0.5), odd)
    assert (plan.crop, plan.channels[0].normalisation) == ("none", "zscore_nonzero")
    assert reasons["crop"] == "1 cases have labels where all channels are 0: odd"


def test_the_median_scan_of_masked_cases_is_the_part_that_is_kept():
    whole, cropped = (case(shape, (1.0, 1.0, 1.0)) for shape in ((200, 200, 200), (60, 70, 80)))
    masked = replace(whole, masked=0.9, nonzero_shape=(60, 70, 80))
    assert planned(masked)[0].patch_size == planned(cropped)[0].patch_size
    assert "80 x 60 x 70" in planned(masked)[1]["patch_size"]
    assert "200 x 200 x 200" in planned(masked, choices=PlanChoices(crop="none"))[1]["patch_size"]


def test_channels_with_one_reason_share_it():
    dataset = Dataset("two", Path(), ("T1", "CT", "T2"), LabelSet({"organ": 1}), ())
    channels = tuple(ChannelFingerprint(name, (0.0, 9.0), 5.0, 2.0, (1.0, 2.0)) for name in dataset.channels)
    plan, reasons = make_plan(dataset, Fingerprint((CUBE,), channels), PlanChoices(), accelerated=False)
    assert [one.normalisation for one in plan.channels] == ["zscore", "ct", "zscore"]
    assert reasons["channels"] == "T1, T2: zscore, of each scan; CT: ct, its name says so"


def test_the_user_may_set_each_channel_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("plan:\n  normalisation:\n    MRI: rescale\n")
    for choices in (load_config(tmp_path / "config.yaml"), load_config(None, ["plan.normalisation.MRI=rescale"])):
        plan, reasons = planned(CUBE, choices=choices.plan)
        assert plan.channels[0].normalisation == "rescale"
        assert reasons["channels"] == "MRI: rescale, set by the configuration"
    with pytest.raises(ConfigError, match="names the channel PET, but the dataset has MRI"):
        planned(CUBE, choices=PlanChoices(normalisation={"PET": "ct"}))
    assert planned(CUBE, choices=PlanChoices(normalisation="rgb"))[0].channels[0].normalisation == "rgb"


def test_zeros_around_the_contents_are_measured(tmp_path):
    """A box of 8 x 6 x 5 in a scan of 16 x 12 x 10, with a hole that is not around it, and one label outside."""
    image, label = np.zeros((16, 12, 10), np.int16), np.zeros((16, 12, 10), np.uint8)
    image[4:12, 3:9, 2:7] = 100
    image[6, 5, 4] = 0
    label[5:8, 5, 5] = 1
    for name, outside in (("inside", 0), ("outside", 3)):
        marked = label.copy()
        marked[0, 0, :outside] = 1
        # Two cases with the same voxels would be one too many.
        for folder, array in (("images", image + (name == "outside") * (image > 0)), ("labels", marked)):
            (tmp_path / folder).mkdir(exist_ok=True)
            save(nifti(array, np.eye(4)), tmp_path / folder / f"{name}.nii")
    inside, outside = take_fingerprint(open_dataset(tmp_path)).cases
    assert inside.masked == pytest.approx(1 - 8 * 6 * 5 / image.size)
    assert inside.nonzero_shape == (8, 6, 5)
    assert (inside.cut_ml, outside.cut_ml) == (0.0, pytest.approx(0.003))
