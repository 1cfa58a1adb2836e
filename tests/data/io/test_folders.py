"""Folders of DICOM: one series in several folders is one scan, and nothing in a folder is passed over silently."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.images import nifti, ramp, save, write_series
from volseg.data.io.any_scan import as_scan
from volseg.data.io.choice import Choice
from volseg.data.io.inputs import Case, by_volume, find_cases
from volseg.data.io.reading import count_volumes, read_scan
from volseg.errors import InputError, UsageError

ONE = ("image",)
STACK = np.stack([np.zeros(6), np.zeros(6), 2.0 * np.arange(6)], axis=1)
WHOLE = ramp((3, 4, 6))


def series(folder: Path, slices: slice = slice(None), uid: str = "1.2.3.4", **tags: str) -> Path:
    """Some slices of a series of six."""
    chosen = np.arange(6)[slices]
    return write_series(folder, WHOLE[:, :, chosen], STACK[chosen], series=uid, first=int(chosen[0]), **tags)


def without_suffix(folder: Path) -> None:
    for file in folder.glob("*.dcm"):
        file.rename(file.with_name(file.stem.replace(".", "_")))


def read(case: Case) -> np.ndarray:
    return read_scan(case.paths[0], choice=case.choice).channels[0]


def test_one_series_in_two_folders_is_one_scan(tmp_path: Path) -> None:
    series(tmp_path / "study" / "a", slice(0, 3))
    series(tmp_path / "study" / "b", slice(3, 6))
    (case,) = find_cases([tmp_path / "study"], ONE)
    assert case.name == "study"
    np.testing.assert_array_equal(read(case), WHOLE)


def test_the_rest_of_a_series_in_a_linked_folder(tmp_path: Path) -> None:
    series(tmp_path / "study", slice(0, 3))
    series(tmp_path / "elsewhere", slice(3, 6))
    os.symlink(tmp_path / "elsewhere", tmp_path / "study" / "more")
    os.symlink(tmp_path / "study", tmp_path / "elsewhere" / "back")
    (case,) = find_cases([tmp_path / "study"], ONE)
    np.testing.assert_array_equal(read(case), WHOLE)


@pytest.mark.parametrize("bare", [False, True])
def test_slices_beside_the_folder_of_another_series_are_two_scans(tmp_path: Path, bare: bool) -> None:
    series(tmp_path / "study")
    series(tmp_path / "study" / "sub", slice(0, 4), "1.2.3.5")
    if bare:
        without_suffix(tmp_path / "study")
    cases = find_cases([tmp_path / "study"], ONE)
    assert sorted(case.name for case in cases) == ["study", "sub"]
    shapes = {case.name: read(case).shape for case in cases}
    assert shapes == {"study": (3, 4, 6), "sub": (3, 4, 4)}


def test_two_series_that_share_folders_are_told_apart(tmp_path: Path) -> None:
    """Half of each series lies in each of two folders."""
    for folder, part in (("a", slice(0, 3)), ("b", slice(3, 6))):
        series(tmp_path / folder, part)
        series(tmp_path / folder / "more", part, "1.2.3.5")
        for file in (tmp_path / folder / "more").iterdir():
            file.rename(tmp_path / folder / f"x{file.name}")
        (tmp_path / folder / "more").rmdir()
    cases = find_cases([tmp_path], ONE)
    assert len({case.name for case in cases}) == len(cases) == 2
    for case in cases:
        np.testing.assert_array_equal(read(case), WHOLE)


def test_folders_of_one_name_have_the_name_of_the_folders_around_them(tmp_path: Path) -> None:
    series(tmp_path / "all" / "p1" / "SE0", uid="1.2.3.1")
    series(tmp_path / "all" / "p2" / "SE0", uid="1.2.3.2")
    assert [case.name for case in find_cases([tmp_path / "all"], ONE)] == ["p1_SE0", "p2_SE0"]


def test_if_one_scan_needs_the_folders_in_its_name_all_have_them(tmp_path: Path) -> None:
    for number, place in enumerate(("p1/s1", "p2/s1", "p1/s2")):
        series(tmp_path / place, uid=f"1.2.3.{number}")
    assert [case.name for case in find_cases([tmp_path], ONE)] == ["p1_s1", "p1_s2", "p2_s1"]


def test_names_of_folders_that_meet_are_numbered(tmp_path: Path) -> None:
    for number, place in enumerate(("A_1", "A/1", "B/1")):
        series(tmp_path / place, uid=f"1.2.3.{number}")
    assert [case.name for case in find_cases([tmp_path], ONE)] == ["A_1_1", "A_1_2", "B_1"]


@pytest.mark.parametrize("top", [[], ["a.nii.gz"]])
def test_scans_in_subfolders_are_named_where_they_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, top: list[str]
) -> None:
    series(tmp_path / "pat1" / "dicom")
    series(tmp_path / "pat2" / "dicom", uid="1.2.3.5")
    for name in [*top, "pat3/scan.nii.gz", "pat4/slices.zip", "pat5/.hidden.nii.gz", ".trash/b.nii.gz"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert len(find_cases([tmp_path], ONE)) == 2 + len(top)
    assert [record.getMessage() for record in caplog.records] == [
        f"Passed over in {tmp_path}, because only DICOM is looked for in sub-folders: pat3/scan.nii.gz, "
        "pat4/slices.zip. Give them, or their folders."
    ]


def test_a_chosen_series_passes_over_other_scans_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series(tmp_path / "s")
    (tmp_path / "a.nii").touch()
    (case,) = find_cases([tmp_path], ONE, choice=Choice(series="7"))
    np.testing.assert_array_equal(read(case), WHOLE)
    assert "because a series is chosen: a.nii." in caplog.text


@pytest.mark.parametrize("hidden", [".b", ".Trash", "__MACOSX"])
def test_finding_and_reading_agree_on_hidden_folders(tmp_path: Path, hidden: str) -> None:
    series(tmp_path / "study", slice(0, 3))
    series(tmp_path / "study" / hidden, slice(3, 6))
    (case,) = find_cases([tmp_path / "study"], ONE)
    np.testing.assert_array_equal(read(case), WHOLE[:, :, :3])


LOCALISER = {"0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
CAPTURE = {"0008_0016": "1.2.840.10008.5.1.4.1.1.7", "0008_0060": "OT"}


@pytest.mark.parametrize(("tags", "reason"), [(LOCALISER, "localiser"), (CAPTURE, "secondary capture")])
def test_a_localiser_in_a_folder_of_its_own_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tags: dict[str, str], reason: str
) -> None:
    series(tmp_path / "1_loc", slice(0, 4), "1.2.3.5", **tags)
    series(tmp_path / "3_t1", **{"0008_0008": "DERIVED\\PRIMARY"})
    (case,) = find_cases([tmp_path], ONE)
    assert case.name == "3_t1"
    np.testing.assert_array_equal(read(case), WHOLE)
    assert f"Set aside in {tmp_path}, where there are other series: 1_loc ({reason})." in caplog.text


def test_a_localiser_alone_or_below_a_series(tmp_path: Path) -> None:
    series(tmp_path / "study" / "loc", slice(0, 4), "1.2.3.5", **LOCALISER)
    (alone,) = find_cases([tmp_path / "study"], ONE)
    assert read(alone).shape == (3, 4, 4)
    series(tmp_path / "study", **{"0008_0008": "DERIVED\\PRIMARY"})
    (case,) = find_cases([tmp_path / "study"], ONE)
    assert case.name == "study"
    np.testing.assert_array_equal(read(case), WHOLE)


def test_the_rest_of_a_series_beside_a_localiser(tmp_path: Path) -> None:
    series(tmp_path / "a", slice(0, 3))
    series(tmp_path / "b", slice(3, 6))
    series(tmp_path / "loc", slice(0, 4), "1.2.3.5", **LOCALISER)
    (case,) = find_cases([tmp_path], ONE)
    np.testing.assert_array_equal(read(case), WHOLE)


def test_series_without_a_uid_beside_each_other_are_rejected(tmp_path: Path) -> None:
    for folder in (tmp_path / "study", tmp_path / "study" / "sub"):
        series(folder)
        for file in folder.glob("*.dcm"):
            content = file.read_bytes()
            assert b"\x20\0\x0e\0" in content
            file.write_bytes(content.replace(b"\x20\0\x0e\0", b"\x20\0\x0f\0"))
    with pytest.raises(InputError, match="without SeriesInstanceUID next to those of other series"):
        find_cases([tmp_path / "study"], ONE)


@pytest.mark.parametrize("name", ["slice.img", "slice", "1.2.840.1", "slice.ima"])
def test_slices_are_found_by_their_content_under_any_name(tmp_path: Path, name: str) -> None:
    folder = series(tmp_path / "s")
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"{number}{name}")
    (case,) = find_cases([folder], ONE)
    np.testing.assert_array_equal(read(case), WHOLE)
    (alone,) = find_cases([folder / f"0{name}"], ONE)
    assert read(alone).shape == (3, 4, 1)


def test_a_folder_is_one_scan_if_a_series_is_chosen(tmp_path: Path) -> None:
    series(tmp_path / "a", slice(0, 4))
    series(tmp_path / "b", uid="1.2.3.5", **{"0020_0011": "8"})
    for wanted in ("8", "1.2.3.5"):
        (case,) = find_cases([tmp_path], ONE, choice=Choice(series=wanted))
        np.testing.assert_array_equal(read(case), WHOLE)
    with pytest.raises(InputError, match="has no series 9; choose one of its 2 series:\n  number 7: MR"):
        read_scan(tmp_path, choice=Choice(series="9"))


def test_a_series_of_a_file_that_is_no_dicom_is_rejected(tmp_path: Path) -> None:
    path = save(nifti(WHOLE), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a\.nii is not DICOM, so it has no series 2"):
        read_scan(path, choice=Choice(series="2"))


def test_volumes_of_a_4d_image(tmp_path: Path) -> None:
    path = save(nifti(np.stack([WHOLE, WHOLE + 1, WHOLE + 5], axis=-1)), tmp_path / "a.nii.gz")
    assert count_volumes(path) == 3
    cases = by_volume(Case("a", (path,), ".nii.gz"), 3)
    assert [case.name for case in cases] == ["a_t1", "a_t2", "a_t3"]
    for case, more in zip(cases, (0, 1, 5), strict=True):
        np.testing.assert_array_equal(read(case), WHOLE + more)
    for number in (0, 4):
        with pytest.raises(InputError, match=f"has no volume {number}; give a number from 1 to 3"):
            read_scan(path, choice=Choice(volume=number))


def test_a_3d_image_is_its_only_volume(tmp_path: Path) -> None:
    path = save(nifti(WHOLE), tmp_path / "a.nii")
    case = Case("a", (path,), ".nii")
    assert count_volumes(path) == 1
    assert by_volume(case, 1) == [case]
    np.testing.assert_array_equal(read_scan(path, choice=Choice(volume=1)).channels[0], WHOLE)


def test_nothing_is_chosen_within_an_object() -> None:
    with pytest.raises(UsageError, match="series and volume choose within a file"):
        as_scan((WHOLE, np.eye(4)), 1, Choice(volume=1))
