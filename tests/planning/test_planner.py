"""Plans worked out by hand, the reasons for them, and their way through YAML."""

from pathlib import Path

import numpy as np
import pytest

from volseg.config import PlanChoices
from volseg.data.cases.dataset import Dataset, open_dataset
from volseg.data.cases.labels import LabelSet
from volseg.errors import ConfigError
from volseg.planning.commented import plan_text
from volseg.planning.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint, take_fingerprint
from volseg.planning.planner import SET, make_plan, network_of_choices, read_plan
from volseg.planning.topology import feature_map_size


def case(shape, spacing_mm, offsets=None, name="case") -> CaseFingerprint:
    """A case with shape and spacing along R, A, S."""
    offsets = offsets or {"organ": (0.0, 0.0, 0.0)}
    return CaseFingerprint(
        name, shape, spacing_mm, dict.fromkeys(offsets, 1.5), offsets, {}, (100.0,), np.zeros((1, 1)),
        intensities=(((100.0, 10.0, *range(80, 150, 10)),) * 2,) * 4,
    )  # fmt: skip


def planned(*cases: CaseFingerprint, channel="MRI", accelerated=True, choices=None, memory_gb=8.0, labels=None):
    labels = labels or LabelSet({name: value for value, name in enumerate(cases[0].volumes_ml, start=1)})
    dataset = Dataset("tiny", Path(), (channel,), labels, ())
    channels = (ChannelFingerprint(channel, (-100.5, 300.25), 80.123456789, 40.0, (99.0, 101.0)),)
    fingerprint = Fingerprint(cases, channels)
    return make_plan(dataset, fingerprint, choices or PlanChoices(), accelerated=accelerated, memory_gb=memory_gb)


HIPPOCAMPUS = [case((35, 50, 36), (1.0, 1.0, 1.0))] * 200
PROSTATE = [case((320, 320, 20), (0.6, 0.6, 3.6))] * 30


def test_hippocampus_is_planned_as_by_nnunet():
    plan, _ = planned(*HIPPOCAMPUS)
    assert plan.axes[0] == 2
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    # D, H, W are S, R, A here and S, A, R in nnU-Net, whose patch is 40 x 56 x 40.
    assert plan.patch_size == (40, 40, 56)
    assert plan.network.features == (32, 64, 128, 256)
    assert plan.network.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.network.kernels == ((3, 3, 3),) * 4
    # nnU-Net's plan for these 200 cases: 5 % of 200 * 36 * 35 * 50 voxels are 7 patches.
    assert plan.batch_size == 7
    assert plan.steps == 28_571


def test_a_cpu_is_planned_for_half_a_gigabyte_and_a_gpu_for_what_it_has():
    large = [case((400, 400, 300), (1.0, 1.0, 1.0))] * 3
    for accelerated, memory_gb, words in ((False, 8.0, "0.5 GB"), (True, 4.0, "4 GB"), (True, 8.0, "8 GB")):
        plan, reasons = planned(*large, accelerated=accelerated, memory_gb=memory_gb)
        assert f"; the largest patch that fits {words}. A patch of" in reasons["patch_size"]
        budget = float(words.split()[0]) * 560e6 / 8
        assert 0.4 * budget < feature_map_size(plan.network, plan.patch_size) <= budget


def test_the_target_spacing_is_the_median_along_each_axis():
    cases = [case((50, 50, 50), spacing) for spacing in ((1.0, 0.9, 1.2), (1.0, 0.5, 1.0), (2.5, 0.8, 1.1))]
    plan, reasons = planned(*cases)
    # D, H, W are S, R, A.
    assert plan.spacing_mm == (1.1, 1.0, 0.8)
    assert reasons["spacing_mm"] == "median of the scans, per axis"


def test_a_cpu_gets_a_smaller_network_and_batch():
    plan, reasons = planned(*HIPPOCAMPUS, accelerated=False)
    assert plan.network.features == (16, 32, 64, 128)
    assert (plan.network.block, plan.network.mid) == ("conv2plus1d", "light")
    assert "CPU" in reasons["network.block"]
    assert (plan.network.encoder_blocks, plan.network.decoder_blocks) == ((2,) * 4, (2,) * 3)
    chosen, reasons = planned(*HIPPOCAMPUS, choices=PlanChoices(block="conv3d"), accelerated=False)
    assert (chosen.network.block, reasons["network.block"]) == ("conv3d", SET)
    assert plan.batch_size == 2
    assert plan.steps == 100_000
    assert "CPU" in reasons["network.features"]
    large, _ = planned(case((512, 512, 300), (0.8, 0.8, 1.5)), accelerated=False)
    assert np.prod(large.patch_size) < 100**3


def test_stages_may_differ_in_their_blocks(tmp_path):
    blocks = ("conv2plus1d", "conv3d", "conv3d")
    choices = PlanChoices(block=blocks, features=(8, 16, 32))
    plan, reasons = planned(*HIPPOCAMPUS, choices=choices, accelerated=False)
    assert (plan.network.block, reasons["network.block"]) == (blocks, SET)
    (tmp_path / "plan.yaml").write_text(plan_text(plan, reasons))
    assert read_plan(tmp_path / "plan.yaml") == plan
    one, other = (
        feature_map_size(plan.network.model_copy(update={"block": kind}), plan.patch_size) for kind in blocks[:2]
    )
    assert other < feature_map_size(plan.network, plan.patch_size) < one
    with pytest.raises(ValueError, match="block has 3 entries, so features need as many, found None"):
        PlanChoices(block=blocks)


def test_thick_slices():
    plan, reasons = planned(*PROSTATE)
    assert plan.axes[0] == 2
    assert plan.spacing_mm == (3.6, 0.6, 0.6)
    assert plan.patch_size == (20, 320, 256)  # as published for nnU-Net
    assert plan.network.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert plan.network.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert plan.network.block == "conv3d"
    assert "anisotropy of 6.0" in reasons["network.block"]
    on_cpu, why = planned(*PROSTATE, accelerated=False)
    assert on_cpu.network.block == "conv3d"
    assert "slices of 3.5 mm" in why["network.block"]
    assert "10th percentile" in reasons["spacing_mm"]


def test_anisotropic_target_is_the_tenth_percentile_but_not_below_the_other_axes():
    thick = [case((320, 320, 20), (0.6, 0.6, spacing)) for spacing in (2.0, 3.0, 3.5, 3.6, 4.0)]
    plan, _ = planned(*thick)
    assert plan.spacing_mm == pytest.approx((np.percentile([2.0, 3.0, 3.5, 3.6, 4.0], 10), 0.6, 0.6))
    mixed = [case((320, 320, 20), (0.6, 0.6, spacing)) for spacing in (0.3, 3.0, 3.0)]
    assert planned(*mixed)[0].spacing_mm[0] == pytest.approx(np.percentile([0.3, 3.0, 3.0], 10))
    fine = [case((320, 320, 20), (0.6, 0.6, spacing)) for spacing in (0.3, 0.3, 3.0, 3.0, 3.0)]
    assert planned(*fine)[0].spacing_mm[0] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((1.0, 1.0, 1.0), 2),
        ((3.0, 1.0, 1.0), 0),
        ((1.0, 3.0, 1.0), 1),
        ((1.0, 3.0, 3.0), 2),
        ((3.0, 3.0, 1.0), 1),
        ((1.0000001, 1.0, 1.0), 2),
    ],
)
def test_through_plane_axis_is_the_coarsest_then_nearest_to_s_then_a(spacing, axis):
    plan, _ = planned(case((64, 64, 64), spacing))
    assert plan.axes[0] == axis
    others = [spacing[other] for other in range(3) if other != axis]
    assert plan.spacing_mm == pytest.approx((spacing[axis], *others))


def test_target_spacing_is_the_median_per_axis():
    plan, _ = planned(*(case((100, 100, 60), (0.5 + 0.1 * i, 0.7, 1.0)) for i in range(5)))
    assert plan.spacing_mm == pytest.approx((1.0, 0.7, 0.7))


def test_ct_is_normalised_by_the_training_foreground():
    plan, _ = planned(case((128, 128, 64), (1.0, 1.0, 2.0)), channel="CT")
    channel = plan.channels[0]
    assert channel.normalisation == "ct"
    assert channel.clip == (-100.5, 300.25)
    assert (channel.mean, channel.std) == (80.1235, 40.0)
    assert channel.mean_range == (99.0, 101.0)


def test_memory_determines_patch_and_batch():
    big = [case((400, 400, 400), (1.0, 1.0, 1.0))] * 20
    small, large = planned(*big, memory_gb=8.0)[0], planned(*big, memory_gb=24.0)[0]
    assert small.patch_size == (128, 128, 128)
    assert np.prod(large.patch_size) > 2 * np.prod(small.patch_size)
    whole = planned(*[case((100, 100, 100), (1.0, 1.0, 1.0))] * 500, memory_gb=24.0)[0]
    assert whole.batch_size > 2


def test_the_memory_that_a_plan_may_take_can_be_set():
    big = [case((400, 400, 400), (1.0, 1.0, 1.0))] * 20
    for accelerated in (True, False):
        wanted, reasons = planned(*big, accelerated=accelerated, choices=PlanChoices(memory_gb=24))
        assert "fits 24 GB" in reasons["patch_size"]
        if accelerated:
            assert wanted == planned(*big, memory_gb=24.0)[0]
    small, large, largest = (
        planned(*big, choices=PlanChoices(encoder="residual", memory_gb=memory))[0] for memory in (8, 24, 40)
    )
    # nnU-Net's ResEnc L and XL: 24 and 40 GB.
    assert np.prod(small.patch_size) < np.prod(large.patch_size) < np.prod(largest.patch_size)
    assert large.network.encoder_blocks[:4] == (1, 3, 4, 6)
    assert np.prod(large.patch_size) > 160**3


def test_a_patch_that_sees_little_of_a_scan_is_a_warning_with_the_numbers(caplog):
    large = [case((512, 512, 400), (0.8, 0.8, 0.8))] * 3
    plan, reasons = planned(*large, accelerated=False)
    seen = np.prod(plan.patch_size) / (512 * 512 * 400)
    assert seen < 0.25
    assert f"sees {100 * seen:.2g} % of the median scan of 400 x 512 x 512 voxels" in caplog.text
    assert caplog.messages[-1].rstrip(".") in reasons["patch_size"]
    coarser = caplog.text.split("plan.spacing_mm=")[1].split("]")[0].strip("[").split(", ")
    caplog.clear()
    # What it proposes sees a quarter, to two digits.
    choices = PlanChoices(spacing_mm=[1.05 * float(one) for one in coarser])
    assert "the median scan has" in planned(*large, accelerated=False, choices=choices)[1]["patch_size"]
    assert not caplog.messages
    planned(*HIPPOCAMPUS, accelerated=False)
    assert not caplog.messages


def test_one_label_may_be_flipped_along_every_axis():
    plan, reasons = planned(*HIPPOCAMPUS)
    assert plan.mirror_axes == (0, 1, 2)
    assert reasons["mirror_axes"] == "no label lies on one side of the others"


def test_choices_override_and_say_so():
    choices = PlanChoices(
        spacing_mm=(2.0, 1.5, 1.5),
        patch_size=(16, 32, 32),
        batch_size=3,
        normalisation="none",
        mirror_axes=(),
        block="conv2plus1d",
        mid="matched",
        encoder="residual",
        features=(8, 16),
        blocks_per_stage=1,
        norm="batch",
        activation="relu",
        deep_supervision=False,
    )
    plan, reasons = planned(*HIPPOCAMPUS, choices=choices)
    network = plan.network.model_dump()
    assert (plan.spacing_mm, plan.patch_size, plan.batch_size) == ((2.0, 1.5, 1.5), (16, 32, 32), 3)
    assert plan.channels[0].normalisation == "none"
    assert plan.mirror_axes == ()
    for key in ("block", "mid", "encoder", "features", "norm", "activation", "deep_supervision"):
        assert network[key] == getattr(choices, key)
        assert reasons[f"network.{key}"] == SET
    assert network["encoder_blocks"] == (1, 1)
    for key in ("spacing_mm", "patch_size", "batch_size", "mirror_axes", "network.encoder_blocks"):
        assert reasons[key] == SET
    assert reasons["channels"] == f"MRI: none, {SET}"


def test_a_patch_that_does_not_fit_the_strides_is_rejected_with_one_that_does():
    with pytest.raises(ConfigError, match=r"40 x 40 x 50 is not a multiple .* 8 x 8 x 8; 40 x 40 x 56 is"):
        planned(*HIPPOCAMPUS, choices=PlanChoices(patch_size=(40, 40, 50)))


@pytest.mark.parametrize(("cases", "batch", "steps"), [(4, 2, 2_000), (60, 2, 30_000), (10_000, 2, 100_000)])
def test_steps_are_a_thousand_epochs_within_bounds(cases, batch, steps):
    plan, _ = planned(*[case((64, 64, 64), (1.0, 1.0, 1.0))] * cases, choices=PlanChoices(batch_size=batch))
    assert plan.steps == steps


def test_ranges_keep_their_extremes():
    one = case((64, 64, 64), (1.0, 1.0, 1.0))
    one.volumes_ml["organ"] = 1.23456789
    other = case((64, 64, 64), (1.0, 1.0, 1.0))
    other.volumes_ml["organ"] = 23.4567891
    assert planned(one, other)[0].labels[0].volume_ml_range == (1.23456, 23.4568)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("cases", [HIPPOCAMPUS, PROSTATE], ids=["hippocampus", "prostate"])
def test_a_written_plan_reads_back_with_its_reasons(tmp_path, cases, accelerated):
    plan, reasons = planned(*cases, channel="CT", accelerated=accelerated)
    path = tmp_path / "plan.yaml"
    path.write_text(plan_text(plan, reasons))
    assert read_plan(path) == plan
    lines = [line.strip() for line in path.read_text().splitlines()]
    for key, reason in reasons.items():
        value = lines[lines.index(f"# {reason}") + 1]
        # Two values may have the same reason; then index() finds the comment above the first.
        assert value.startswith(f"{key.removeprefix('network.')}:") or list(reasons.values()).count(reason) > 1


def test_a_reason_may_contain_any_name(tmp_path):
    offsets = {"left\nevil: 1\x1b": (-0.4, 0.0, 0.0), "right": (0.4, 0.0, 0.0)}
    plan, reasons = planned(case((64, 64, 64), (1.0, 1.0, 1.0), offsets))
    (tmp_path / "plan.yaml").write_text(plan_text(plan, reasons))
    assert "\n" in reasons["sides"]
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_lines_about_the_data_are_a_header_whatever_they_contain(tmp_path):
    plan, reasons = planned(*PROSTATE)
    text = plan_text(plan, reasons, ["first", "second\nevil: 1\u2028worse:\x96\x07 2"])
    (tmp_path / "plan.yaml").write_text(text)
    assert text.splitlines()[1:3] == ["# first", "# second evil: 1 worse:   2"]
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_regions_and_the_ignore_label_reach_the_plan(tmp_path):
    labels = LabelSet({"whole": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}, ignore=3)
    one = case((64, 64, 64), (1.0, 1.0, 1.0), {"whole": (0.0, 0.0, 0.0), "core": (0.0, 0.0, 0.0)})
    plan, reasons = planned(one, labels=labels)
    assert (plan.regions, plan.ignore, plan.network.classes) == (True, 3, 2)
    assert "regions overlap" in reasons["labels"]
    assert "value 3 are excluded from the loss, patch sampling and metrics" in reasons["labels"]
    assert [(label.name, label.value, label.parts) for label in plan.labels] == [
        ("whole", 1, (1, 2)),
        ("core", 2, (2,)),
    ]
    (tmp_path / "plan.yaml").write_text(plan_text(plan, reasons))
    assert read_plan(tmp_path / "plan.yaml") == plan
    plain, _ = planned(one)
    assert (plain.regions, plain.ignore, plain.network.classes) == (False, None, 3)


def test_reading_something_else(tmp_path):
    (tmp_path / "plan.yaml").write_text("dataset: x\npatch: 3\n")
    with pytest.raises(ConfigError, match="unknown key 'patch'"):
        read_plan(tmp_path / "plan.yaml")


def test_network_of_choices_needs_patch_and_spacing():
    with pytest.raises(ConfigError, match=r"plan.patch_size and plan.spacing_mm"):
        network_of_choices(PlanChoices(patch_size=(32, 32, 32)))
    network, patch_size = network_of_choices(PlanChoices(patch_size=(32, 32, 32), spacing_mm=(1, 1, 1), norm="group"))
    assert patch_size == (32, 32, 32)
    assert (network.norm, network.in_channels, network.classes) == ("group", 1, 2)


@pytest.mark.needs_data
def test_real_hippocampus(data_folder):
    dataset = open_dataset(data_folder / "Task04_Hippocampus")
    plan, reasons = make_plan(dataset, take_fingerprint(dataset), PlanChoices(), accelerated=True)
    assert (plan.patch_size, plan.batch_size, plan.spacing_mm) == ((40, 40, 56), 7, (1.0, 1.0, 1.0))
    # Anterior and posterior lie on opposite sides along A and S; left and right hippocampi are flips along R (H).
    assert plan.mirror_axes == (1,)
    assert "along A" in reasons["mirror_axes"]


def test_a_cpu_plan_has_half_a_gigabyte_or_what_a_small_machine_has():
    """The feature maps of a patch as in nnU-Net's reference: 70 million values per GB."""
    large = [case((400, 400, 400), (1.0, 1.0, 1.0))] * 30
    plan, reasons = planned(*large, accelerated=False)
    assert "the largest patch that fits 0.5 GB." in reasons["patch_size"]
    assert 0.5 * 35e6 < feature_map_size(plan.network, plan.patch_size) <= 35e6
    small, reasons = planned(*large, accelerated=False, memory_gb=0.25)
    assert "the largest patch that fits 0.25 GB." in reasons["patch_size"]
    assert feature_map_size(small.network, small.patch_size) <= 17.5e6
