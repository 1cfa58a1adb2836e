"""Weights of nnU-Net get the right names, and none is left over."""

import numpy as np
import pytest
import torch

from tests.interop.folders import CONFIGURATION, dataset_of, network_weights, plans_of
from tests.interop.variants import VARIANTS
from volseg.errors import InputError
from volseg.interop.nnunet_plans import plan_of
from volseg.interop.nnunet_weights import import_weights
from volseg.networks import UNet


def network_and_weights(name):
    variant = VARIANTS[name]
    config = plan_of(plans_of(variant), dataset_of(variant), CONFIGURATION).network
    return config, network_weights(variant, np.random.default_rng(0))


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_fit_the_network_of_their_plans(name):
    config, stored = network_and_weights(name)
    weights = import_weights(stored, config, "here", VARIANTS[name].dimensions)
    assert not UNet(config).load_state_dict(weights).missing_keys
    values = {one.numpy().tobytes() for one in stored.values()}
    for ours, tensor in weights.items():
        made_here = ours.endswith("running_mean") or (ours.endswith("up.bias") and not tensor.any())
        assert made_here or tensor.numpy().tobytes() in values, ours


def test_weights_of_other_dimensions_are_refused():
    config, stored = network_and_weights("slices")
    with pytest.raises(InputError, match=r"has shape \(6, 1, 3, 3\), but .* give \(6, 1, 1, 3, 3\)"):
        import_weights(stored, config, "here")
    deep = {name: one.unsqueeze(2) if one.ndim == 4 else one for name, one in stored.items()}
    with pytest.raises(InputError, match=r"has shape \(6, 1, 1, 3, 3\), but .* give \(6, 1, 3, 3\)"):
        import_weights(deep, config, "here", 2)


def test_names_in_a_plain_network():
    config, stored = network_and_weights("windows")
    weights = import_weights(stored, config, "here")
    for ours, theirs in {
        "encoder.0.1.conv.weight": "encoder.stages.0.0.convs.1.conv.weight",
        "encoder.1.0.norm.bias": "encoder.stages.1.0.convs.0.norm.bias",
        "decoder.0.up.weight": "decoder.transpconvs.0.weight",
        "decoder.0.up.bias": "decoder.transpconvs.0.bias",
        "decoder.0.blocks.1.conv.weight": "decoder.stages.0.convs.1.conv.weight",
        "heads.0.bias": "decoder.seg_layers.0.bias",
    }.items():
        assert torch.equal(weights[ours], stored[theirs]), ours


def test_names_in_a_residual_network():
    config, stored = network_and_weights("residual")
    weights = import_weights(stored, config, "here")
    for ours, theirs in {
        "encoder.0.0.conv.weight": "encoder.stem.convs.0.conv.weight",
        "encoder.0.1.first.conv.weight": "encoder.stages.0.blocks.0.conv1.conv.weight",
        "encoder.1.1.second.weight": "encoder.stages.1.blocks.1.conv2.conv.weight",
        "encoder.1.1.norm.weight": "encoder.stages.1.blocks.1.conv2.norm.weight",
        "encoder.1.0.skip.1.weight": "encoder.stages.1.blocks.0.skip.1.conv.weight",
        "encoder.1.0.skip.2.bias": "encoder.stages.1.blocks.0.skip.1.norm.bias",
        "decoder.1.blocks.0.conv.weight": "decoder.stages.1.convs.0.conv.weight",
        "heads.1.weight": "decoder.seg_layers.1.weight",
    }.items():
        assert torch.equal(weights[ours], stored[theirs]), ours


def test_the_bias_before_a_batch_norm_shifts_its_mean():
    config, stored = network_and_weights("batch_norm")
    weights = import_weights(stored, config, "here")
    theirs = "encoder.stages.1.0.convs.0"
    expected = stored[f"{theirs}.norm.running_mean"] - stored[f"{theirs}.conv.bias"]
    assert torch.equal(weights["encoder.1.0.norm.running_mean"], expected)
    assert weights["encoder.1.0.norm.num_batches_tracked"] == 11


def test_transposed_convolutions_without_bias_get_zeros():
    config, stored = network_and_weights("thick")
    assert "decoder.transpconvs.0.bias" not in stored
    assert import_weights(stored, config, "here")["decoder.0.up.bias"].count_nonzero() == 0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_parallel_training_and_compilation_are_removed(prefix):
    config, stored = network_and_weights("windows")
    wrapped = import_weights({f"{prefix}{name}": one for name, one in stored.items()}, config, "here")
    plain = import_weights(stored, config, "here")
    assert all(torch.equal(wrapped[name], one) for name, one in plain.items())


def test_copies_are_not_needed_but_have_to_agree():
    config, stored = network_and_weights("residual")
    bare = {name: one for name, one in stored.items() if "all_modules" not in name and "decoder.encoder" not in name}
    expected = import_weights(stored, config, "here")
    found = import_weights(bare, config, "here")
    assert all(torch.equal(found[name], one) for name, one in expected.items())
    stored["decoder.encoder.stem.convs.0.conv.weight"] = bare["encoder.stem.convs.0.conv.weight"] + 1
    with pytest.raises(InputError, match=r"two different tensors for encoder.stem.convs.0.conv.weight"):
        import_weights(stored, config, "here")


def test_weights_are_copies():
    config, stored = network_and_weights("windows")
    weights = import_weights(stored, config, "here")
    weights["heads.0.weight"].zero_()
    assert stored["decoder.seg_layers.0.weight"].count_nonzero() > 0


def test_half_precision_weights_become_float32():
    config, stored = network_and_weights("windows")
    weights = import_weights({name: one.half() for name, one in stored.items()}, config, "here")
    assert {one.dtype for one in weights.values()} == {torch.float32}


def test_a_missing_tensor_is_named():
    config, stored = network_and_weights("windows")
    del stored["decoder.seg_layers.0.bias"]
    with pytest.raises(InputError, match=r"here lacks the tensor decoder.seg_layers.0.bias"):
        import_weights(stored, config, "here")


def test_a_tensor_that_is_left_over_is_named():
    config, stored = network_and_weights("windows")
    with pytest.raises(InputError, match=r"here contains the tensor encoder.extra.weight"):
        import_weights({**stored, "encoder.extra.weight": torch.zeros(1)}, config, "here")
    _, batch = network_and_weights("batch_norm")
    with pytest.raises(InputError, match=r"contains the tensor .*(running_mean|num_batches_tracked)"):
        import_weights(batch, config, "here")


def test_a_wrong_shape_is_named():
    config, stored = network_and_weights("windows")
    wider = config.model_copy(update={"classes": 7})
    with pytest.raises(InputError, match=r"decoder.seg_layers.0.weight in here has shape \(3, 6, 1, 1, 1\).*\(7, 6,"):
        import_weights(stored, wider, "here")
