"""Networks from a few options, losses that know their target, configuration keys that were renamed."""

import logging

import pytest
import torch
from torch.nn import functional

from volseg.config import NetworkConfig, TrainingConfig, load_config
from volseg.errors import ConfigError, UsageError
from volseg.losses import SegmentationLoss, cross_entropy, dice_loss, soft_dice
from volseg.networks import Classifier, UNet


def test_a_network_from_the_defaults():
    network = UNet(in_channels=1, classes=3)
    assert network.config == NetworkConfig(in_channels=1, classes=3)
    assert network.config.features == (32, 64, 128, 256)


@pytest.mark.parametrize("kind", [UNet, Classifier])
def test_a_list_of_features_fills_the_other_lists(kind):
    network = kind(classes=2, features=[4, 8, 16])
    assert network.eval()(torch.zeros(1, 1, 16, 16, 16)).shape[:2] == (1, 2)
    config = NetworkConfig(features=[4, 8, 16])
    assert config.encoder_blocks == (2, 2, 2)
    assert config.decoder_blocks == (2, 2)
    assert config.kernels == ((3, 3, 3),) * 3
    assert config.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    assert NetworkConfig(features=[4, 8], encoder_blocks=[1, 1]).encoder_blocks == (1, 1)


@pytest.mark.parametrize("kind", [UNet, Classifier])
def test_wrong_options_are_named(kind):
    with pytest.raises(ConfigError, match="unknown key 'channels'"):
        kind(channels=1)
    with pytest.raises(UsageError, match="Give a NetworkConfig or its fields, found both: classes"):
        kind(NetworkConfig(), classes=3)


def test_outputs_are_in_the_order_of_the_documentation():
    network = UNet(features=[4, 8, 16])
    outputs = network(torch.zeros(1, 1, 16, 16, 16))
    assert [output.shape[-1] for output in outputs] == [16, 8]
    assert [head.in_channels for head in network.heads] == [8, 4]


LOGITS = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("loss", ["dice_ce", "dice", "ce"])
def test_a_target_of_monais_shape_is_the_one_without_its_channel(loss):
    module = SegmentationLoss(loss)
    assert torch.equal(module(LOGITS, TARGET[:, None]), module(LOGITS, TARGET))
    deep = [LOGITS, LOGITS[..., ::2, ::2, ::2]]
    assert torch.equal(module(deep, TARGET[:, None]), module(deep, TARGET))


@pytest.mark.parametrize("function", [soft_dice, dice_loss, cross_entropy])
@pytest.mark.parametrize(
    ("logits", "target", "regions", "message"),
    [
        (LOGITS[:, :1], TARGET, False, "one class, whose softmax is always 1"),
        (LOGITS[:, :1], TARGET[:, None], False, "one class, whose softmax is always 1"),
        (LOGITS, functional.one_hot(TARGET, 3).movedim(-1, 1), False, r"may be one-hot: pass target.argmax\(1\)"),
        (LOGITS, TARGET[:, :2], False, "has shape .2, 2, 4, 4., expected class indices .2, 4, 4, 4."),
        (LOGITS, TARGET, True, "With regions the target has the shape of the logits"),
    ],
)
def test_targets_that_do_not_fit_are_rejected_by_name(function, logits, target, regions, message):
    with pytest.raises(UsageError, match=message):
        function(logits, target, regions)


def test_one_region_is_learned_by_a_sigmoid():
    target = (TARGET == 1).long()[:, None]
    expected = functional.binary_cross_entropy_with_logits(LOGITS[:, :1], target.float())
    torch.testing.assert_close(cross_entropy(LOGITS[:, :1], target, regions=True), expected)


def test_a_function_is_a_loss_and_sees_each_resolution():
    seen = []

    def mine(logits, target):
        seen.append((tuple(logits.shape), tuple(target.shape)))
        return (logits.sum() * 0) + len(seen)

    loss = SegmentationLoss(mine)([LOGITS, LOGITS[..., ::2, ::2, ::2], LOGITS[..., :1, :1, :1]], TARGET)
    assert seen == [((2, 3, 4, 4, 4), (2, 4, 4, 4)), ((2, 3, 2, 2, 2), (2, 2, 2, 2))]
    assert loss.item() == pytest.approx((1 + 0.5 * 2) / 1.5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("training.average", "training.ema_decay"),
        ("training.foreground", "training.oversample_foreground"),
        ("training.growth", "training.progressive_patch_size"),
        ("augmentation.passes", "augmentation.warmup_epochs"),
    ],
)
def test_an_old_key_is_its_new_one_with_a_warning(old, new, caplog):
    with caplog.at_level(logging.WARNING):
        assert load_config(None, [f"{old}=0.5"]) == load_config(None, [f"{new}=0.5"])
    assert f"'{old.split('.')[1]}' is now '{new.split('.')[1]}'" in caplog.text
    with pytest.raises(ConfigError, match=f"is the old name of '{new.split('.')[1]}'"):
        load_config(None, [f"{old}=0.5", f"{new}=0.5"])


def test_what_is_stored_has_the_new_names():
    assert {"average", "foreground", "growth"}.isdisjoint(TrainingConfig().model_dump())


def test_a_loss_function_has_to_return_one_number():
    with pytest.raises(UsageError, match=r"returned shape \(2, 3, 4, 4, 4\), expected a tensor with one number"):
        SegmentationLoss(lambda logits, target: logits)(LOGITS, TARGET)
    with pytest.raises(UsageError, match="returned a float, expected"):
        SegmentationLoss(lambda logits, target: 1.0)(LOGITS, TARGET)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_plain_pytorch_loss_takes_the_indices_of_every_resolution(dtype):
    loss = SegmentationLoss(lambda logits, target: functional.cross_entropy(logits, target, ignore_index=-1))
    deep = [LOGITS, LOGITS[..., ::2, ::2, ::2], LOGITS[..., :1, :1, :1]]
    expected = SegmentationLoss("ce")(deep, TARGET)
    torch.testing.assert_close(loss(deep, TARGET.to(dtype)), expected)


def test_a_unet_of_one_stage_is_rejected():
    with pytest.raises(UsageError, match="needs two stages or more"):
        UNet(features=[8])
    assert Classifier(features=[8]).eval()(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2)
