"""What the terminal shows: progress, tables and errors."""

import io
import json
import logging
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console

from volseg.cli import console
from volseg.cli.app import figure, show_description
from volseg.errors import DatasetError, InputError, OtherProcessError, Problem, ResourceError, Stopped


@pytest.fixture
def terminal(monkeypatch):
    """What would be on a terminal of 100 columns, standard error and standard output as one."""
    shown = io.StringIO()
    for name in ("error_console", "output_console"):
        monkeypatch.setattr(console, name, Console(file=shown, force_terminal=True, width=100, highlight=False))
    return shown


@pytest.fixture
def plain(monkeypatch):
    """Standard error where it is no terminal."""
    shown = io.StringIO()
    monkeypatch.setattr(console, "error_console", Console(file=shown, width=140, highlight=False))
    return shown


def test_off_a_terminal_a_stage_is_told_at_its_start_and_end_and_every_15_seconds(monkeypatch, plain, caplog):
    class Clock:
        now = 50.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with caplog.at_level(logging.INFO), console.progress_bar() as progress:
        for seconds, stage, done in (
            (0, "train", 0.0), (14.9, "train", 0.1), (0.1, "train", 0.25), (14, "train", 0.5), (0, "validate", 0.0),
            (0, "train", 0.99), (0, "train", 1.0), (2, "validate", 0.5), (13, "validate", 0.75),
        ):  # fmt: skip
            clock.now += seconds
            progress(stage, done, f"step {done}")
    assert caplog.messages == [
        "train   0% step 0.0", "train  25% step 0.25", "validate   0% step 0.0", "train 100% step 1.0",
        "validate  75% step 0.75",
    ]  # fmt: skip
    assert plain.getvalue() == ""


def test_on_a_terminal_each_stage_has_a_bar(terminal):
    with console.progress_bar() as progress:
        progress("train", 0.25, "first")
        progress("train", 0.5, "second \x1b[31m")
        progress("validate", 1.0, "third")
    shown = terminal.getvalue()
    last = [line for line in shown.splitlines() if "train" in line or "validate" in line][-2:]
    assert "50%" in last[0]
    assert "second" in last[0]
    assert "first" not in last[0]
    assert "100%" in last[1]
    assert "third" in last[1]
    assert "ETA" in last[0]
    assert "second \x1b[31m" not in shown


def test_numbers_of_a_table_are_at_the_right_and_text_at_the_left(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "output_console", Console(file=shown, width=80, highlight=False))
    console.show_table("Title", ("name", "mL", "flags"), [("a", 1.23456789, "x"), ("bbb", None, ""), ("c", 12, "yy")])
    lines = shown.getvalue().splitlines()
    assert lines[0].strip() == "Title"
    cells = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert cells == [
        [" a    ", " 1.235 ", " x     "],
        [" bbb  ", "     - ", "       "],
        [" c    ", "    12 ", " yy    "],
    ]


def test_a_table_without_titles_has_no_head(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "output_console", Console(file=shown, width=80, highlight=False))
    show_description({"what": "a thing", "size": 3}, as_json=False)
    text = shown.getvalue()
    assert text.splitlines()[0].strip() == "a thing"
    assert "size" in text
    assert "what" not in text
    assert "┃" not in text


def test_a_description_as_json(capsys):
    show_description({"what": "a thing", "size": 3}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"what": "a thing", "size": 3}


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.123456, 4, "0.1235"), (1.0, 2, "1.00"), (None, 4, "none (no label was found in any case)")],
)
def test_a_score_for_people(value, digits, text):
    assert figure(value, digits) == text


def test_problems_of_a_dataset_are_a_table_of_the_first_and_the_number_of_the_others(plain):
    problems = [Problem(f"case{number}", "wrong", "found", "mend") for number in range(console.SHOWN + 2)]
    console.show_error(DatasetError("Data", problems))
    text = plain.getvalue()
    assert text.startswith("Error: ")
    assert f"case{console.SHOWN - 1} " in text
    assert f"case{console.SHOWN} " not in text
    assert text.splitlines()[-1] == "and 2 more"
    plain.truncate(0)
    plain.seek(0)
    console.show_error(DatasetError("Data", problems[: console.SHOWN]))
    assert "more" not in plain.getvalue()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("bad input"), 2, "Error: bad input"),
        (ResourceError("disk full"), 1, "Error: disk full"),
        (Stopped("stopped here"), 130, "stopped here"),
        (KeyboardInterrupt(), 130, "Interrupted. No unfinished files were left behind."),
        (OtherProcessError(4), 4, ""),
        (ModuleNotFoundError("x", name="monai.transforms"), 1, "for prediction only. Install the rest with: pip in"),
        (ModuleNotFoundError("x", name="pynetdicom"), 1, "it comes with the extra node"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_is_one_sentence_and_an_exit_code(plain, capsys, error, code, words, as_json):
    @console.guarded
    def verb(*, as_json=False):
        raise error

    with pytest.raises(typer.Exit) as ended:
        verb(as_json=as_json)
    assert ended.value.exit_code == code
    assert words in plain.getvalue()
    assert bool(plain.getvalue()) == bool(words)
    printed = capsys.readouterr().out
    if as_json and words:
        assert words.removeprefix("Error: ") in json.loads(printed)["error"]
    else:
        assert printed == ""


def test_a_module_of_our_own_that_is_missing_is_a_fault_of_ours(plain):
    @console.guarded
    def verb():
        raise ModuleNotFoundError("x", name="volseg.nothing")

    with pytest.raises(ModuleNotFoundError):
        verb()


def test_problems_of_a_dataset_are_in_the_document(plain, capsys):
    @console.guarded
    def verb(*, as_json=False):
        raise DatasetError("Data", [Problem("case", "wrong", "found", "mend")])

    with pytest.raises(typer.Exit):
        verb(as_json=True)
    (row,) = json.loads(capsys.readouterr().out)["problems"]
    assert list(row.values()) == ["case", "wrong", "found", "mend"]


def test_a_verb_returns_its_code_and_none_means_done(plain):
    for returned, code in ((None, 0), (3, 3)):
        with pytest.raises(typer.Exit) as ended:
            console.guarded(lambda returned=returned: returned)()
        assert ended.value.exit_code == code


def test_a_stage_that_has_ended_is_logged_once_and_what_comes_after_it_now_and_then(monkeypatch, caplog):
    seconds = iter((0, 1, 2, 3, 60))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    show = console._log_progress()
    with caplog.at_level("INFO", "volseg"):
        for done, text in ((0.5, "a"), (1.0, "end"), (1.0, "b"), (1.0, "c"), (1.0, "d")):
            show("segment", done, text)
    assert [message.rpartition(" ")[2] for message in caplog.messages] == ["a", "end", "d"]
