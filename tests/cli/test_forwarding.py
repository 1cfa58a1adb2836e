"""Every option of every verb arrives in the Python function it stands for, and the defaults of both agree."""

import inspect
import json
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from volseg.api.doctor import Finding
from volseg.cli import app
from volseg.errors import UsageError

# Options that a verb uses itself: `test_json_prints_the_document_and_nothing_else` and the tests below it.
OWN = {("plan", "output"), *((verb, "as_json") for verb in typer.main.get_command(app).commands)}
OWN |= {("node", "action")}


@dataclass(frozen=True)
class Verb:
    """A verb, the function it calls, and for each option what is typed and what arrives.

    Args:
        function: "module.name".
        typed: what has to be given.
        arrives: the arguments of the function for `typed` that are no defaults of it.
        options: parameter of the command: (typed, {argument: value}).
    """

    function: str
    typed: tuple[str, ...]
    arrives: dict[str, Any]
    options: dict[str, tuple[tuple[str, ...], dict[str, Any]]]


VERBS = {
    "predict": Verb(
        "volseg.api.predict.predict",
        ("a.nii", "b.nii", "--model", "m.safetensors", "--output", "out"),
        {"inputs": ["a.nii", "b.nii"], "model": "m.safetensors", "output": "out"},
        {
            "inputs": (("c.nii",), {"inputs": ["a.nii", "b.nii", "c.nii"]}),
            "model": (("--model", "other"), {"model": "other"}),
            "output": (("--output", "there"), {"output": "there"}),
            "channel": (("--channel", "T1=x", "--channel", "T2=y=z"), {"channels": {"T1": "x", "T2": "y=z"}}),
            "device": (("--device", "cuda:1"), {"device": "cuda:1"}),
            "precision": (("--precision", "bf16"), {"precision": "bf16"}),
            "overlap": (("--overlap", "0.25"), {"overlap": 0.25}),
            "tta": (("--tta", "mirror"), {"tta": "mirror"}),
            "max_memory": (("--max-memory", "3G"), {"max_memory": "3G"}),
            "crop": (("--crop", "body"), {"crop": "body"}),
            "series": (("--series", "1.2.3"), {"series": "1.2.3"}),
            "volume": (("--volume", "all"), {"volume": "all"}),
            "untilt": (("--untilt",), {"untilt": True}),
            "probabilities": (("--probabilities",), {"probabilities": True}),
            "to": (("--to", "nifti,dicom-seg"), {"to": "nifti,dicom-seg"}),
            "preview": (("--preview",), {"preview": True}),
            "uncertainty": (("--uncertainty",), {"uncertainty": True}),
            "overwrite": (("--overwrite",), {"overwrite": True}),
            "skip_existing": (("--skip-existing",), {"skip_existing": True}),
        },
    ),
    "train": Verb(
        "volseg.api.train.train",
        ("data", "--output", "run"),
        {"dataset": [Path("data")], "output": Path("run")},
        {
            "dataset": (("more",), {"dataset": [Path("data"), Path("more")]}),
            "output": (("--output", "there"), {"output": Path("there")}),
            "config": (("--config", "c.yaml"), {"config": Path("c.yaml")}),
            "overrides": (("--set", "a.b=1", "--set", "c.d=e"), {"overrides": ["a.b=1", "c.d=e"]}),
            "fold": (("--fold", "3"), {"fold": 3}),
            "folds": (("--folds", "7"), {"folds": 7}),
            "splits": (("--splits", "s.json"), {"splits": Path("s.json")}),
            "seed": (("--seed", "11"), {"seed": 11}),
            "minutes": (("--minutes", "2.5"), {"minutes": 2.5}),
            "steps": (("--steps", "13"), {"steps": 13}),
            "resume": (("--resume",), {"resume": True}),
            "finish": (("--finish",), {"finish": True}),
            "overwrite": (("--overwrite",), {"overwrite": True}),
            "from_model": (("--from", "m.safetensors"), {"from_model": "m.safetensors"}),
            "freeze": (("--freeze", "encoder"), {"freeze": "encoder"}),
            "keep_labels": (("--keep-labels",), {"keep_labels": True}),
            "label_map": (("--label-map", "a=B", "--label-map", "c=d=e"), {"label_map": {"a": "B", "c": "d=e"}}),
            "device": (("--device", "cuda:1"), {"device": "cuda:1"}),
        },
    ),
    "plan": Verb(
        "volseg.api.train.plan_dataset",
        ("data",),
        {"dataset": [Path("data")]},
        {
            "dataset": (("more",), {"dataset": [Path("data"), Path("more")]}),
            "config": (("--config", "c.yaml"), {"config": Path("c.yaml")}),
            "overrides": (("--set", "a.b=1"), {"overrides": ["a.b=1"]}),
            "device": (("--device", "cuda:1"), {"device": "cuda:1"}),
        },
    ),
    "evaluate": Verb(
        "volseg.api.evaluation.evaluate",
        ("p", "r"),
        {"predictions": Path("p"), "references": Path("r")},
        {
            "predictions": ((), {"predictions": Path("p")}),
            "references": ((), {"references": Path("r")}),
            "labels": (("--labels", "l.json"), {"labels": Path("l.json")}),
            "output": (("--output", "o.json"), {"output": Path("o.json")}),
            "surface": (("--surface", "monai"), {"surface": "monai"}),
            "tolerance_mm": (("--tolerance-mm", "2.5"), {"tolerance_mm": 2.5}),
            "lesions": (("--lesions", "cc"), {"lesions": "cc"}),
        },
    ),
    "compare": Verb(
        "volseg.api.evaluation.compare",
        ("a", "b", "--references", "r"),
        {"predictions": [Path("a"), Path("b")], "references": Path("r")},
        {
            "predictions": ((), {"predictions": [Path("a"), Path("b")]}),
            "references": (("--references", "other"), {"references": Path("other")}),
            "labels": (("--labels", "l.json"), {"labels": Path("l.json")}),
            "output": (("--output", "o"), {"output": Path("o")}),
            "surface": (("--surface", "monai"), {"surface": "monai"}),
            "tolerance_mm": (("--tolerance-mm", "2.5"), {"tolerance_mm": 2.5}),
        },
    ),
    "convert": Verb(
        "volseg.api.convert.convert",
        ("in", "--output", "out.nii"),
        {"source": Path("in"), "output": Path("out.nii")},
        {
            "source": ((), {"source": Path("in")}),
            "output": (("--output", "o.mha"), {"output": Path("o.mha")}),
            "like": (("--like", "scan.nii"), {"like": Path("scan.nii")}),
            "series": (("--series", "1.2"), {"series": "1.2"}),
            "volume": (("--volume", "2"), {"volume": 2}),
            "overwrite": (("--overwrite",), {"overwrite": True}),
        },
    ),
    "import-nnunet": Verb(
        "volseg.api.importing.import_nnunet",
        ("folder", "--output", "m.safetensors"),
        {"folder": Path("folder"), "output": Path("m.safetensors")},
        {
            "folder": ((), {"folder": Path("folder")}),
            "output": (("--output", "n.safetensors"), {"output": Path("n.safetensors")}),
            "checkpoint": (("--checkpoint", "best.pth"), {"checkpoint": "best.pth"}),
            "folds": (("--folds", "0, 2"), {"folds": ["0", "2"]}),
            "overwrite": (("--overwrite",), {"overwrite": True}),
        },
    ),
    "ensemble": Verb(
        "volseg.api.ensemble.ensemble",
        ("a", "b", "--output", "m.safetensors"),
        {"models": [Path("a"), Path("b")], "output": Path("m.safetensors")},
        {
            "models": (("c",), {"models": [Path("a"), Path("b"), Path("c")]}),
            "output": (("--output", "n.safetensors"), {"output": Path("n.safetensors")}),
            "half": (("--half",), {"half": True}),
            "overwrite": (("--overwrite",), {"overwrite": True}),
        },
    ),
    "info": Verb(
        "volseg.api.describe.describe",
        ("x",),
        {"path": "x"},
        {
            "path": ((), {"path": "x"}),
            "series": (("--series", "1.2"), {"series": "1.2"}),
            "volume": (("--volume", "2"), {"volume": 2}),
            "untilt": (("--untilt",), {"untilt": True}),
        },
    ),
    "profile": Verb(
        "volseg.api.describe.profile_document",
        (),
        {"config": None, "model": None},
        {
            "config": (("--config", "c.yaml"), {"config": Path("c.yaml")}),
            "model": (("--model", "m"), {"model": "m"}),
        },
    ),
    "node": Verb(
        "volseg.node.service.serve",
        ("--config", "n.yaml"),
        {"path": Path("n.yaml")},
        {"config": (("--config", "o.yaml"), {"path": Path("o.yaml")})},
    ),
    "doctor": Verb("volseg.api.doctor.examine", (), {}, {}),
    "demo": Verb(
        "volseg.api.demo.run_demo",
        (),
        {"output": Path("volseg_demo")},
        {
            "output": (("--output", "there"), {"output": Path("there")}),
            "samples": (("--samples", "s"), {"samples": Path("s")}),
            "overwrite": (("--overwrite",), {"overwrite": True}),
        },
    ),
}
OPTIONS = [(verb, name) for verb, one in VERBS.items() for name in one.options]


@cache
def signature_of(verb: str) -> inspect.Signature:
    """Of the function of a verb; asked for before it is replaced."""
    module, _, name = VERBS[verb].function.rpartition(".")
    return inspect.signature(getattr(import_module(module), name))


def arrived(monkeypatch: pytest.MonkeyPatch, verb: str, *typed: str) -> dict[str, Any]:
    """All arguments of the function that a command calls, defaults included."""
    module, _, name = VERBS[verb].function.rpartition(".")
    signature, calls = signature_of(verb), []

    def recording(*args: Any, **kwargs: Any) -> None:
        found = signature.bind(*args, **kwargs)
        found.apply_defaults()
        calls.append(found.arguments)
        raise UsageError("recorded")

    monkeypatch.setattr(f"{module}.{name}", recording)
    # The models that it names are looked at before.
    monkeypatch.setattr("volseg.cli.node._models", lambda _: [])
    result = CliRunner().invoke(app, [verb, *VERBS[verb].typed, *typed])
    assert (result.exit_code, len(calls)) == (2, 1), result.output
    progress = calls[0].pop("progress", None)
    assert progress is None or "progress_bar" in progress.__qualname__ or "_log_progress" in progress.__qualname__
    return calls[0]


def test_every_option_has_a_case():
    commands = typer.main.get_command(app).commands
    there = {(verb, option.name) for verb, command in commands.items() for option in command.params}
    assert there == set(OPTIONS) | (OWN & there)
    assert not set(OPTIONS) & OWN


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_without_options_has_the_defaults_of_its_function(monkeypatch, verb):
    defaults = {key: one.default for key, one in signature_of(verb).parameters.items() if key != "progress"}
    assert arrived(monkeypatch, verb) == defaults | VERBS[verb].arrives


@pytest.mark.parametrize(("verb", "option"), OPTIONS)
def test_an_option_arrives_and_changes_nothing_else(monkeypatch, verb, option):
    typed, expected = VERBS[verb].options[option]
    assert arrived(monkeypatch, verb, *typed) == arrived(monkeypatch, verb) | expected


@pytest.mark.parametrize("verb", VERBS)
def test_all_options_arrive_together(monkeypatch, verb):
    options = VERBS[verb].options.values()
    typed = [word for words, _ in options for word in words]
    expected = {name: value for _, changes in options for name, value in changes.items()}
    assert arrived(monkeypatch, verb, *typed) == arrived(monkeypatch, verb) | expected


@pytest.mark.parametrize(("text", "fold"), [("0", 0), ("12", 12), ("all", "all"), ("-1", "-1")])
def test_a_fold_is_a_number_or_a_word(monkeypatch, text, fold):
    assert arrived(monkeypatch, "train", "--fold", text)["fold"] == fold


STAGE = {"stage": "1", "parameters": 1, "gflops": 2.0, "activation_mib": 3.0}
SCORES = {
    "dice": 0.5, "precision": 0.3, "recall": 0.2, "volume_difference_ml": 0.1, "cases": 1, "missed": 0,
    "hausdorff95_mm": 3.0, "assd_mm": 1.0, "surface_dice": 0.9,
}  # fmt: skip
EVALUATED = {
    "cases": [{"name": name, "labels": {"x": SCORES}} for name in "ab"],
    "mean": {"labels": {"x": SCORES}, "foreground_dice": 0.5},
    "median": {"labels": {"x": SCORES}},
    "interval": {"labels": {"x": {"dice": [0.4, 0.6]}}},
}
RANKED = {"rank": 1, "model": "a", "mean": 0.5, "low": 0.4, "high": 0.6}
PAIRED = {"first": "a", "second": "b", "difference": 0.1, "p_holm": 0.5, "winner": None}
COMPARED = {"measures": {"dice": {"ranking": [RANKED], "pairs": [PAIRED]}}}
DESCRIBED = {"what": "a thing", "size": 3}
PROFILED = {"patch_size": [8, 8, 8], "blocks": {"conv3d": {"stages": [STAGE]}}}
CONVERTED = {"warnings": [], "input": "in"}
# Verb: what its functions answer, and the document of --json.
ANSWERS = {
    "evaluate": ({"volseg.api.evaluation.evaluate": EVALUATED}, EVALUATED),
    "compare": ({"volseg.api.evaluation.compare": COMPARED}, COMPARED),
    "convert": ({"volseg.api.convert.convert": CONVERTED}, CONVERTED),
    "train": ({"volseg.api.train.train": "run", "volseg.api.describe.describe": DESCRIBED}, DESCRIBED),
    "import-nnunet": (
        {"volseg.api.importing.import_nnunet": "m", "volseg.api.describe.describe": DESCRIBED},
        DESCRIBED,
    ),
    "ensemble": ({"volseg.api.ensemble.ensemble": "m", "volseg.api.describe.describe": DESCRIBED}, DESCRIBED),
    "info": ({"volseg.api.describe.describe": DESCRIBED}, DESCRIBED),
    "profile": ({"volseg.api.describe.profile_document": PROFILED}, PROFILED),
    "doctor": (
        {"volseg.api.doctor.examine": [Finding("a", "b")]},
        [{"what": "a", "found": "b", "verdict": "ok"}],
    ),
}


def answering(monkeypatch: pytest.MonkeyPatch, verb: str) -> list[tuple[Any, ...]]:
    """Let the functions of a verb answer at once; returns what the last of them is called with."""
    calls: list[tuple[Any, ...]] = []
    for name, answer in ANSWERS[verb][0].items():
        import_module(name.rpartition(".")[0])
        monkeypatch.setattr(name, lambda *args, answer=answer, **_: calls.append(args) or answer)
    return calls


@pytest.mark.parametrize("verb", ANSWERS)
def test_json_prints_the_document_and_nothing_else(monkeypatch, verb):
    answering(monkeypatch, verb)
    result = CliRunner().invoke(app, [verb, *VERBS[verb].typed, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == ANSWERS[verb][1]
    plain = CliRunner().invoke(app, [verb, *VERBS[verb].typed])
    assert plain.exit_code == 0
    assert plain.stdout
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(plain.stdout)


@pytest.mark.parametrize(("verb", "made"), [("train", "run"), ("import-nnunet", "m"), ("ensemble", "m")])
def test_what_a_verb_has_made_is_described(monkeypatch, verb, made):
    calls = answering(monkeypatch, verb)
    CliRunner().invoke(app, [verb, *VERBS[verb].typed])
    assert calls[-1] == (made,)


def test_a_plan_is_printed_or_written(monkeypatch, tmp_path):
    monkeypatch.setattr("volseg.api.train.plan_dataset", lambda *_: "axes: [2, 0, 1]\n")
    assert CliRunner().invoke(app, ["plan", "data"]).stdout == "axes: [2, 0, 1]\n"
    written = CliRunner().invoke(app, ["plan", "data", "--output", str(tmp_path / "plan.yaml")])
    assert (written.exit_code, written.stdout) == (0, "")
    assert (tmp_path / "plan.yaml").read_text() == "axes: [2, 0, 1]\n"


def test_a_plan_that_could_not_be_written_is_not_made(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("volseg.api.train.plan_dataset", lambda *_: calls.append(1))
    assert CliRunner().invoke(app, ["plan", "data", "--output", str(tmp_path)]).exit_code == 2
    assert not calls


def test_the_state_of_a_node_is_asked_with_its_configuration(monkeypatch):
    found = {"counts": {}, "jobs": [], "deliveries": [], "fetches": [], "series": []}
    calls = []
    import_module("volseg.node.status")
    monkeypatch.setattr("volseg.node.status.status", lambda config: calls.append(config) or found)
    result = CliRunner().invoke(app, ["node", "status", "--config", "n.yaml", "--json"])
    assert json.loads(result.stdout) == found
    assert calls == [Path("n.yaml")]
    assert CliRunner().invoke(app, ["node", "stop", "--config", "n.yaml"]).exit_code == 2
