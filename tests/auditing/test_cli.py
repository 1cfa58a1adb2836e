"""volseg audit on the terminal: the table, and exit codes."""

from typer.testing import CliRunner

from tests.cli.test_forwarding import AUDITED
from volseg.api.audit import audit as home
from volseg.cli import app


def answered(monkeypatch, document, *options):
    monkeypatch.setattr(home, "audit", lambda *_, **__: document)
    return CliRunner().invoke(app, ["audit", "run", *options])


def test_the_table_shows_place_and_size(monkeypatch):
    result = answered(monkeypatch, AUDITED, "--output", "there")
    assert result.exit_code == 0
    assert "Most suspicious of 2 cases" in result.stdout
    assert "1, 2, 3" in result.stdout
    assert "all labels" in result.stdout
    assert "scores above 3: 2 of 2; in a dataset without errors few are" in result.stdout
    assert "pictures: there/audit.html" in result.stdout


def test_cases_that_could_not_be_compared_give_exit_code_3(monkeypatch):
    failed = {**AUDITED, "failed": [{"name": "b", "error": "gone"}]}
    assert answered(monkeypatch, failed).exit_code == 3
    assert answered(monkeypatch, failed, "--json").exit_code == 3


def test_a_folder_that_is_no_run_is_wrong_usage(tmp_path):
    result = CliRunner().invoke(app, ["audit", str(tmp_path)])
    assert result.exit_code == 2
    assert "not a run folder" in result.stderr
