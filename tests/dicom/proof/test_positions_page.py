"""The page about positions is complete, everything on it is right, and a row measured again says the same."""

import logging
import re
from itertools import groupby
from pathlib import Path

import pytest

from benchmarks.dicom import page, positions
from tests.dicom.proof.kinds import dicom_outputs
from tests.dicom.proof.other_software import readers_of
from tests.dicom.proof.phantom_series import Series
from tests.dicom.proof.positions import LEAST_DICE, all_series

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "dicom-positions.md"
MEASURED_AGAIN = ("oblique", "down", "unequal", "classic")
OUTPUTS = ("source", *(one for one in dicom_outputs() if not one.startswith("dicom-sr:")))


@pytest.fixture(scope="module")
def sections():
    """By output: the names of the readers, and the cells of each series."""
    found = {}
    for name, body in re.findall(r"^### (\S+)\n\n(.*?)\n(?=\n|\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines())
        found[name] = header[4:], {tuple(row[:4]): row[4:] for row in rows}
    return found


def values(cell):
    """Dice and millimetres; 0 where there is no place."""
    return [float(one or 0) for one in re.fullmatch(r"([\d.]+)(?:, ([\d.]+) mm)?", cell).groups()]


def test_every_format_and_series_is_on_the_page(sections):
    assert sections.keys() >= set(OUTPUTS)
    every = {(one.orientation, one.direction, one.spacing, one.kind) for one in all_series()}
    for output, (readers, rows) in sections.items():
        assert rows.keys() == every
        assert {one.software for one in readers_of(output)} <= set(readers)


def test_everything_on_the_page_is_right(sections):
    for output, (_, rows) in sections.items():
        least = LEAST_DICE.get(output.split(":")[0], 1.0)
        for what, cells in rows.items():
            for dice, millimetres in map(values, cells):
                assert dice >= least, (output, what)
                # Half a voxel along the shortest side of one.
                assert millimetres <= 0.5, (output, what)


def test_a_row_measured_again_says_the_same(sections, tmp_path, monkeypatch):
    # highdicom warns that it has no standard for parts of odd files.
    monkeypatch.setattr(logging.getLogger("highdicom"), "disabled", True)
    found = {}
    for modality in ("CT", "MR"):
        series = Series(*MEASURED_AGAIN, modality)
        for key, one in positions.measure(series, tmp_path / modality, with_peers=False).items():
            found.setdefault(key, {})[series] = one
    for output, group in groupby(found.items(), lambda one: one[0][0]):
        by_reader = {reader: measured for (_, reader), measured in group}
        readers, rows = sections[output]
        row = page.row(MEASURED_AGAIN, by_reader).strip("|").split("|")[4:]
        for reader, cell in zip(by_reader, row, strict=True):
            if not next(iter(by_reader[reader].values())).reason:
                assert values(cell.strip()) == pytest.approx(
                    values(rows[MEASURED_AGAIN][readers.index(reader)]), abs=0.005
                )
