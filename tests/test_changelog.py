"""The changelog: short entries in releases, of which the newest is the package's version."""

import re
from datetime import date
from pathlib import Path

from volseg.version import __version__

LINES = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()


def test_the_newest_release_is_the_version_of_the_package():
    releases = [re.fullmatch(r"## \[(\d+\.\d+\.\d+)\] - (\S+)", line) for line in LINES if line.startswith("## [")]
    assert releases[0] is None, "changes since the newest release go under [Unreleased]"
    found = [(match[1], date.fromisoformat(match[2])) for match in releases if match]
    assert found[0][0] == __version__
    assert found == sorted(found, key=lambda release: release[1], reverse=True)


def test_entries_are_single_short_lines():
    entries = LINES[LINES.index("## [Unreleased]") :]
    assert all(re.fullmatch(r"(- .{1,108}|### (Added|Changed|Fixed|Removed)|## .*|)", line) for line in entries)
    assert len(entries) > 50
