"""The run report: correct numbers, escaped text, a self-contained page, and unfinished runs."""

import base64
import builtins
import errno
import io
import json
import re
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from tests.pipeline import tiny_plan
from volseg.config import Label
from volseg.errors import InputError
from volseg.modelfile import ModelCard, save_model
from volseg.modelfile.calibration import BINS, Calibration, LabelCalibration, Reliability
from volseg.report.run_report import _reliability, _smoothed, write_run_report

NASTY = "<b>left</b> & $x_{"
PLAN = "dataset: A<B\npatch_size: [8, 8, 8]  # fits <2 GB & is fast\nname: 'a#b'\n"


def write_run(run, validation=None, records=None):
    run.mkdir()
    (run / "plan.yaml").write_text(PLAN)
    (run / "config.yaml").write_text("training:\n  learning_rate: 0.003\n")
    if records is not None:
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if validation is not None:
        (run / "validation.json").write_text(json.dumps(validation))
    return run


def example_validation(first="Front", second=NASTY):
    """Three cases by hand: first 0.9, 0.8, absent; second 0.5, 0.7, 0.6."""
    scores = {"easy": (0.9, 0.5), "hard<1>": (0.8, 0.7), "half": (None, 0.6)}
    return {
        "cases": [
            {"name": name, "labels": {first: {"dice": one}, second: {"dice": two}}}
            for name, (one, two) in scores.items()
        ],
        "mean": {"labels": {first: {"dice": 0.85}, second: {"dice": 0.6}}, "foreground_dice": 0.725},
        "spread": {"labels": {first: {"dice": 0.0707}, second: {"dice": 0.1}}},
    }


def example_records(steps=200):
    records = [
        {"step": step, "seconds": 0.6 * step, "progress": step / steps, "loss": 1 / step, "learning_rate": 0.003}
        for step in range(1, steps + 1)
    ]
    records[99] |= {"foreground_dice": 0.4, "dice": {"Front": 0.5, NASTY: None}}
    return records


class Reader(HTMLParser):
    """Texts, tags and attributes of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts, self.links = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


@pytest.fixture
def page(tmp_path):
    run = write_run(tmp_path / "run & <i>one", example_validation(), example_records())
    write_run_report(run)
    return (run / "report.html").read_text(encoding="utf-8")


def test_headline_figures(page):
    texts = Reader(page).texts
    for figure, what in [
        ("0.725", "mean foreground Dice"),
        ("0.850 ± 0.071", "Front"),
        ("0.600 ± 0.100", NASTY),
        ("200", "steps"),
        ("2.0", "minutes"),
    ]:
        assert texts[texts.index(what) - 1] == figure


def test_the_postprocessing_that_was_chosen_is_named(tmp_path, page):
    assert "Postprocessing: none." in Reader(page).texts
    rules = {NASTY: {"smallest_ml": 0.1, "dice_before": 0.5, "dice_after": 0.6}}
    run = write_run(tmp_path / "ruled", example_validation() | {"postprocessing": rules}, example_records())
    write_run_report(run)
    expected = f"Postprocessing: {NASTY}: components of at least 0.1 mL (Dice 0.5000 before, 0.6000 after)."
    assert expected in Reader((run / "report.html").read_text(encoding="utf-8")).texts


def test_every_name_is_escaped(page):
    assert "<b>left" not in page
    assert "<i>one" not in page
    assert "hard<1>" not in page
    reader = Reader(page)
    assert {"script", "link", "iframe"}.isdisjoint(reader.tags)
    assert "run & <i>one" in reader.texts
    assert "hard<1>" in reader.texts


def test_page_is_self_contained_and_its_charts_are_valid(page):
    links = Reader(page).links
    assert len(links) == 2
    for link in links:
        kind, data = link.split(",")
        assert kind == "data:image/svg+xml;base64"
        assert xml.etree.ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert not re.search(r"https?://|url\(|@import", page)


def test_cases_are_sorted_worst_first_with_bars_of_their_dice(page):
    table = page[page.index("<table>") : page.index("</table>")]
    rows = [Reader(row).texts for row in re.findall(r"<tr>.*?</tr>", table)]
    assert rows == [
        ["case", "mean Dice", "Front", NASTY],
        ["half", "0.600", "none", "0.600"],
        ["easy", "0.700", "0.900", "0.500"],
        ["hard<1>", "0.750", "0.800", "0.700"],
    ]
    assert re.findall(r"width:([\d.]+)%", table) == ["60.0", "90.0", "50.0", "80.0", "70.0"]


def test_plan_is_shown_with_its_comments_marked(page):
    assert "dataset: A&lt;B\n" in page
    assert "<i># fits &lt;2 GB &amp; is fast</i>\n" in page
    assert "a#b" in page
    assert "<i>#b" not in page
    assert "learning_rate: 0.003" in page


@pytest.mark.parametrize("missing", ["plan.yaml", "config.yaml", "metrics.jsonl", "validation.json"])
def test_a_missing_file_leaves_out_only_its_section(tmp_path, missing):
    run = write_run(tmp_path / "run", example_validation(), example_records())
    (run / missing).unlink()
    write_run_report(run)
    texts = Reader((run / "report.html").read_text()).texts
    reasons = ("is missing", "has no completed step")
    assert any(f"{missing} {reason}" in text for text in texts for reason in reasons)
    assert ("0.725" in texts) == (missing != "validation.json")
    assert ("steps" in texts) == (missing != "metrics.jsonl")


def test_an_empty_folder_is_reported_as_such(tmp_path):
    write_run_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert Reader(page).links == []
    assert page.count("is missing") == 4


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    lines = [json.dumps({"step": step, "seconds": 60.0 * step, "loss": 0.5}) for step in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "sec')
    write_run_report(run)
    texts = Reader((run / "report.html").read_text()).texts
    assert texts[texts.index("steps") - 1] == "2"
    assert texts[texts.index("minutes") - 1] == "2.0"


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.json", "plan.yaml", "config.yaml"])
def test_a_file_that_the_disk_does_not_give_is_named_in_a_sentence(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("{}")
    opened = io.open

    def refuse(file, *arguments, **options):
        if str(file).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *arguments, **options)

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", refuse)
    with pytest.raises(InputError, match=rf"{name}.*Permission denied"):
        write_run_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_one_case_and_nothing_that_counts(tmp_path):
    validation = {
        "cases": [{"name": "only", "labels": {"Front": {"dice": None}}}],
        "mean": {"labels": {"Front": {"dice": None}}, "foreground_dice": None},
        "spread": {"labels": {"Front": {"dice": None}}},
    }
    run = write_run(tmp_path / "run", validation, example_records()[:1])
    write_run_report(run)
    texts = Reader((run / "report.html").read_text()).texts
    assert texts[texts.index("mean foreground Dice") - 1] == "none"
    assert texts[texts.index("only") + 1 : texts.index("only") + 3] == ["none", "none"]


def test_running_mean_keeps_a_line_and_averages_neighbours():
    assert _smoothed(np.full(9, 2.0), 4) == pytest.approx(np.full(9, 2.0))
    assert _smoothed(np.array([0.0, 3.0, 6.0, 0.0]), 3) == pytest.approx([1.5, 3.0, 3.0, 3.0])
    assert np.array_equal(_smoothed(np.arange(5.0), 1), np.arange(5.0))


def write_calibrated(run, calibration, name="ball"):
    plan = tiny_plan(labels=(Label(name=name, value=1), Label(name="rod", value=2)))
    save_model(
        run / "model.safetensors", ModelCard(name="tiny", plan=plan, calibration=calibration), {"w": torch.ones(1)}
    )
    write_run_report(run)
    return (run / "report.html").read_text(encoding="utf-8")


def reliability(error, voxels=(10,) * BINS):
    middles = tuple((one + 0.5) / BINS for one in range(BINS))
    return Reliability(voxels=voxels, probability=middles, frequency=middles[::-1], error=error)


def test_the_calibration_is_stated_in_words_with_its_errors(tmp_path):
    run = write_run(tmp_path / "run", example_validation(), example_records())
    rated = LabelCalibration(error=0.0512, clean_error=0.0211, low_confidence=0.8, volume_coverage=0.9, cases=12)
    labels = {NASTY: rated, "rod": LabelCalibration(cases=3)}
    known = Calibration(temperature=1.3, labels=labels, before=reliability(0.1234), after=reliability(0.05), cases=12)
    page = Reader(write_calibrated(run, known, NASTY))
    (errors,) = [text for text in page.texts if "calibration error" in text]
    assert "12.3 percentage points before calibration, 5.0 after it (temperature 1.3)" in errors
    assert any("the 12 validation scans used" in text for text in page.texts)
    at = page.texts.index("volumes in interval")
    assert page.texts[at + 1 : at + 13] == [
        *(NASTY, "12", "0.051", "0.021", "0.800", "90%"),
        *("rod", "3", *["too few scans"] * 4),
    ]
    assert len(page.links) == 3


def test_a_run_without_a_calibration_says_so(tmp_path, page):
    run = write_run(tmp_path / "run", example_validation(), example_records())
    for texts in (Reader(page).texts, Reader(write_calibrated(run, None)).texts):
        assert [text for text in texts if "no calibration" in text] == [
            "There is no calibration, so results of this model state no expected Dice: training makes one where at "
            "least five validation cases have a label."
        ]
    nothing = Calibration(labels={}, before=reliability(0, (0,) * BINS), after=reliability(0, (0,) * BINS))
    texts = Reader(write_calibrated(run, nothing)).texts
    assert "No label was found in a validation scan, so results state no expected Dice." in texts


def test_the_reliability_diagram_leaves_gaps_where_no_voxel_was(monkeypatch):
    drawn = []
    monkeypatch.setattr("volseg.report.run_report._inline_svg", lambda figure, what: drawn.append(figure) or "")
    _reliability(reliability(0.2), reliability(0.1, (0, *(7,) * (BINS - 1))))
    left, right = drawn[0].axes
    _, before, after = left.get_lines()
    assert before.get_xdata() == pytest.approx(np.arange(5, 100, 10))
    assert before.get_ydata() == pytest.approx(np.arange(95, 0, -10))
    assert np.isnan(after.get_ydata()).tolist() == [True, *[False] * (BINS - 1)]
    assert [bar.get_height() for bar in right.patches] == [10] * BINS + [0] + [7] * (BINS - 1)
