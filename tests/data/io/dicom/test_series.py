"""Which series of several is meant, and what the messages say of each."""

import pytest

from tests.data.images import ramp
from tests.data.io.dicom.writers import CT, MR, affine_of, assert_volume, classic, enhanced, put, read, stack, write_all
from volseg.data.io.choice import Choice
from volseg.data.io.dicom.reader import count_volumes, series_uids
from volseg.errors import InputError

ARRAY, OTHER = ramp(), ramp((6, 4, 2)) + 500
AFFINE = affine_of(stack(5))


def two_series(folder, kind=classic, **second):
    """ARRAY as series 7, and OTHER as series 8."""
    for name, made in (
        ("a", kind(ARRAY)),
        ("b", kind(OTHER, **{"SeriesInstanceUID": "1.2.3.5", "SeriesNumber": "8"} | second)),
    ):
        write_all(folder / name, made if isinstance(made, list) else [made])
    return folder


@pytest.mark.parametrize("kind", [classic, enhanced])
def test_several_series_are_listed_without_patient_data(tmp_path, kind):
    second = {"SeriesDescription": "t1 \t fast", "EchoTime": "2.5"} if kind is classic else {}
    with pytest.raises(InputError, match="2 DICOM series; choose one with --series NUMBER or UID") as caught:
        read(two_series(tmp_path, kind, **second))
    lines = str(caught.value).split("\n")[1:]
    if kind is classic:
        assert lines == [
            "  number 7: MR, 5 images of 3 x 4, 0.5 x 0.75 mm",
            "  number 8: MR, t1 fast, 2 images of 6 x 4, 0.5 x 0.75 mm, echo time 2.5 ms",
        ]
    else:
        assert [line[:34] for line in lines] == [
            "  number 7: MR, 5 images of 3 x 4",
            "  number 8: MR, 2 images of 6 x 4",
        ]
    assert "Secret" not in str(caught.value)


@pytest.mark.parametrize("kind", [classic, enhanced])
@pytest.mark.parametrize("series", ["8", "1.2.3.5"])
def test_a_series_by_number_and_by_uid(tmp_path, kind, series):
    folder = two_series(tmp_path, kind)
    assert_volume(read(folder, series=series), OTHER)
    assert_volume(read(folder, series="7"), ARRAY, AFFINE)
    assert count_volumes(folder, Choice(series=series)) == 1


def test_a_number_that_fits_two_series(tmp_path):
    folder = two_series(tmp_path, SeriesNumber="7")
    with pytest.raises(InputError, match=r"2 series of number 7; choose one by its UID: 1\.2\.3\.4, 1\.2\.3\.5"):
        read(folder, series="7")
    assert_volume(read(folder, series="1.2.3.5"), OTHER)


@pytest.mark.parametrize("owner", [{"PatientID": "Doe-2"}, {"StudyInstanceUID": "1.2.9"}])
def test_one_uid_in_two_studies_or_patients(tmp_path, owner):
    """Slices that would fit on top of the others: some anonymisers write one UID into all files."""
    above = classic(ramp((3, 4, 2)), stack(7)[5:], **owner)
    folder = write_all(tmp_path, [*classic(ARRAY, PatientID="Doe-1"), *above])
    for chosen in ({}, {"series": "7"}, {"series": "1.2.3.4"}):
        with pytest.raises(
            InputError, match="one SeriesInstanceUID in 2 studies or patients: give the folder"
        ) as caught:
            read(folder, **chosen)
        assert "Doe" not in str(caught.value)


def own_uids(k, data):
    data.SeriesInstanceUID = f"1.2.3.{k + 1}"


def test_a_series_uid_for_each_slice(tmp_path):
    made = classic(ARRAY, change=own_uids, SeriesDescription="AX T1")
    folder = write_all(tmp_path, made)
    for chosen in ({}, {"series": "7"}, {"series": "1.2.3.4"}):
        scan = read(folder, **chosen)
        assert_volume(scan, ARRAY, AFFINE)
        assert scan.warnings[0].startswith(
            "Every image has a SeriesInstanceUID of its own, as some scanners write; the 5"
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ImagePositionPatient", "0\\0\\0"),
        ("SeriesDescription", ["a", "b", "c", "d", "e"]),
        ("StudyInstanceUID", ["1.1", "1.2", "1.3", "1.4", "1.5"]),
        ("PixelSpacing", ["1\\1", "2\\2", "3\\3", "4\\4", "5\\5"]),
        ("SeriesNumber", None),
    ],
)
def test_series_of_one_image_that_are_no_slices_of_one_scan(tmp_path, name, value):
    def change(k, data):
        own_uids(k, data)
        put(data, name, value[k] if isinstance(value, list) else value)

    with pytest.raises(
        InputError, match=r"(?s)contains 5 DICOM series.*\nEvery image has a SeriesInstanceUID of its own"
    ):
        read(write_all(tmp_path, classic(ARRAY, change=change)))


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 100", "GB18030"])
def test_descriptions_in_their_character_set(tmp_path, charset):
    folder = two_series(tmp_path, SpecificCharacterSet=charset, SeriesDescription="Schädel\x07")
    with pytest.raises(InputError, match=r"number 8: MR, Schädel") as caught:
        read(folder)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_leading_zeros_of_a_series_number(tmp_path):
    folder = two_series(tmp_path, SeriesNumber="08")
    for number in ("8", "08", "008"):
        assert_volume(read(folder, series=number), OTHER)


def test_series_of_one_number_are_listed_with_their_uids(tmp_path):
    with pytest.raises(InputError, match=r"(?s)number 7: MR, 5 .* mm, UID 1\.2\.3\.4\n.*UID 1\.2\.3\.5$"):
        read(two_series(tmp_path, SeriesNumber="007"))


@pytest.mark.parametrize("series", ["9", "1.2.3", ""])
def test_a_series_that_is_not_there(tmp_path, series):
    with pytest.raises(InputError, match=rf"has no series {series}; choose one of its 2 series:\n  number 7"):
        read(two_series(tmp_path), series=series)


ASIDE = {
    "localiser": ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, None, "localiser"),
    "scout": ({"ImageType": "ORIGINAL\\PRIMARY\\SCOUT"}, None, "localiser"),
    "screenshot": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, None, "secondary capture"),
    "other modality": ({"Modality": "CT", "SOPClassUID": CT}, "MR", "the model takes MR"),
    "derived": ({"ImageType": "DERIVED\\SECONDARY\\MPR"}, "MR", "derived"),
}


@pytest.mark.parametrize("name", ASIDE)
def test_a_series_that_cannot_be_meant_is_set_aside(tmp_path, name):
    second, modality, reason = ASIDE[name]
    folder = two_series(tmp_path, **second)
    scan = read(folder, modality=modality)
    assert_volume(scan, ARRAY, AFFINE)
    assert scan.warnings[0].startswith("Series 7 is taken; set aside: number 8")
    assert f"({reason})" in scan.warnings[0]
    # A chosen series is taken whatever it is.
    assert_volume(read(folder, modality=modality, series="8"), OTHER)
    if modality:
        with pytest.raises(InputError, match="contains 2 DICOM series"):
            read(folder)


def test_a_lone_series_is_taken_whatever_it_is(tmp_path):
    folder = write_all(tmp_path, classic(ARRAY, Modality="CT", ImageType="DERIVED\\SECONDARY\\LOCALIZER"))
    assert_volume(read(folder, modality="MR"), ARRAY, AFFINE)


def test_none_or_two_left_are_listed(tmp_path):
    folder = two_series(tmp_path)
    for modality in ("MR", "CT"):
        with pytest.raises(InputError, match="contains 2 DICOM series"):
            read(folder, modality=modality)


@pytest.mark.parametrize("kind", [classic, enhanced])
@pytest.mark.parametrize("uid", [None, "", " "])
def test_files_without_series_uid_are_one_series(tmp_path, kind, uid):
    made = kind(ARRAY, SeriesInstanceUID=uid)
    scan = read(write_all(tmp_path, made if isinstance(made, list) else [made]))
    assert_volume(scan, ARRAY, AFFINE)
    assert scan.warnings == ("SeriesInstanceUID is absent; the 5 images are taken as one series.",)


def test_files_without_series_uid_are_told_apart_by_study_and_number(tmp_path):
    made = [*classic(ARRAY, SeriesInstanceUID=None), *classic(OTHER, SeriesInstanceUID=None, SeriesNumber="8")]
    folder = write_all(tmp_path, made)
    with pytest.raises(InputError, match="contains 2 DICOM series"):
        read(folder)
    assert_volume(read(folder, series="8"), OTHER)


def test_a_word_as_series_uid(tmp_path):
    scan = read(write_all(tmp_path, classic(ARRAY, SeriesInstanceUID="ANONYMOUS")))
    assert_volume(scan, ARRAY, AFFINE)
    assert scan.warnings == ()


@pytest.mark.parametrize("number", ["x", "", "nan", "1e3", "7\\8", None])
def test_an_odd_series_number_is_no_fault(tmp_path, number):
    assert_volume(read(write_all(tmp_path, classic(ARRAY, SeriesNumber=number))), ARRAY, AFFINE)


def test_series_uids_of_files(tmp_path):
    folder = two_series(tmp_path, SOPClassUID=MR)
    names = sorted(folder.rglob("*.dcm"))
    assert series_uids(names) == {"1.2.3.4": "", "1.2.3.5": ""}
    (tmp_path / "note.dcm").write_text("nothing")
    assert series_uids([tmp_path / "note.dcm"]) == {}
