"""plans.json and dataset.json as a plan: what nnU-Net does, or an error that names the unsupported feature."""

import copy

import pytest

from tests.interop.folders import CONFIGURATION, dataset_of, plans_of
from tests.interop.variants import DEEP, FLAT, VARIANTS, Variant
from volseg.config import Channel, Label, Resampling
from volseg.errors import InputError
from volseg.interop.nnunet_plans import plan_of

NAMES = "SimpleITKIO, NibabelIO, SimpleITKIOWithReorient, NibabelIOWithReorient"


def imported(variant=None, plans=None, dataset=None, **options):
    variant = variant or Variant()
    return plan_of(plans or plans_of(variant), dataset or dataset_of(variant), CONFIGURATION, **options)


def changed(where, key, value):
    """plans.json with one value replaced in "plans", "configuration", or the network's "arguments"."""
    plans = plans_of(Variant())
    configuration = plans["configurations"]["base"]
    places = {
        "plans": plans,
        "configuration": configuration,
        "architecture": configuration["architecture"],
        "arguments": configuration["architecture"]["arch_kwargs"],
    }
    places[where][key] = value
    return plans


def test_fields_of_a_plain_model():
    plan = imported(Variant(spacing=(2.5, 0.7, 0.8), patch=(8, 16, 24)), mirror_axes=(0, 2))
    assert plan.dataset == "Dataset007_Small"
    assert plan.channels == (Channel(name="MRI"),)
    assert plan.labels == (Label(name="first", value=1), Label(name="second", value=2))
    assert (plan.regions, plan.orientation, plan.crop) == (False, "stored", "nonzero")
    assert (plan.spacing_mm, plan.patch_size, plan.mirror_axes) == ((2.5, 0.7, 0.8), (8, 16, 24), (0, 2))
    assert plan.image_resampling == Resampling(order=3, separate="anisotropic")
    assert plan.logits_resampling == Resampling(order=1, separate="anisotropic")


def test_a_2d_model_is_applied_slice_by_slice():
    variant = Variant(**FLAT | {"patch": (16, 24), "spacing": (0.7, 0.8)}, transpose=(1, 0, 2))
    plans = plans_of(variant) | {"original_median_spacing_after_transp": [5.5, 0.7, 0.8]}
    plan = imported(variant, plans, mirror_axes=(0, 1))
    assert (plan.dimensions, plan.axes, plan.mirror_axes) == (2, (1, 2, 0), (1, 2))
    assert (plan.spacing_mm, plan.patch_size) == ((5.5, 0.7, 0.8), (1, 16, 24))
    assert plan.network.kernels == ((1, 3, 3), (1, 3, 3))
    assert plan.network.strides == ((1, 1, 1), (1, 2, 2))
    # The median spacing is in no plan before nnU-Net 2.
    assert imported(variant).spacing_mm == (0.8, 0.7, 0.8)


def test_a_2d_model_needs_a_2d_network():
    plans = plans_of(Variant(**FLAT))
    arguments = plans["configurations"]["base"]["architecture"]["arch_kwargs"]
    for key, value, named in (
        ("conv_op", "torch.nn.modules.conv.Conv3d", "Conv3d for a patch_size of 2 numbers.*two-dimensional"),
        ("norm_op", "torch.nn.modules.instancenorm.InstanceNorm3d", "norm InstanceNorm3d.*InstanceNorm2d"),
        ("kernel_sizes", [[3, 3, 3], [3, 3, 3]], "kernels"),
    ):
        before, arguments[key] = arguments[key], value
        with pytest.raises(InputError, match=named):
            imported(Variant(**FLAT), plans)
        arguments[key] = before


def test_inherited_values_are_overridden_by_the_heir():
    assert imported().batch_size == 3
    plans = plans_of(Variant())
    plans["configurations"]["middle"] = {"inherits_from": "base", "batch_size": 5, "spacing": [3, 3, 3]}
    plans["configurations"][CONFIGURATION] = {"inherits_from": "middle", "patch_size": [4, 4, 4]}
    plan = imported(plans=plans)
    assert (plan.batch_size, plan.spacing_mm, plan.patch_size) == (5, (3, 3, 3), (4, 4, 4))


@pytest.mark.parametrize(
    ("transpose", "axes"), [((0, 1, 2), (2, 1, 0)), ((2, 0, 1), (0, 2, 1)), ((1, 0, 2), (1, 2, 0))]
)
def test_axes_are_in_reverse_voxel_order(transpose, axes):
    assert imported(Variant(transpose=transpose)).axes == axes


@pytest.mark.parametrize(
    ("reader", "orientation"),
    [
        ("SimpleITKIO", "stored"),
        ("NibabelIO", "stored"),
        ("SimpleITKIOWithReorient", "ras"),
        ("NibabelIOWithReorient", "ras"),
    ],
)
def test_readers(reader, orientation):
    assert imported(Variant(reader=reader)).orientation == orientation


def test_decoder_blocks_are_reversed_to_finest_first():
    network = imported(VARIANTS["residual"]).network
    assert (network.encoder, network.encoder_blocks, network.decoder_blocks) == ("residual", (1, 2, 1), (1, 2))
    assert network.kernels == DEEP["kernels"]
    assert network.strides == DEEP["strides"]


def test_one_number_may_apply_to_all_stages():
    plans = plans_of(VARIANTS["windows"])
    arguments = plans["configurations"]["base"]["architecture"]["arch_kwargs"]
    arguments |= {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 1, "kernel_sizes": 3, "features_per_stage": 5}
    arguments["strides"] = [1, 2]
    network = imported(plans=plans).network
    assert (network.encoder_blocks, network.decoder_blocks, network.features) == ((2, 2), (1,), (5, 5))
    assert network.kernels == ((3, 3, 3), (3, 3, 3))
    assert network.strides == ((1, 1, 1), (2, 2, 2))


def test_plans_before_2_4_give_the_same_plan():
    variant = VARIANTS["old_plans"]
    values = {name: getattr(variant, name) for name in variant.__dataclass_fields__}
    assert imported(variant) == imported(Variant(**{**values, "old": False}))


@pytest.mark.parametrize(
    ("nonlin", "arguments", "activation"),
    [
        ("torch.nn.LeakyReLU", {"inplace": True, "negative_slope": 0.01}, "leaky_relu"),
        ("torch.nn.modules.activation.ReLU", None, "relu"),
        ("torch.nn.GELU", {}, "gelu"),
    ],
)
def test_activations(nonlin, arguments, activation):
    plans = changed("arguments", "nonlin", nonlin)
    plans["configurations"]["base"]["architecture"]["arch_kwargs"]["nonlin_kwargs"] = arguments
    assert imported(plans=plans).network.activation == activation


def test_norms():
    assert imported().network.norm == "instance"
    assert imported(VARIANTS["batch_norm"]).network.norm == "batch"
    assert imported(trainer="nnUNetTrainerBN").network.norm == "batch"


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("resample_data_or_seg_to_shape", {}, Resampling(order=3)),
        ("resample_data_or_seg_to_shape", {"force_separate_z": None}, Resampling(order=3, separate="anisotropic")),
        (
            "resample_data_or_seg_to_shape",
            {"order": 1, "order_z": 1, "force_separate_z": True, "separate_z_anisotropy_threshold": 2},
            Resampling(order=1, separate="always", separate_order=1, anisotropy=2),
        ),
        ("resample_torch_fornnunet", {}, Resampling(separate="anisotropic", nearest="torch")),
        ("resample_torch_fornnunet", {"force_separate_z": False, "num_threads": 8}, Resampling(nearest="torch")),
    ],
)
def test_resamplers_and_their_defaults(function, arguments, expected):
    plans = changed("configuration", "resampling_fn_data", function)
    plans["configurations"]["base"]["resampling_fn_data_kwargs"] = arguments
    assert imported(plans=plans).image_resampling == expected


def test_normalisations():
    variant = Variant(
        channels={"1": "second", "0": "first", "2": "third", "3": "fourth", "4": "fifth", "5": "sixth"},
        schemes=(
            "ZScoreNormalization", "ZScoreNormalization", "CTNormalization", "NoNormalization",
            "RescaleTo01Normalization", "RGBTo01Normalization",
        ),
    )  # fmt: skip
    plans = plans_of(variant)
    plans["configurations"]["base"]["use_mask_for_norm"] = [False, True, False, True, True, True]
    plans["foreground_intensity_properties_per_channel"]["2"] = {
        "mean": 1, "std": 2, "percentile_00_5": 3, "percentile_99_5": 4, "median": 5,
    }  # fmt: skip
    assert imported(variant, plans).channels == (
        Channel(name="first", normalisation="zscore"),
        Channel(name="second", normalisation="zscore_nonzero"),
        Channel(name="third", normalisation="ct", clip=(3, 4), mean=1, std=2),
        Channel(name="fourth", normalisation="none"),
        Channel(name="fifth", normalisation="rescale"),
        Channel(name="sixth", normalisation="rgb"),
    )


def test_channels_with_the_same_name_get_distinct_names():
    variant = Variant(channels={"0": "MRI", "1": "MRI"}, schemes=("NoNormalization",) * 2)
    assert [channel.name for channel in imported(variant).channels] == ["MRI_0", "MRI_1"]


def test_plain_labels_are_ordered_by_value_and_ignore_has_no_output():
    variant = Variant(labels={"b": 2, "background": 0, "a": [1], "ignore": 3})
    plan = imported(variant)
    assert plan.labels == (Label(name="a", value=1), Label(name="b", value=2))
    assert plan.network.classes == 3


def test_regions_keep_the_order_of_dataset_json():
    labels = {"background": 0, "core": [2, 3], "whole": [1, 2, 3], "rim": 1, "ignore": 4}
    plan = imported(Variant(labels=labels, regions_class_order=(7, 2, 9)))
    assert plan.regions
    assert plan.network.classes == 3
    assert plan.labels == (
        Label(name="core", value=7, parts=(2, 3)),
        Label(name="whole", value=2, parts=(1, 2, 3)),
        Label(name="rim", value=9, parts=(1,)),
    )


@pytest.mark.parametrize(
    ("where", "key", "value", "named"),
    [
        ("plans", "image_reader_writer", "Tiff3DIO", f"The reader is Tiff3DIO.*imports models of {NAMES}"),
        ("plans", "label_manager", "MyLabels", "label manager is MyLabels"),
        ("plans", "configurations", {"2d": {}}, "no configuration '3d_fullres' in plans.json, only 2d"),
        ("plans", "transpose_forward", [0, 1], "transpose_forward"),
        ("plans", "transpose_forward", [0, 0, 1], "axes"),
        ("configuration", "patch_size", [8, 8], "patch_size of 2 numbers and a spacing of 3"),
        ("configuration", "patch_size", [8], "3d_fullres, of 1 dimensions"),
        ("configuration", "patch_size", [8, 8, 9], "not a multiple"),
        ("configuration", "previous_stage", "3d_lowres", "second stage of a cascade"),
        ("configuration", "inherits_from", CONFIGURATION, "circle: 3d_fullres, base"),
        ("configuration", "preprocessor_name", "MyPreprocessor", "preprocessor is MyPreprocessor"),
        ("configuration", "normalization_schemes", ["MyNormalization"], "channel MRI is MyNormalization"),
        ("configuration", "normalization_schemes", [], "1 channels, but plans.json has 0"),
        ("configuration", "resampling_fn_data", "no_resampling_hack", "resampling function is no_resampling_hack"),
        ("configuration", "resampling_fn_data_kwargs", {"is_seg": True}, "is_seg"),
        ("configuration", "resampling_fn_data_kwargs", {"sharpen": True}, "unknown key 'sharpen'"),
        ("configuration", "resampling_fn_data_kwargs", {"order": 7}, "order"),
        ("configuration", "resampling_fn_probabilities_kwargs", {"order": 3}, "logits is order 3"),
        ("configuration", "spacing", "fine", "'spacing'"),
        ("architecture", "network_class_name", "my.PlainConvUNet", "is my.PlainConvUNet.*PlainConvUNet and Residual"),
        ("architecture", "network_class_name", "dynamic_network_architectures.architectures.primus.Primus", "Primus"),
        ("arguments", "conv_op", "torch.nn.modules.conv.Conv2d", "Conv2d.*three-dimensional"),
        ("arguments", "nonlin_first", True, "nonlin_first"),
        ("arguments", "squeeze_excitation", True, "squeeze_excitation"),
        ("arguments", "block", "dynamic_network_architectures.building_blocks.residual.BottleneckD", "BottleneckD"),
        ("arguments", "stem_channels", 3, "stem of 3 channels.*6 channels"),
        ("arguments", "norm_op", None, "norm none"),
        ("arguments", "norm_op", "torch.nn.modules.normalization.GroupNorm", "norm GroupNorm"),
        ("arguments", "norm_op_kwargs", {"eps": 1e-3, "affine": True}, "'eps': 0.001"),
        ("arguments", "norm_op_kwargs", {"eps": 1e-5}, "with eps 1e-05 and affine"),
        ("arguments", "nonlin", "torch.nn.SiLU", "activation SiLU"),
        ("arguments", "nonlin_kwargs", {"negative_slope": 0.2}, "'negative_slope': 0.2"),
        ("arguments", "n_stages", 3, "3 stages, but 2 features_per_stage"),
        ("arguments", "kernel_sizes", [[3, 3], [3, 3]], "kernels"),
        ("arguments", "kernel_sizes", [2, 2], "odd"),
        ("arguments", "strides", [2, 2], "start with"),
        ("arguments", "n_conv_per_stage", None, "encoder_blocks"),
    ],
)
def test_unsupported_features_are_rejected_by_name(where, key, value, named):
    with pytest.raises(InputError, match=named) as rejection:
        imported(plans=changed(where, key, value))
    assert "\n" not in str(rejection.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 3}}, "1 a, 3 b, which cannot be imported.*numbered 1, 2, 3"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "1 a, 1 b"),
        ({"labels": {"a": 1, "b": 2}}, "no label of value 0"),
        ({"labels": {"background": 0, "a": [1, 2]}}, "1 regions, but regions_class_order has 0"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 1}, "regions_class_order": [1, 1]}, "share a name or a value"),
        ({"labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [0]}, "labels.0.value"),
        ({"labels": {"background": 0, "a": "one"}}, "labels.a"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "2 channels, but plans.json has 1"),
    ],
)
def test_an_unsupported_dataset_json_is_rejected_by_name(changes, named):
    with pytest.raises(InputError, match=named) as rejection:
        imported(dataset={**dataset_of(Variant()), **changes})
    assert "\n" not in str(rejection.value)


def test_ct_needs_the_intensities_of_its_channel():
    plans = plans_of(VARIANTS["ct"])
    del plans["foreground_intensity_properties_per_channel"]["0"]["std"]
    with pytest.raises(InputError, match=r"intensities of channel 0 in plans.json.*'std' is missing"):
        imported(VARIANTS["ct"], plans)
    plans["foreground_intensity_properties_per_channel"] = {}
    with pytest.raises(InputError, match=r"intensities of channel 0"):
        imported(VARIANTS["ct"], plans)


def test_an_unknown_old_network_is_rejected():
    plans = copy.deepcopy(plans_of(VARIANTS["old_plans"]))
    plans["configurations"]["base"]["UNet_class_name"] = "MyUNet"
    with pytest.raises(InputError, match="MyUNet"):
        imported(VARIANTS["old_plans"], plans)
    del plans["configurations"]["base"]["UNet_class_name"]
    with pytest.raises(InputError, match="'UNet_class_name' is missing"):
        imported(VARIANTS["old_plans"], plans)
