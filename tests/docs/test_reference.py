"""The reference pages name exactly what the code has."""

import re
from typing import Any, get_args

import pytest
import typer
import yaml

import volseg.errors
from tests.docs.pages import ROOT
from volseg.cli import app
from volseg.config import AugmentationConfig, PlanChoices, TrainingConfig
from volseg.inference.quality import LabelFlag, ScanFlag
from volseg.modelfile import ModelCard
from volseg.node import config as node
from volseg.node.queue import STATES
from volseg.node.rules import Rule
from volseg.training.run.folder import CONTENT

REFERENCE = ROOT / "docs" / "reference"
GROUPS = {"plan": PlanChoices, "training": TrainingConfig, "augmentation": AugmentationConfig}
NODE = {
    "node.yaml": node.NodeConfig, "peers": node.Peer, "archive": node.Archive, "archive.dimse": node.Dimse,
    "archive.dicomweb": node.Web, "rules": Rule, "retry": node.Retry, "limits": node.Limits, "tls": node.Tls,
    "compute": node.Compute,
}  # fmt: skip
COMMANDS = typer.main.get_command(app).commands


def sections(name: str) -> dict[str, str]:
    """The text of each second-level section of a reference page, by its heading; "" is what comes before them."""
    text = (REFERENCE / name).read_text(encoding="utf-8")
    first, *others = re.split(r"^## ", text, flags=re.MULTILINE)
    return {"": first, **dict(one.split("\n", 1) for one in others)}


def rows(section: str) -> list[list[str]]:
    """The cells of all table rows, headings left out."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if "| " in line]
    return [row for row in cells if row[0].startswith("`")]


def names(cell: str) -> list[str]:
    """The names in backticks of a cell."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("group", GROUPS)
def test_the_configuration_page_has_all_keys_with_their_defaults(group):
    documented = {names(key)[0]: default for key, default, _ in rows(sections("configuration.md")[group])}
    fields = GROUPS[group].model_fields
    assert list(documented) == list(fields)
    for key, text in documented.items():
        expected: Any = fields[key].default
        found = None if text == "derived" else yaml.safe_load(text.strip("`"))
        assert (tuple(found) if isinstance(found, list) else found) == expected, key


@pytest.mark.parametrize("group", NODE)
def test_the_page_of_nodes_has_all_keys_with_their_defaults(group):
    documented = {names(key)[0]: default for key, default, _ in rows(sections("node.md")[group])}
    fields = NODE[group].model_fields
    assert list(documented) == list(fields)
    for key, text in documented.items():
        if text == "required":
            assert fields[key].is_required(), key
        elif text == "none":
            assert fields[key].default is None, key
        elif text.startswith("`["):
            assert yaml.safe_load(text.strip("`")) == list(fields[key].default), key
        elif re.fullmatch(r"`[^`]+`", text):
            assert yaml.safe_load(text.strip("`")) == fields[key].default, key


def test_the_page_of_nodes_has_all_states():
    documented = {names(what)[0]: set(names(states)) for what, states in rows(sections("node.md")["States"])}
    assert documented == {what: set(states) for what, states in STATES.items()}


def test_the_configuration_page_has_all_renamed_keys():
    documented = {tuple(names(old) + names(new)) for old, new in rows(sections("configuration.md")["Renamed keys"])}
    expected = {
        (f"{group}.{old}", f"{group}.{new}") for group, kind in GROUPS.items() for old, new in kind.RENAMED.items()
    }
    assert documented == expected


def test_the_command_line_page_has_all_verbs():
    documented = [heading.split()[1] for heading in sections("command-line.md") if heading]
    assert sorted(documented) == sorted(COMMANDS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_command_line_page_has_all_options_of_a_verb(verb):
    page = sections("command-line.md")
    section = next(text for heading, text in page.items() if heading.split()[1:2] == [verb])
    shared = {names(option)[0]: default for option, default, _ in rows(page[""])}
    own = {names(option)[0]: default for option, default, _ in rows(section)}
    mentioned = {option for option in shared if f"`{option}`" in section}
    options = {one.opts[0]: one.default for one in COMMANDS[verb].params if one.opts[0].startswith("--")}
    assert own.keys() | mentioned == options.keys()
    for option, default in {**{name: shared[name] for name in mentioned}, **own}.items():
        # A default that is decided elsewhere has no backticks, and on the command line is none or off.
        if default.startswith("`") and options[option] is not None:
            assert names(default) == [str(options[option])], option
        elif default == "off":
            assert options[option] is False, option


def test_the_page_of_errors_has_the_whole_tree_with_its_exit_codes():
    documented = {names(row[0])[0]: row[1] for row in rows(sections("errors-and-exit-codes.md")["In Python"])}
    kinds = {name: kind for name, kind in vars(volseg.errors).items() if is_error(kind)}
    assert documented.keys() == kinds.keys()
    for name, code in documented.items():
        if code.isdecimal():
            assert kinds[name].exit_code == int(code)


def is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, volseg.VolsegError)


def test_the_page_of_results_has_all_flags():
    documented = {names(flag)[0]: of for flag, of, _ in rows(sections("record-and-flags.md")["Flags"])}
    assert documented == {
        **dict.fromkeys(get_args(LabelFlag), "a label"),
        **dict.fromkeys(get_args(ScanFlag), "the scan"),
    }


def test_the_page_of_run_folders_has_all_files_and_all_keys_of_a_card():
    page = sections("run-folder-and-model-file.md")
    files = {name for row in rows(page["Run folder"]) for name in names(row[0])}
    assert files == {name for name in CONTENT if ".tmp." not in name}
    assert [names(row[0])[0] for row in rows(page["Model file"])] == list(ModelCard.model_fields)


def test_the_sidecar_on_the_page_has_the_keys_of_a_record(world):
    text = sections("record-and-flags.md")["JSON sidecar"]
    document = yaml.safe_load(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    record = volseg.Segmenter.load(world / "model.safetensors", device="cpu")(world / "scan.nii.gz").record
    assert document.keys() == record.keys()
    assert document["seconds"].keys() == record["seconds"].keys()
    assert document["labels"]["Anterior"].keys() == record["labels"]["Anterior"].keys()
