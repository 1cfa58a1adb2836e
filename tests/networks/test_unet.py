"""The U-Net and the classifier: sizes, parameter counts, gradients, and inputs that they reject."""

import math

import pytest
import torch
from torch import nn

from volseg.config import NetworkConfig
from volseg.errors import UsageError
from volseg.networks import Classifier, UNet

SMALL = {"features": (4, 8, 12, 16), "classes": 3}
ANISOTROPIC = {
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
    "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)),
}
VARIANTS = [
    {},
    {"encoder": "residual"},
    {"block": "conv2plus1d"},
    {"block": "conv2plus1d", "mid": "matched", "encoder": "residual"},
    {"block": "conv2plus1d", "mid": 6},
    {"block": ("conv2plus1d", "conv3d", "conv2plus1d", "conv3d")},
    ANISOTROPIC,
    {"block": "conv2plus1d", **ANISOTROPIC},
    {"norm": "batch", "activation": "gelu"},
    {"norm": "group", "activation": "relu"},
    {"norm": "none"},
]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def plain_conv_unet(config: NetworkConfig, bias: bool) -> int:
    """Parameters of nnU-Net's PlainConvUNet by formula; `bias`: as in its plans, in front of the norms too."""
    features, kernels = config.features, [math.prod(kernel) for kernel in config.kernels]

    def block(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel + 2 * outputs + bias * outputs

    total, inputs = 0, config.in_channels
    for width, kernel, blocks in zip(features, kernels, config.encoder_blocks, strict=True):
        total += block(inputs, width, kernel) + (blocks - 1) * block(width, width, kernel)
        inputs = width
    for s, blocks in enumerate(config.decoder_blocks):
        upsampling = features[s + 1] * features[s] * math.prod(config.strides[s + 1]) + features[s]
        convolutions = block(2 * features[s], features[s], kernels[s])
        total += upsampling + convolutions + (blocks - 1) * block(features[s], features[s], kernels[s])
        total += config.classes * (features[s] + 1)
    return total


@pytest.mark.parametrize("choices", [{}, ANISOTROPIC, {"encoder_blocks": (1, 2, 3, 4), "decoder_blocks": (3, 2, 1)}])
def test_parameters_are_those_of_plain_conv_unet(choices):
    config = NetworkConfig(classes=3, **choices)
    assert parameters(UNet(config)) == plain_conv_unet(config, bias=False)


def test_each_stage_has_its_own_block_type():
    light, plain, mixed = (
        UNet(NetworkConfig(**SMALL, block=block))
        for block in ("conv2plus1d", "conv3d", ("conv2plus1d", "conv3d", "conv3d", "conv2plus1d"))
    )
    for network, other in ((mixed.encoder, light.encoder), (mixed.decoder[::-1], light.decoder[::-1])):
        plain_part = plain.encoder if network is mixed.encoder else plain.decoder[::-1]
        for stage, (found, split, whole) in enumerate(zip(network, other, plain_part, strict=True)):
            assert parameters(found) == parameters(split if stage in (0, 3) else whole)
            assert parameters(split) != parameters(whole)
    with pytest.raises(ValueError, match=r"network\.block has 2 entries, but 4 features need 4"):
        NetworkConfig(**SMALL, block=("conv3d", "conv2plus1d"))


def test_parameters_of_the_default_as_a_number():
    """Computed by hand: encoder 28640 + 166144 + 664064 + 2655232, decoder 99488 + 397632 + 1589888, heads."""
    assert parameters(UNet(NetworkConfig(classes=3))) == 5_601_088 + 3 * (32 + 64 + 128 + 3)


def test_parameters_are_those_of_residual_encoder_unet():
    config = NetworkConfig(encoder="residual", features=(8, 16), encoder_blocks=(1, 3), decoder_blocks=(1,),
                           kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))  # fmt: skip
    stem = 27 * 8 + 2 * 8
    stage_0 = 2 * (27 * 8 * 8 + 2 * 8)
    widening = (27 * 8 * 16 + 2 * 16) + (27 * 16 * 16 + 2 * 16) + (8 * 16 + 2 * 16)
    stage_1 = widening + 2 * 2 * (27 * 16 * 16 + 2 * 16)
    decoder = (8 * 16 * 8 + 8) + (27 * 16 * 8 + 2 * 8) + 2 * (8 + 1)
    assert parameters(UNet(config)) == stem + stage_0 + stage_1 + decoder


@pytest.mark.parametrize("choices", VARIANTS)
def test_every_variant_has_outputs_of_each_stage_and_gradients_everywhere(choices):
    torch.manual_seed(0)
    config = NetworkConfig(**SMALL, **choices)
    network = UNet(config)
    outputs = network(torch.randn(2, 1, 8, 16, 24))
    sizes, size = [], (8, 16, 24)
    for stride in config.strides[:-1]:
        size = tuple(a // b for a, b in zip(size, stride, strict=True))
        sizes.append((2, 3, *size))
    assert [tuple(output.shape) for output in outputs] == sizes
    sum(output.square().mean() for output in outputs).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("choices", [{}, {"encoder": "residual"}, {"block": "conv2plus1d"}])
def test_evaluation_equals_the_finest_output_of_training(choices):
    network = UNet(NetworkConfig(**SMALL, **choices))
    x = torch.randn(1, 1, 8, 16, 16)
    finest = network(x)[0]
    with torch.inference_mode():
        # Without gradients other kernels run, which round in a different order.
        torch.testing.assert_close(network.eval()(x), finest, rtol=1e-4, atol=1e-4)


def test_without_deep_supervision_there_is_one_head():
    network = UNet(NetworkConfig(**SMALL, deep_supervision=False))
    assert len(network.heads) == 1
    assert network(torch.randn(1, 1, 8, 16, 16)).shape == (1, 3, 8, 16, 16)


def test_a_sample_does_not_depend_on_its_batch():
    network = UNet(NetworkConfig(**SMALL)).eval()
    x = torch.randn(3, 1, 8, 16, 16)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-4)


def test_skip_comes_after_the_upsampled_features():
    """The order of nnU-Net, on which its weights depend: zero weights in the second half remove the skip."""
    network = UNet(NetworkConfig(features=(4, 8), encoder_blocks=(1, 1), decoder_blocks=(1,), norm="none",
                                 kernels=((1, 1, 1),) * 2, strides=((1, 1, 1), (2, 2, 2))))  # fmt: skip
    stage = network.decoder[0]
    with torch.no_grad():
        stage.blocks[0].conv.weight[:, 4:] = 0
    below = torch.randn(1, 8, 2, 2, 2)
    skips = torch.randn(2, 1, 4, 4, 4, 4)
    assert torch.equal(stage(below, [skips[0]]), stage(below, [skips[1]]))


def test_initialisation_is_he_normal():
    torch.manual_seed(0)
    network = UNet(NetworkConfig(norm="none"))
    conv = network.encoder[3][1].conv
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / (27 * 256)), rel=0.01)
    assert conv.bias.abs().max() == 0
    assert network.heads[0].bias.abs().max() == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 20, 16), r"8 x 20 x 16, .* multiple of 8 x 8 x 8\. Pad it to 8 x 24 x 16"),
        ((1, 2, 8, 16, 16), "has 2 channels, but the network was built for 1"),
        ((1, 8, 16, 16), "has 4 axes, expected 5"),
        ((1, 1, 8, 8, 8), "more than one voxel per channel"),
    ],
)
def test_invalid_inputs_are_rejected(shape, message):
    with pytest.raises(UsageError, match=message):
        UNet(NetworkConfig(**SMALL))(torch.zeros(shape))


@pytest.mark.parametrize("choices", [{}, {"encoder": "residual"}, {"block": "conv2plus1d"}])
@pytest.mark.parametrize("size", [(8, 64, 64), (9, 30, 23)])
def test_classifier_accepts_clips_of_any_size(choices, size):
    torch.manual_seed(0)
    network = Classifier(NetworkConfig(**{**SMALL, "in_channels": 3, "classes": 5}, **choices))
    logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_classifier_averages_over_all_voxels():
    """With 1x1x1 kernels and no strides the order of the voxels cannot matter."""
    network = Classifier(NetworkConfig(features=(4, 8), encoder_blocks=(1, 1), decoder_blocks=(1,),
                                       kernels=((1, 1, 1),) * 2, strides=((1, 1, 1),) * 2))  # fmt: skip
    x = torch.randn(1, 1, 4, 5, 6)
    torch.testing.assert_close(network(x), network(x.flip(2, 3, 4)), rtol=1e-4, atol=1e-4)


def test_encoder_weights_fit_from_network_to_classifier():
    config = NetworkConfig(**SMALL)
    classifier = Classifier(config)
    weights = UNet(config).encoder.state_dict()
    classifier.encoder.load_state_dict(weights)
    assert all(torch.equal(value, weights[name]) for name, value in classifier.encoder.state_dict().items())
