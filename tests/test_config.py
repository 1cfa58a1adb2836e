"""Configurations: overrides, old keys, and errors that name the key."""

import pytest
from pydantic import ValidationError

from volseg.config import (
    ComponentRule,
    Config,
    NetworkConfig,
    Resampling,
    TrainingConfig,
    load_config,
    read_yaml,
    rules_in_words,
)
from volseg.config.plan import CodedName
from volseg.errors import ConfigError


def test_defaults_and_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  learning_rate: 0.5\n  foreground: 0.5\n")
    config = load_config(path, ["training.learning_rate=0.25", "plan.patch_size=[8, 16, 24]"])
    assert config.training == TrainingConfig(learning_rate=0.25, oversample_foreground=0.5)
    assert config.plan.patch_size == (8, 16, 24)
    assert load_config() == Config()


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("training.average", "training.ema_decay", 0.9),
        ("training.foreground", "training.oversample_foreground", 0.5),
        ("training.growth", "training.progressive_patch_size", 0.25),
        ("augmentation.passes", "augmentation.warmup_epochs", 7.0),
    ],
)
def test_an_old_key_is_read_with_a_warning_and_not_next_to_the_new_one(old, new, value, caplog):
    group, key = new.split(".")
    config = load_config(None, [f"{old}={value}"])
    assert getattr(getattr(config, group), key) == value
    old_key = old.split(".")[1]
    assert caplog.messages == [
        f"The configuration key '{old_key}' is now '{key}'; the next release drops the old name."
    ]
    with pytest.raises(ConfigError, match=f"'{old_key}' is the old name of '{key}'; give only '{key}'"):
        load_config(None, [f"{old}={value}", f"{new}={value}"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rat=1", r"unknown key 'training.learning_rat' \(a similar key is 'learning_rate'\)\."),
        ("trainig={}", r"unknown key 'trainig' \(a similar key is 'training'\)\."),
        ("training.zzz=1", r"unknown key 'training.zzz'\."),
        ("training.learning_rate=fast", "training.learning_rate"),
        ("training.learning_rate=-1", "greater than 0"),
        ("training", "has no value"),
        ("plan.block=conv4d", "plan.block"),
    ],
)
def test_wrong_overrides_are_named(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(None, [override])


FINITE = "Input should be a finite number"
BOOLEAN = "expected no boolean (YAML reads yes, no, on and off as one)"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("training.learning_rate=.inf", f"{FINITE}, found inf"),
        ("training.weight_decay=.inf", f"{FINITE}, found inf"),
        ("training.gradient_clip=.nan", f"{FINITE}, found nan"),
        ("training.weight_decay=1e999", f"{FINITE}, found '1e999'"),
        ("augmentation.warmup_epochs=.inf", f"{FINITE}, found inf"),
        ("augmentation.scaling_range=[1.4, 0.7]", "expected the lower value first, [0.7, 1.4], found [1.4, 0.7]"),
        ("augmentation.blur_sigma=[2, 1]", "expected the lower value first, [1, 2], found [2, 1]"),
        ("augmentation.brightness_range=[2, 1]", "expected the lower value first, [1, 2], found [2, 1]"),
        ("augmentation.contrast_range=[2, 1]", "expected the lower value first, [1, 2], found [2, 1]"),
        ("augmentation.gamma_range=[2, 1]", "expected the lower value first, [1, 2], found [2, 1]"),
        ("augmentation.low_resolution_range=[1, 0.5]", "expected the lower value first, [0.5, 1], found [1, 0.5]"),
        ("augmentation.noise=yes", f"{BOOLEAN}, found True"),
        ("augmentation.scaling_range=[0.5, on]", f"{BOOLEAN}, found [0.5, True]"),
        ("training.validations=off", f"{BOOLEAN}, found False"),
        ("plan.batch_size=yes", f"{BOOLEAN}, found True"),
        ("plan.mirror_axes=[0, 0, 2]", "expected each axis only once, found [0, 0, 2]"),
    ],
)
def test_invalid_values_are_rejected(override, complaint):
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert str(error.value) == f"the configuration is invalid: '{override.split('=')[0]}': {complaint}."


def test_low_resolution_only_zooms_down():
    with pytest.raises(
        ConfigError, match=r"low_resolution_range\.1': Input should be less than or equal to 1, found 2"
    ):
        load_config(None, ["augmentation.low_resolution_range=[0.5, 2]"])


def test_unusual_but_valid_values_are_accepted():
    config = load_config(
        None,
        [
            "plan.deep_supervision=no",
            "plan.mirror_axes=[2, 0]",
            "training.learning_rate=1e-3",
            "augmentation.scaling_range=[1, 1]",
        ],
    )
    assert (config.plan.deep_supervision, config.plan.mirror_axes) == (False, (2, 0))
    assert (config.training.learning_rate, config.augmentation.scaling_range) == (1e-3, (1.0, 1.0))


def test_invalid_files_are_rejected(tmp_path):
    with pytest.raises(ConfigError, match="Could not read"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "tab.yaml").write_text("training:\n\tvalidations: 2\n")
    with pytest.raises(ConfigError, match=r"tab\.yaml is not valid YAML: line 2, column 1: found character '\\t'"):
        load_config(tmp_path / "tab.yaml")


@pytest.mark.parametrize("second", ["training: {average: 0.9}", "'training':\n  average: 0.9"])
def test_a_duplicate_key_is_rejected(tmp_path, second):
    path = tmp_path / "twice.yaml"
    path.write_text(f"training: {{learning_rate: 0.01}}\nplan: {{mid: light}}\n{second}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"{path} is not valid YAML: the key 'training' is on line 1 and again on line 3."
    with pytest.raises(ConfigError, match=r"--set 'training=.*' is not a YAML value"):
        load_config(None, ["training={average: 0.9, average: 0.8}"])


def test_merged_keys_may_be_overridden(tmp_path):
    (tmp_path / "merged.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_yaml(tmp_path / "merged.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_a_group_without_values_is_empty(tmp_path):
    (tmp_path / "empty.yaml").write_text("plan:\ntraining:\n")
    assert load_config(tmp_path / "empty.yaml") == Config()
    config = load_config(tmp_path / "empty.yaml", ["training.validations=0"])
    assert config == Config(training=TrainingConfig(validations=0))


def test_stages_have_to_agree():
    with pytest.raises(ValueError, match="kernels has 4 entries, but 2 features need 2"):
        NetworkConfig(features=(8, 16), kernels=((3, 3, 3),) * 4)


def test_divisor_is_the_product_of_the_strides():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    config = NetworkConfig(
        features=(4, 8, 16), encoder_blocks=(1,) * 3, decoder_blocks=(1,) * 2, kernels=((3, 3, 3),) * 3, strides=strides
    )
    assert config.divisor == (2, 4, 4)


def test_a_rule_of_the_nearest_neighbour_is_stored_only_where_it_is_not_the_usual_one():
    """So plans, and the keys of cases cached for them, are those of versions without the rule."""
    assert "nearest" not in Resampling(separate_order=0).model_dump()
    other = Resampling(nearest="torch")
    assert Resampling(**other.model_dump(mode="json")) == other


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "components "),
        ({"smallest_ml": 0.25}, "components of at least 0.25 mL"),
        ({"largest_only": True}, "only the largest component"),
        ({"largest_only": True, "smallest_ml": 2.0}, "only the largest component, if of at least 2 mL"),
        ({"largest_only": True, "dice_before": 0.5}, "only the largest component"),
        ({"largest_only": True, "dice_after": 0.5}, "only the largest component"),
        (
            {"smallest_ml": 1.0, "dice_before": 0.5, "dice_after": 0.75},
            "components of at least 1 mL (Dice 0.5000 before, 0.7500 after)",
        ),
    ],
)
def test_a_rule_in_words(values, words):
    assert str(ComponentRule(**values)) == words
    assert rules_in_words({"a": ComponentRule(**values)}) == f"a: {words}"


@pytest.mark.parametrize(
    ("key", "accepted", "rejected"),
    [
        ("training.learning_rate", "1e-9", "0"),
        ("training.weight_decay", "0", "-1e-9"),
        ("training.gradient_clip", "1e-9", "0"),
        ("training.warmup", "0", "-1e-9"),
        ("training.warmup", "0.999", "1"),
        ("training.ema_decay", "0", "-1e-9"),
        ("training.ema_decay", "0.999", "1"),
        ("training.ema_fraction", "0", "-1e-9"),
        ("training.ema_fraction", "0.5", "0.501"),
        ("training.oversample_foreground", "0", "-1e-9"),
        ("training.oversample_foreground", "1", "1.001"),
        ("training.progressive_patch_size", "0", "-1e-9"),
        ("training.progressive_patch_size", "1", "1.001"),
        ("training.validations", "0", "-1"),
        ("training.checkpoint_seconds", "1e-9", "0"),
        ("training.workers", "0", "-1"),
        ("augmentation.warmup_epochs", "0", "-1e-9"),
        ("augmentation.rotation_degrees", "180", "180.1"),
        *(
            (f"augmentation.{name}", accepted, rejected)
            for name in ("rotation", "scaling", "mirror", "noise", "blur", "brightness", "contrast", "low_resolution",
                         "gamma", "gamma_inverted", "channel_dropout")
            for accepted, rejected in (("0", "-1e-9"), ("1", "1.001"))
        ),
        ("plan.batch_size", "1", "0"),
        ("plan.blocks_per_stage", "1", "0"),
        ("plan.features", "[1, 1]", "[1]"),
        ("plan.patch_size", "[1, 1, 1]", "[1, 1, 0]"),
        ("plan.spacing_mm", "[1, 1, 0.5]", "[1, 1, 0]"),
        ("plan.mirror_axes", "[0, 1, 2]", "[0, 0]"),
        ("augmentation.scaling_range", "[0.5, 0.5]", "[0.5, 0.4]"),
        ("augmentation.low_resolution_range", "[0.5, 1]", "[0.5, 1.1]"),
    ],
)  # fmt: skip
def test_the_ends_of_what_a_key_accepts(key, accepted, rejected):
    load_config(None, [f"{key}={accepted}"])
    with pytest.raises(ConfigError, match=f"'{key}"):
        load_config(None, [f"{key}={rejected}"])


@pytest.mark.parametrize(("name", "longest"), [("value", 16), ("scheme", 16), ("meaning", 64)])
def test_the_lengths_of_a_code(name, longest):
    term = {"value": "1", "scheme": "SCT", "meaning": "a"}
    for length in (1, longest):
        assert len(getattr(CodedName(**{**term, name: "x" * length}), name)) == length
    for length in (0, longest + 1):
        with pytest.raises(ValidationError, match=name):
            CodedName(**{**term, name: "x" * length})
