"""The profile against torch's FLOP counter and numbers computed by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from volseg.config import NetworkConfig
from volseg.errors import UsageError
from volseg.networks import UNet, compare_blocks, profile_network

TWO_STAGES = {
    "features": (4, 8),
    "encoder_blocks": (2, 1),
    "decoder_blocks": (1,),
    "kernels": ((3, 3, 3),) * 2,
    "strides": ((1, 1, 1), (2, 2, 2)),
}


@pytest.mark.parametrize(
    "choices", [{}, {"encoder": "residual"}, {"block": "conv2plus1d", "mid": "matched"}, {"norm": "batch"}]
)
def test_totals_are_those_of_the_real_network(choices):
    config = NetworkConfig(features=(4, 8, 12, 16), **choices)
    network = UNet(config)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 1, 8, 16, 16))
    total = profile_network(config, (8, 16, 16)).total
    assert total.flops == counter.get_total_flops()
    assert total.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_stages_by_hand():
    fine, coarse = 16 * 16 * 24, 8 * 8 * 12
    profile = profile_network(NetworkConfig(**TWO_STAGES, classes=3), (16, 16, 24))
    stages = {stage.name: stage for stage in profile.stages}
    assert list(stages) == ["encoder 0", "encoder 1", "decoder 0", "heads"]

    assert stages["encoder 0"].parameters == 27 * 4 + 8 + 27 * 16 + 8
    assert stages["encoder 1"].parameters == 27 * 32 + 16
    assert stages["decoder 0"].parameters == 8 * 32 + 4 + 27 * 32 + 8
    assert stages["heads"].parameters == 3 * 5

    assert stages["encoder 0"].flops == 2 * fine * 27 * (4 + 16)
    assert stages["encoder 1"].flops == 2 * coarse * 27 * 32
    assert stages["decoder 0"].flops == 2 * coarse * 8 * 32 + 2 * fine * 27 * 32
    assert stages["heads"].flops == 2 * fine * 12

    # A conv block keeps the convolution's and the activation's output, and some numbers per channel for the norm.
    activations = {"encoder 0": fine * (1 + 4 * 4), "encoder 1": coarse * 2 * 8, "decoder 0": fine * (8 + 2 * 4)}
    for name, values in activations.items():
        assert stages[name].activation_bytes == pytest.approx(4 * values, rel=0.005)
    assert stages["heads"].activation_bytes == 0


def test_decoder_stages_have_the_number_of_their_resolution():
    names = [stage.name for stage in profile_network(NetworkConfig(), (16, 16, 16)).stages]
    assert names[4:] == ["decoder 2", "decoder 1", "decoder 0", "heads"]


def test_blocks_compared():
    config = NetworkConfig(features=(32, 32, 32, 32))
    profiles = compare_blocks(config, (16, 16, 16))
    assert profiles["conv3d"] == profile_network(config, (16, 16, 16))
    stage = {name: profile.stages[3] for name, profile in profiles.items()}
    # Two convolutions of 27 * 32 * 32 weights and their norms; "light" has 12 * 32 * 32 and a norm more in each.
    assert stage["conv3d"].parameters == 2 * (27 * 1024 + 64)
    assert stage["light"].parameters == 2 * (12 * 1024 + 128)
    assert stage["matched"].parameters == 2 * (27 * 1024 + 64 + 2 * 72)
    total = {name: profile.total for name, profile in profiles.items()}
    assert total["light"].flops < 0.5 * total["conv3d"].flops
    assert total["conv3d"].activation_bytes < total["light"].activation_bytes < total["matched"].activation_bytes


def test_profiling_a_huge_patch_takes_no_memory():
    assert profile_network(NetworkConfig(), (1024, 1024, 1024)).total.activation_bytes > 2**40


def test_a_patch_size_that_does_not_fit_is_rejected():
    with pytest.raises(UsageError, match="Pad it to 16 x 16 x 16"):
        profile_network(NetworkConfig(), (15, 16, 16))
