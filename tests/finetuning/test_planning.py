"""The plan of a run that starts from a model: what it keeps, what it plans for the dataset, what it refuses."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipeline import tiny_plan
from volseg.config import Channel, Label, PlanChoices, Resampling, Sides
from volseg.data.cases.cache import PREPROCESSING, cache_key
from volseg.data.cases.dataset import open_dataset
from volseg.errors import UsageError
from volseg.finetuning.planning import plan_from
from volseg.finetuning.source import Source
from volseg.modelfile import ModelCard
from volseg.planning.fingerprint import take_fingerprint
from volseg.planning.planner import make_plan

CT = Channel(name="CT", normalisation="ct", clip=(-200, 300), mean=50, std=100, mean_range=(-700, -300))
# A value of each setting that the tiny model contradicts.
OTHERS = {
    "dimensions": 2, "spacing_mm": (1, 1, 1), "patch_size": (32, 16, 16), "normalisation": "ct", "crop": "nonzero",
    "image_resampling": "cubic", "label_resampling": "linear", "antialias": True, "architecture": "own",
    "block": "conv2plus1d", "mid": "matched", "encoder": "residual", "features": (4, 8, 16), "blocks_per_stage": 2,
    "norm": "batch", "activation": "relu", "deep_supervision": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(phantoms):
    return open_dataset(phantoms)


@pytest.fixture(scope="module")
def fingerprint(data):
    return take_fingerprint(data)


def source_of(plan, **card):
    return Source(Path("m.safetensors"), "m", 64 * "a", ModelCard(name="m", plan=plan, **card), 0)


def started(plan, data, fingerprint, choices=None, keep=False, **label_map):
    return plan_from(
        source_of(plan), data, fingerprint, choices or PlanChoices(), accelerated=False, memory_gb=8.0,
        label_map=label_map, keep_labels=keep,
    )  # fmt: skip


def intensities(fingerprint, name, low, high):
    """The fingerprint with other intensities: foreground from low to high, and scans that are darker by 300."""
    middle = (low + high) / 2
    scan = middle - 300
    (channel,) = fingerprint.channels
    cases = tuple(
        replace(case, means=(scan,), samples=low + (high - low) * (one - one.min()) / (one.max() - one.min()))
        for case, one in ((case, case.samples.astype("float64")) for case in fingerprint.cases)
    )
    channel = replace(
        channel, name=name, percentiles=(low, high), mean=middle, std=(high - low) / 4, mean_range=(scan, scan)
    )
    return replace(fingerprint, cases=cases, channels=(channel,))


def test_what_the_weights_were_trained_with_is_kept_and_the_rest_is_planned(data, fingerprint):
    model = tiny_plan(
        spacing_mm=(4.0, 3.0, 3.0), axes=(1, 0, 2), mirror_axes=(0, 1, 2), steps=7, batch_size=5,
        image_resampling=Resampling(order=3), label_resampling="linear",
        logits_resampling=Resampling(separate="always"),
    )  # fmt: skip
    plan, reasons, _ = started(model, data, fingerprint)
    for key in ("spacing_mm", "axes", "orientation", "dimensions", "crop", "image_resampling", "label_resampling",
                "logits_resampling", "patch_size", "network", "regions"):  # fmt: skip
        assert getattr(plan, key) == getattr(model, key), key
    alone, _ = make_plan(data, fingerprint, PlanChoices(), accelerated=False)
    assert (plan.dataset, plan.labels, plan.steps, plan.batch_size) == ("Phantoms MR", alone.labels, 2500, 2)
    # Ball and rod lie on different sides along some axes; the model's own flips do not count.
    assert {model_axis(plan, axis) for axis in plan.mirror_axes} == {
        model_axis(alone, axis) for axis in alone.mirror_axes
    }
    assert reasons["spacing_mm"] == "as in m"


def model_axis(plan, axis):
    return "RAS"[plan.axes[axis]]


def test_cases_are_found_again_in_the_cache_of_a_run_from_scratch(data, fingerprint):
    alone, _ = make_plan(data, fingerprint, PlanChoices(), accelerated=False)
    plan, _, _ = started(alone, data, fingerprint)
    dumps = [one.model_dump(mode="json", include=PREPROCESSING) for one in (alone, plan)]
    assert dumps[0] == dumps[1]
    assert cache_key(data.cases[0], alone) == cache_key(data.cases[0], plan)


def test_every_fixed_setting_has_a_case():
    assert OTHERS.keys() | {"batch_size", "memory_gb", "mirror_axes", "sides"} == set(PlanChoices.model_fields)


@pytest.mark.parametrize("key", OTHERS)
def test_a_setting_that_contradicts_the_model_is_refused_by_name(key, data, fingerprint):
    features = {"features": (4, 8)} if key == "block" else {}
    with pytest.raises(UsageError, match=rf"^plan\.{key} is .*but the model .* was trained with .*without --from\.$"):
        started(tiny_plan(), data, fingerprint, PlanChoices(**features, **{key: OTHERS[key]}))


def test_settings_that_the_model_has_too_and_free_ones_are_taken(data, fingerprint):
    model = tiny_plan()
    same = PlanChoices(
        dimensions=3, spacing_mm=model.spacing_mm, patch_size=model.patch_size, normalisation={"MRI": "zscore"},
        crop="none", image_resampling="linear", label_resampling="nearest", antialias=False, architecture="unet",
        block="conv3d", mid="light", encoder="plain", features=(4, 8), blocks_per_stage=1, norm="instance",
        activation="leaky_relu", deep_supervision=True, batch_size=3, mirror_axes=(2,),
    )  # fmt: skip
    plan, _, _ = started(model, data, fingerprint, same)
    assert plan.network == model.network
    assert (plan.batch_size, plan.mirror_axes) == (3, (2,))


def test_regions_and_plain_labels_do_not_start_from_each_other(data, fingerprint):
    regions = tiny_plan(
        regions=True, labels=tuple(Label(name=name, value=at, parts=(1, 2)) for at, name in enumerate("ab", 1)),
        network=tiny_plan().network.model_copy(update={"classes": 2}),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"^The labels of m are regions, which may overlap, but those of Phantoms MR"):
        started(regions, data, fingerprint)


def ct_plan():
    return tiny_plan(channels=(CT,))


def test_a_ct_model_keeps_its_numbers_for_ct(data, fingerprint):
    found = intensities(fingerprint, "image", -100, 200)
    plan, _, start = started(ct_plan(), replace(data, channels=("image",)), found)
    channel = plan.channels[0]
    assert (channel.name, channel.normalisation, channel.clip, channel.mean, channel.std) == (
        "image", "ct", CT.clip, CT.mean, CT.std,
    )  # fmt: skip
    assert channel.mean_range == (-250, -250)
    assert "normalisation of image kept (ct)" in start.notes


@pytest.mark.parametrize(
    ("name", "low", "high", "why"),
    [
        ("MRI", -100, 200, "these scans are MR by their channel's name"),
        ("image", 500, 1500, "100 % of the foreground lie outside the -200 to 300 that it clips to"),
        ("image", 200, 290, ""),
        ("image", 240, 320, ""),
    ],
)
def test_where_intensities_do_not_fit_normalisation_is_planned_anew(name, low, high, why, data, fingerprint, caplog):
    found = intensities(fingerprint, name, low, high)
    with caplog.at_level(logging.WARNING):
        plan, _, start = started(ct_plan(), replace(data, channels=(name,)), found)
    assert plan.channels[0].normalisation == ("zscore" if why else "ct")
    warned = [record.getMessage() for record in caplog.records if "do not fit the model" in record.getMessage()]
    assert len(warned) == bool(why)
    if why:
        assert why in warned[0]
        assert any(why in note for note in start.notes)


def test_scans_far_brighter_than_those_of_the_model_do_not_fit(data, fingerprint):
    model = tiny_plan(channels=(CT.model_copy(update={"clip": (-2000, 5000), "mean_range": (-700, -600)}),))
    found = intensities(fingerprint, "image", 900, 1300)
    plan, _, start = started(model, replace(data, channels=("image",)), found)
    assert plan.channels[0].normalisation == "zscore"
    assert "the mean intensities of its training scans are -700 to -600, those of these scans 800 to 800" in str(
        start.notes
    )


def test_kept_labels_need_the_channels_and_intensities_of_the_model(data, fingerprint):
    found = intensities(fingerprint, "MRI", 500, 1500)
    with pytest.raises(
        UsageError, match=r"^--keep-labels lets m segment the scans, but the intensities of channel MRI do"
    ):
        started(ct_plan(), data, found, keep=True)
    two = tiny_plan(
        channels=(Channel(name="MRI"), Channel(name="PET")),
        network=tiny_plan().network.model_copy(update={"in_channels": 2}),
    )
    with pytest.raises(UsageError, match=r"^--keep-labels lets m segment the scans, but they lack its channel PET\."):
        started(two, data, fingerprint, keep=True)


def test_the_table_says_when_the_spacing_is_another(data, fingerprint):
    (note,) = (one for one in started(tiny_plan(), data, fingerprint)[2].notes if "spacing" in one)
    assert note == "spacing kept, 2 x 1.5 x 1.5 mm; the scans have 2 x 1.25 x 1.5 mm in the median"
    coarse = tiny_plan(spacing_mm=(6.0, 1.5, 1.5))
    (note,) = (one for one in started(coarse, data, fingerprint)[2].notes if "spacing" in one)
    assert note.startswith(
        "spacing kept, 6 x 1.5 x 1.5 mm, though the scans have 2 x 1.25 x 1.5 mm in the median: the weights know"
    )
    flat = tiny_plan(spacing_mm=(6.0, 1.5, 1.5), dimensions=2, patch_size=(1, 16, 16),
                     network=tiny_plan().network.model_copy(update={"strides": ((1, 1, 1), (1, 2, 2))}))  # fmt: skip
    assert "though" not in str(started(flat, data, fingerprint)[2].notes)


def test_kept_labels_get_values_that_the_dataset_does_not_have(data, fingerprint):
    # The dataset has 1 ball and 2 rod.
    labels = (
        Label(name="liver", value=2, volume_ml_range=(5, 6)),
        Label(name="ball", value=3),
        Label(name="x", value=9),
    )
    model = tiny_plan(labels=labels, network=tiny_plan().network.model_copy(update={"classes": 4}))
    plan, _, start = started(model, data, fingerprint, keep=True)
    assert [(one.name, one.value) for one in plan.labels] == [("ball", 1), ("rod", 2), ("liver", 10), ("x", 9)]
    assert plan.labels[2].volume_ml_range == (5, 6)
    assert plan.network.classes == 5
    assert start.labels.kept == ("liver", "x")


def test_flips_of_kept_labels_are_those_of_the_model_with_its_sides(data, fingerprint):
    labels = tuple(Label(name=name, value=value) for value, name in enumerate(("left", "right", "ball"), 1))
    model = tiny_plan(
        labels=labels, mirror_axes=(1, 2), sides=Sides(axis=1, pairs=((1, 2),)),
        network=tiny_plan().network.model_copy(update={"classes": 4}),
    )  # fmt: skip
    plan, _, _ = started(model, data, fingerprint, keep=True)
    assert set(plan.mirror_axes) <= {1, 2}
    values = {one.name: one.value for one in plan.labels}
    assert plan.sides == Sides(axis=1, pairs=((values["left"], values["right"]),))


def test_a_label_that_has_lost_its_partner_on_the_other_side_forbids_the_flip(data, fingerprint):
    """By the model, where the names say nothing: here ball and rod are the left and the right of two."""
    lone = Label(name="other", value=2)
    for second, axes in ((lone, (0, 2)), (Label(name="rod", value=2), (0, 1, 2))):
        model = tiny_plan(labels=(Label(name="ball", value=1), second), sides=Sides(axis=1, pairs=((1, 2),)))
        centred = tuple(replace(case, offsets={}) for case in fingerprint.cases)
        plan, reasons, _ = started(model, data, replace(fingerprint, cases=centred))
        assert plan.mirror_axes == axes
        assert ("ball of the model has lost its partner" in reasons["mirror_axes"]) == (second is lone)


def test_a_model_whose_axes_are_as_stored_flips_nothing_where_labels_have_sides(data, fingerprint):
    model = tiny_plan(orientation="stored", axes=(0, 1, 2), mirror_axes=(0, 1, 2))
    one_sided = dict.fromkeys(("ball", "rod"), (0.4, 0.0, 0.0))
    centred = dict.fromkeys(("ball", "rod"), (0.0, 0.0, 0.0))
    for offsets, axes in ((one_sided, ()), (centred, (0, 1, 2))):
        found = replace(fingerprint, cases=tuple(replace(case, offsets=offsets) for case in fingerprint.cases))
        assert started(model, data, found)[0].mirror_axes == axes


def test_a_crop_that_would_cut_labels_is_not_taken(data, fingerprint):
    model = tiny_plan(crop="nonzero")
    assert started(model, data, fingerprint)[0].crop == "nonzero"
    cut = replace(fingerprint, cases=tuple(replace(case, cut_ml=1.0) for case in fingerprint.cases))
    plan, _, start = started(model, data, cut)
    assert plan.crop == "none"
    assert "crop planned anew (none): 5 cases have labels where all channels are 0" in start.notes
