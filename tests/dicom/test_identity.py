"""UIDs, dates and times of results come from what the results are made of, and from nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.data.io.dicom.writers import read
from tests.dicom.results import SHA256, about, series, some_labels, written
from volseg.dicom.identity import NO_DATE, NO_TIME, identity_of
from volseg.dicom.source import source_of
from volseg.dicom.uids import derived_uid

ROOT = Path(__file__).parents[2]
ALONE = """
import sys
from pathlib import Path
from tests.dicom.results import about, some_labels, written
folder, path = map(Path, sys.argv[1:3])
labels = some_labels()
written(path, about(folder, labels), labels, labelmap="labelmap" in sys.argv)
"""


def in_a_process(folder, path, seed, *options):
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ALONE, str(folder), str(path), *options]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    return path.read_bytes()


@pytest.mark.parametrize("option", ["binary", "labelmap"])
def test_two_processes_write_the_same_bytes(tmp_path, option):
    folder = series(tmp_path / "series")
    first = in_a_process(folder, tmp_path / "1.dcm", "1", option)
    assert first == in_a_process(folder, tmp_path / "2.dcm", "2", option)
    assert len(first) > 1000


def test_another_folder_and_another_order_of_files_change_nothing(tmp_path):
    first = series(tmp_path / "first")
    second = tmp_path / "second"
    second.mkdir()
    for at, path in enumerate(sorted(first.iterdir(), reverse=True)):
        (second / f"{at}.dcm").write_bytes(path.read_bytes())
    labels = some_labels()
    written(tmp_path / "1.dcm", about(first, labels), labels)
    written(tmp_path / "2.dcm", about(second, labels), np.asfortranarray(labels))
    assert (tmp_path / "1.dcm").read_bytes() == (tmp_path / "2.dcm").read_bytes()


@pytest.fixture
def folder(tmp_path):
    return series(tmp_path / "series")


def uids(what):
    return {what.identity.uid("segmentation", part) for part in ("instance", "series")}


def test_whatever_decides_on_the_result_gives_other_uids(folder):
    labels = some_labels()
    moved = labels.copy()
    moved[0, 0, 0] = 1
    all_of_them = [
        about(folder, labels),
        about(folder, moved),
        about(folder, labels, sha256="f" * 64),
        about(folder, labels, options={"overlap": 0.25}),
        about(folder, labels).with_options({"labelmap"}),
        about(folder, labels).with_options({"labelmap", "empty-frames"}),
    ]
    assert len(set.union(*map(uids, all_of_them))) == 2 * len(all_of_them)


def test_another_source_gives_other_uids(folder, tmp_path):
    def change(k, data):
        data.SOPInstanceUID = f"1.2.3.5.{k}"

    other = series(tmp_path / "other", change=change)
    labels = some_labels()
    assert not uids(about(folder, labels)) & uids(about(other, labels))


def test_options_in_another_order_are_the_same_object(folder):
    what = about(folder, some_labels())
    assert uids(what.with_options(["a", "b"])) == uids(what.with_options(["b", "a"]))


def test_every_uid_of_an_object_is_of_the_source_or_derived(folder, tmp_path):
    labels = some_labels()
    what = about(folder, labels)
    data = written(tmp_path / "seg.dcm", what, labels)
    known = {"1.2.3", "1.2.3.4", "1.2.9", *(f"1.2.3.4.{k + 1}" for k in range(labels.shape[2]))}
    found = set()
    data.walk(lambda _, one: found.add(str(one.value)) if one.VR == "UI" else None)
    assert all(one.startswith(("2.25.", "1.2.840.10008.")) for one in found - known)
    assert all(len(one) <= 64 and pydicom.uid.UID(one).is_valid for one in found)


def test_a_derived_uid_is_a_uuid_by_name():
    found = derived_uid("a", "b")
    assert found == derived_uid("a", "b") != derived_uid("a\0b", "")
    number = int(found.removeprefix("2.25."))
    assert (number >> 76 & 0xF, number >> 62 & 0b11) == (5, 0b10)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"ContentDate": "20200229", "ContentTime": "235959.123456"}, ("20200229", "235959.123456")),
        ({"ContentDate": "20210229", "StudyDate": "20200101", "StudyTime": "120000"}, ("20200101", "120000")),
        ({"SeriesDate": "20200101", "SeriesTime": "250000"}, ("20200101", NO_TIME)),
        ({"AcquisitionDate": "2020.01.01"}, (NO_DATE, NO_TIME)),
        ({"StudyDate": "20200101", "StudyTime": "1200"}, ("20200101", NO_TIME)),
        ({}, (NO_DATE, NO_TIME)),
    ],
)
def test_date_and_time_are_of_the_source(tmp_path, stated, expected):
    scan = read(series(tmp_path / "series", **stated))
    found = identity_of(source_of(scan), SHA256, {}, some_labels())
    assert (found.date, found.time) == expected


def test_the_order_of_labels_in_memory_does_not_matter(folder):
    labels = some_labels()
    assert uids(about(folder, labels)) == uids(about(folder, np.asfortranarray(labels)))
