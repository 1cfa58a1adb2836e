"""Configurations: overrides, and complaints by name."""

import pytest

from volseg.config import Config, NetworkConfig, TrainingConfig, load_config
from volseg.errors import ConfigError


def test_defaults_and_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  learning_rate: 0.5\n  average: 0.9\n")
    config = load_config(path, ["training.learning_rate=0.25", "plan.patch_size=[8, 16, 24]"])
    assert config.training == TrainingConfig(learning_rate=0.25, average=0.9)
    assert config.plan.patch_size == (8, 16, 24)
    assert load_config() == Config()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rat=1", "unknown key 'training.learning_rat'"),
        ("training.learning_rate=fast", "training.learning_rate"),
        ("training.learning_rate=-1", "greater than 0"),
        ("training", "has no value"),
        ("plan.block=conv4d", "plan.block"),
    ],
)
def test_wrong_overrides_are_named(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(None, [override])


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="Could not read"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")


def test_stages_have_to_agree():
    with pytest.raises(ValueError, match="kernels has 4 entries, but 2 features need 2"):
        NetworkConfig(features=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1,), strides=((1, 1, 1), (2, 2, 2)))


def test_divisor_is_the_product_of_the_strides():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    config = NetworkConfig(
        features=(4, 8, 16), encoder_blocks=(1,) * 3, decoder_blocks=(1,) * 2, kernels=((3, 3, 3),) * 3, strides=strides
    )
    assert config.divisor == (2, 4, 4)
