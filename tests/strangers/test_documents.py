"""JSON and YAML from strangers: nested, multiplied, too long, too large, or with values that are none."""

import json

import pytest

import volseg.api.importing
import volseg.api.train  # noqa: F401 - like that above, loaded before the trials are forked
from tests.pipeline import tiny_plan
from tests.strangers.absurd import NAMES
from tests.strangers.trials import check_refusal, command, run
from volseg.cli.train import _fold
from volseg.config import load_config
from volseg.data.cases.labels import parse_labels
from volseg.data.io.choice import volume_number
from volseg.documents import (
    DEEPEST,
    LARGEST_JSON,
    LARGEST_YAML,
    MOST_NODES,
    MOST_VALUES,
    DocumentError,
    parse_json,
    parse_yaml,
    read_json,
    read_yaml,
)
from volseg.errors import LONGEST, ConfigError, DatasetError, InputError, Problem, UsageError, VolsegError
from volseg.planning.commented import plan_text
from volseg.text import whole_number


def lines(levels: int, form: str) -> str:
    """A YAML document whose every line repeats the one before it ten times."""
    aliases = (", ".join([f"*a{level - 1}"] * 10) for level in range(1, levels))
    return "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {form % one}\n" for n, one in enumerate(aliases, 1))


YAML = {
    "aliases": (lines(9, "[%s]"), "its aliases repeat more than 20,000 values"),
    "merged": (lines(9, "{<<: [%s]}"), "its aliases repeat more than 20,000 values"),
    "chained": ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 150)), "nested more than 32"),
    "itself": ("a: &a [*a]", "an alias on line 1 contains itself"),
    "itself in a mapping": ("a: &a {b: {c: *a}}", "an alias on line 1 contains itself"),
    "nested": ("[" * 20_000, "nested more than 32 levels"),
    "nested mappings": ("{a: " * 20_000, "nested more than 32 levels"),
    "nested blocks": ("- " * 20_000, "nested more than 32 levels"),
    "nested keys": ("? " * 20_000, "nested more than 32 levels"),
    "long integer": (f"a: {'9' * 5000}", "an integer of 5000 digits"),
    "integer of base 60": (f"a: {'1:' * 5000}1", "an integer of 10001 digits"),
    "date": ("a: 2001-99-99", "month must be in 1..12"),
    "no integer": ("a: !!int ''", "not of the type"),
    "no number": ("a: !!float x", "not of the type"),
    "no date": ("a: !!timestamp x", "not of the type"),
    "code": ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    "a list as a key": ("? [a]\n: 1", "the key on line 1 is not a name"),
    "many": ("- 1\n" * (MOST_NODES + 1), "more than 20,000 values"),
    "large": ("#" * (LARGEST_YAML + 1), "larger than 0.5 MiB"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_no_configuration(tmp_path, name):
    text, words = YAML[name]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DocumentError, match=words):
        read_yaml(path)
    arguments = (tmp_path, "--output", tmp_path / "run", "--config", path)
    trial = run(command("train", *arguments), tmp_path)
    check_refusal(trial)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in YAML if len(YAML[name][0]) < 100_000])
def test_an_override_is_held_to_the_same_rules(name):
    with pytest.raises(ConfigError, match="is not a YAML value") as error:
        load_config(None, [f"plan.features={YAML[name][0]}"])
    assert len(str(error.value)) < 1000


def test_yaml_that_is_no_text(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="byte 3 is not UTF-8"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="there is no key of 5001 parts"):
        load_config(None, [f"{'a.' * 5000}b=1"])


def test_aliases_within_the_bounds_are_used():
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    assert len(parse_yaml("- 1\n" * (MOST_NODES - 1))) == MOST_NODES - 1
    assert parse_yaml("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)) is not None
    assert parse_yaml("#" * LARGEST_YAML) is None


JSON = {
    "nested": ("[" * 400_000, "nested more than 32 levels"),
    "nested, but not for Python": ("[" * 33 + "]" * 33, "nested more than 32 levels"),
    "long integer": ("9" * 5000, "an integer of 5000 digits"),
    "NaN": ("[NaN]", "the number NaN, which is not finite"),
    "too large": ("[1e999]", "the number 1e999, which is not finite"),
    "twice": ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
    "many": ("[" + "1," * MOST_VALUES + "1]", "more than 500,000 values"),
    "cut": ('{"a": ', "Expecting value at line 1, column 7"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_no_dataset(tmp_path, name):
    text, words = JSON[name]
    with pytest.raises(DocumentError, match=words):
        parse_json(text)
    (tmp_path / "dataset.json").write_text(text)
    for arguments in (("plan", tmp_path), ("import-nnunet", tmp_path, "--output", tmp_path / "m.safetensors")):
        check_refusal(run(command(*arguments), tmp_path))


def test_json_within_the_bounds_is_read(tmp_path):
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None
    assert parse_json("[NaN, Infinity]", nan=True)[1] == float("inf")
    path = tmp_path / "large.json"
    path.write_bytes(b"1".ljust(LARGEST_JSON))
    assert read_json(path) == 1
    path.write_bytes(b"1".ljust(LARGEST_JSON + 1))
    with pytest.raises(DocumentError, match="larger than 16 MiB"):
        read_json(path)
    assert read_json(path, times=2) == 1
    path.write_bytes("\ufeff[1]".encode())
    assert read_json(path) == [1]


def test_a_message_is_short_whatever_it_quotes():
    error = InputError(f"{'x' * 30_000} is wrong; mend it.")
    assert len(str(error)) <= LONGEST
    assert str(error).endswith("mend it.")
    rows = [Problem("c" * 5000, "p", "f" * 50_000, "r")] * 100
    assert len(str(DatasetError("d", rows))) < 40 * LONGEST
    assert str(VolsegError("as it is")) == "as it is"


def test_a_printed_plan_holds_nothing_that_a_terminal_obeys():
    plan = tiny_plan(dataset=NAMES)
    text = plan_text(plan, {})
    assert text.replace("\n", "").isprintable()
    assert parse_yaml(text)["dataset"] == NAMES


def paths(image: str, label: str = "b.nii.gz") -> str:
    return json.dumps({"labels": {"1": "ball"}, "training": [{"image": image, "label": label}]})


@pytest.mark.parametrize("stated", ["../../../../etc/passwd", "/etc/shadow", "a/../../x.nii.gz", "..", "x\0.nii.gz"])
def test_a_dataset_names_no_file_outside_its_folder(tmp_path, stated):
    for text in (paths(stated), paths("a.nii.gz", stated)):
        (tmp_path / "dataset.json").write_text(text)
        trial = run(command("plan", tmp_path), tmp_path)
        check_refusal(trial)
        assert "which is not in that folder" in trial.error


def test_file_endings_lead_nowhere(tmp_path):
    for ending in ("/../../x.nii.gz", "*", "\x1b.nii"):
        document = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ending}
        (tmp_path / "dataset.json").write_text(json.dumps(document))
        trial = run(command("plan", tmp_path), tmp_path)
        check_refusal(trial)
        assert "expected the end of a file name" in trial.error


@pytest.mark.parametrize("key", ["9" * 5000, "²", "１", "-1"])  # noqa: RUF001 - digits of other scripts are meant
def test_a_label_whose_value_is_no_number(key):
    with pytest.raises(InputError, match="expected an integer") as caught:
        parse_labels({"0": "background", key: "ball"}, None, "d")
    assert len(str(caught.value)) < 600


def test_label_values_are_quoted_in_short():
    for labels in ({"ball": list(range(1, 70_000))}, {"ball": [0, *range(1, 60_000)]}):
        with pytest.raises(InputError) as caught:
            parse_labels({"background": 0, **labels}, None, "d")
        assert len(str(caught.value)) < 600


def test_a_path_that_no_system_can_open(tmp_path):
    (tmp_path / "dataset.json").write_text(paths("x" * 5000 + ".nii.gz"))
    trial = run(command("plan", tmp_path), tmp_path)
    check_refusal(trial)


@pytest.mark.parametrize(
    ("text", "number"), [("007", 7), ("9" * 18, 10**18 - 1), ("9" * 5000, None), ("²", None), ("", None)]
)
def test_whole_numbers(text, number):
    assert whole_number(text) == number
    assert _fold(text) == (text if number is None else number)
    if number is None:
        with pytest.raises(UsageError, match="--volume is"):
            volume_number(text)
    else:
        assert volume_number(text) == number
