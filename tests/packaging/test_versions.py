"""Lists of versions agree with each other; the citation and the Makefile's help agree with what they name."""

import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.packaging.installing import ROOT
from volseg import __version__
from volseg.cli.console import NOT_FOR_PREDICTION

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def by_name(lines: Iterable[str]) -> dict[str, Requirement]:
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def listed(path: Path) -> dict[str, Version]:
    """The versions that a list of `name==version` pins."""
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pins = by_name(filter(None, lines))
    assert all(re.fullmatch(r"==[\d.]+", str(one.specifier)) for one in pins.values())
    return {name: Version(str(one.specifier).removeprefix("==")) for name, one in pins.items()}


CORE = by_name(PROJECT["dependencies"])
TESTED, LOWEST = listed(ROOT / "constraints.txt"), listed(ROOT / "constraints-lowest.txt")
PREDICT = listed(ROOT / "deploy" / "predict.txt")


def test_the_tested_versions_are_within_the_bounds() -> None:
    required = CORE | by_name(line for extra in EXTRAS.values() for line in extra)
    assert set(TESTED) == set(required)
    assert [name for name, one in required.items() if TESTED[name] not in one.specifier] == []


def test_the_lowest_versions_are_the_lower_bounds_of_all_but_torch() -> None:
    required = CORE | by_name(EXTRAS["test"])
    assert set(LOWEST) == set(required)
    assert LOWEST.pop("torch") == TESTED["torch"]
    for name, version in LOWEST.items():
        lower = [Version(one.version) for one in required[name].specifier if one.operator == ">="]
        assert lower == [version], name


def test_predicting_needs_all_but_what_training_and_drawing_import() -> None:
    assert set(CORE) - set(PREDICT) == NOT_FOR_PREDICTION
    assert not set(PREDICT) & {"scikit-learn", "scikit-image", "pytest"}


def test_predicting_is_installed_with_the_tested_versions() -> None:
    assert [name for name in set(PREDICT) & set(TESTED) if PREDICT[name] != TESTED[name]] == []


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["repository-code"] == PROJECT["urls"]["Source"]
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])


@pytest.mark.parametrize("target", ["help", "demo", "test", "test-long", "test-lowest", "check", "clean"])
def test_make_help_describes_every_target(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert target in re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split()
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(rf"^make {target} +\w+", done.stdout, re.MULTILINE)
