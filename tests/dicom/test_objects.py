"""What objects say of patient and study: as the source states it, however odd, and nothing private."""

import shutil
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from tests.data.io.dicom.writers import classic, read, write, write_all
from tests.dicom.results import about, frames, made, series, some_labels, written
from volseg.config import Label
from volseg.dicom.objects import Kind, describe, one_line, series_number
from volseg.dicom.segmentation import segmentation
from volseg.dicom.source import source_of
from volseg.dicom.structures import structure_set
from volseg.errors import InputError, ResourceError

REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
NAMES = {
    "empty": ("", "Secret^Name"),
    "latin 1": ("ISO_IR 100", "Buc^Jérôme"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "UTF-8": ("ISO_IR 192", "Müller^Ἀθηνᾶ=王^小東"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
}


def named(folder, character_set, name):
    """A series whose patient has a name in a character set."""

    def change(_, data):
        data.SpecificCharacterSet, data.PatientName = character_set, name

    return series(folder, change=change)


@pytest.mark.parametrize(("character_set", "name"), NAMES.values(), ids=NAMES)
def test_names_read_back_as_they_were(tmp_path, character_set, name):
    path = named(tmp_path / "series", character_set, name)
    labels = some_labels()
    data = written(tmp_path / "seg.dcm", about(path, labels), labels)
    before = pydicom.dcmread(next(path.iterdir()))
    assert data.PatientName == before.PatientName == name
    assert data.get("SpecificCharacterSet") in (before.SpecificCharacterSet or None, "ISO_IR 192")
    assert data["PatientName"].value.components == before["PatientName"].value.components


@pytest.mark.parametrize("name", NAMES)
def test_a_label_that_the_character_set_of_the_source_lacks_moves_all_to_utf_8(tmp_path, name):
    path = named(tmp_path / "series", *NAMES[name])
    label, labels = Label(name="Ωβ 肝臓 סרטן", value=1), some_labels(values=(1,))
    data = written(tmp_path / "seg.dcm", about(path, labels, [label]), labels)
    # GB18030 holds every character as well.
    assert data.SpecificCharacterSet == ("GB18030" if name == "Chinese" else "ISO_IR 192")
    assert data.SegmentSequence[0].SegmentLabel == label.name
    assert data.PatientName == NAMES[name][1]


def test_bytes_without_a_stated_character_set_read_back_as_pydicom_reads_them(tmp_path):
    path = series(tmp_path / "series", PatientName="Müller^A".encode("latin-1"))
    labels = some_labels()
    data = written(tmp_path / "seg.dcm", about(path, labels), labels)
    assert data.PatientName == pydicom.dcmread(next(path.iterdir())).PatientName


def test_a_character_set_that_does_not_exist_is_not_carried(tmp_path):
    path = series(tmp_path / "series", SpecificCharacterSet="ISO_IR 100")
    for file in path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 999"))
    labels = some_labels()
    data = written(tmp_path / "seg.dcm", about(path, labels), labels)
    assert "SpecificCharacterSet" not in data
    assert data.PatientName == "Secret^Name"


def test_missing_attributes_that_are_required_are_there_and_empty(tmp_path):
    data = made(tmp_path, PatientName=None)
    assert all(name in data and not data[name].value for name in REQUIRED)


def test_odd_values_are_carried_as_they_are(tmp_path):
    odd = {
        "PatientBirthDate": "not a date", "StudyDate": "2020.01.19", "StudyTime": "25:61", "PatientSex": "female",
        "AccessionNumber": "longer than sixteen characters", "PatientAge": "old",
    }  # fmt: skip
    path = series(tmp_path / "series", **odd)
    labels = some_labels()
    data = written(tmp_path / "seg.dcm", about(path, labels), labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert {name: str(data[name].value) for name in odd} == odd


def test_patient_and_study_are_those_of_the_source(tmp_path):
    stated = {
        "PatientID": "P 1", "PatientBirthDate": "19700101", "PatientSex": "O", "StudyID": "S1", "StudyDate": "20200119",
        "StudyTime": "101112", "AccessionNumber": "A1", "StudyDescription": "CT", "PatientWeight": "70.5",
        "ReferringPhysicianName": "Doctor^A", "ClinicalTrialSubjectID": "subject",
    }  # fmt: skip
    data = made(tmp_path, **stated)
    assert {name: str(data[name].value) for name in stated} == stated
    assert (data.SeriesDate, data.SeriesTime, data.ContentDate) == ("20200119", "101112", "20200119")


def test_private_attributes_and_others_of_the_source_stay_there(tmp_path):
    def change(_, data):
        data.private_block(0x0029, "SOMETHING", create=True).add_new(1, "LO", "Secret")
        data.RequestAttributesSequence = [Dataset()]
        data.StationName, data.InstitutionName, data.OperatorsName = "S", "I", "O"

    data = made(tmp_path, change=change)
    assert not [one for one in data.iterall() if one.tag.is_private]
    assert not {"RequestAttributesSequence", "StationName", "InstitutionName", "OperatorsName"} & set(data.dir())


def test_the_headers_of_the_source_stay_as_they_were(tmp_path):
    path = named(tmp_path / "series", *NAMES["Japanese"])
    labels = some_labels()
    what = about(path, labels)
    before = [one.to_json() for one in what.source.files]
    written(tmp_path / "seg.dcm", what, labels)
    assert [one.to_json() for one in what.source.files] == before


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_sources_in_other_transfer_syntaxes(tmp_path, syntax):
    array = np.random.default_rng(0).integers(0, 100, (6, 5, 4)).astype(np.int16)
    plain = classic(array, PatientWeight="70", PatientID="P", StudyDate="20200119")
    for data in plain:
        if syntax == ExplicitVRBigEndian:
            data["PixelData"].value = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
            for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
                setattr(data, name, data[name].value)
            for name in ("PatientID", "StudyDate", "PatientWeight"):
                setattr(data, name, data[name].value)
    path = tmp_path / "series"
    write_all(path, plain, syntax=syntax)
    labels = some_labels()
    data = written(tmp_path / "seg.dcm", about(path, labels), labels)
    assert (data.PatientID, data.StudyDate, float(data.PatientWeight)) == ("P", "20200119", 70)
    assert data.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert len(frames(data)) == 5


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("7", 701),
        (None, 9001),
        ("-3", 9001),
        ("2.5", 9001),
        ("abc", 9001),
        ("21474835", 2147483501),
        ("21474836", 9001),
    ],
)
def test_the_series_number_says_where_the_result_comes_from(tmp_path, stated, expected):
    source = source_of(read(series(tmp_path / "series", SeriesNumber=stated)))
    assert series_number(source, Kind("segmentation", "SEG", "1.2", 1)) == expected


def test_the_series_description_says_model_kind_and_research_use(tmp_path):
    path = series(tmp_path / "series")
    labels = some_labels()
    what = about(path, labels, model="a\\b " + "long " * 30)
    data = Dataset()
    describe(data, Kind("segmentation", "SEG", "1.2", 1), what.source, what.identity, what.model)
    assert data.SeriesDescription.endswith("(research use only)")
    assert data.SeriesDescription.startswith("a b long")
    assert len(data.SeriesDescription) <= 64
    assert (data.InstanceNumber, data.Manufacturer) == (1, "volseg")


def test_a_series_spread_over_folders_and_in_a_zip_is_one_source(tmp_path):
    path = series(tmp_path / "whole")
    for at, file in enumerate(sorted(path.iterdir())):
        target = tmp_path / "spread" / f"part{at % 2}" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    zipped = shutil.make_archive(str(tmp_path / "zipped"), "zip", path)
    labels = some_labels()
    contents = []
    for at, one in enumerate((path, tmp_path / "spread", tmp_path / "zipped.zip")):
        written(tmp_path / f"{at}.dcm", about(one, labels), labels)
        contents.append((tmp_path / f"{at}.dcm").read_bytes())
    assert zipped.endswith(".zip")
    assert contents[0] == contents[1] == contents[2]


def test_one_volume_of_a_4_d_series_refers_to_its_own_slices(tmp_path):
    labels = some_labels()
    folder, found = tmp_path / "series", {}
    for volume in (1, 2):
        array = np.random.default_rng(volume).integers(0, 100, labels.shape).astype(np.int16)
        for k, data in enumerate(classic(array, TemporalPositionIdentifier=str(volume))):
            data.SOPInstanceUID = f"1.2.3.4.{volume}.{k + 1}"
            write(data, folder / f"{volume}-{k}.dcm")
    for volume in (1, 2):
        data = written(tmp_path / "seg.dcm", about(folder, labels, volume=volume), labels)
        assert data.SeriesDescription == f"model: segmentation, volume {volume} (research use only)"
        found[volume] = {one.ReferencedSOPInstanceUID for one in data.SourceImageSequence}
        assert found[volume] == {f"1.2.3.4.{volume}.{k + 1}" for k in range(4)}


def test_slices_of_one_name_are_refused(tmp_path):
    path = series(tmp_path / "series", change=lambda k, data: setattr(data, "SOPInstanceUID", f"1.2.{max(k, 1)}"))
    with pytest.raises(InputError, match=r"has the SOPInstanceUID of .*, expected one of its own.*export the series"):
        source_of(read(path))


def test_slices_of_different_patients_give_a_warning_without_their_data(tmp_path):
    def change(k, data):
        if k:
            data.PatientName, data.PatientSex, data.PatientBirthDate = "Another^Secret", "F", "19800101"

    stated = {"PatientName": "Secret^Name", "PatientSex": "M", "PatientBirthDate": "19800101"}
    (warning,) = source_of(read(series(tmp_path / "series", change=change, **stated))).warnings
    assert "differ in PatientName, PatientSex; DICOM results state what the first slice states" in warning
    assert "Secret" not in warning
    assert not source_of(read(series(tmp_path / "one", **stated))).warnings


@pytest.mark.parametrize("name", ["\\", "\n", "  "])
def test_a_name_without_anything_to_show_is_the_value(tmp_path, name):
    labels, label = some_labels(values=(3,)), Label(name=name, value=3)
    what = about(series(tmp_path / "series"), labels, [label])
    segment = segmentation(labels, what).SegmentSequence[0]
    assert structure_set(labels, what).StructureSetROISequence[0].ROIName == segment.SegmentLabel == "label 3"
    assert segment.TrackingID == "model: label 3"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "label 3"


def test_labels_of_one_name_are_tracked_apart(tmp_path):
    labels = some_labels()
    what = about(series(tmp_path / "series"), labels, [Label(name="one", value=1), Label(name="one", value=7)])
    assert len({one.TrackingUID for one in segmentation(labels, what).SegmentSequence}) == 2


def test_a_full_disk_is_told_in_one_sentence(tmp_path, monkeypatch):
    """The pixels are larger than what is written at once, so that the disk is full within their element."""
    labels = some_labels((80, 70, 6))
    what = about(series(tmp_path / "series", shape=labels.shape), labels)
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    monkeypatch.setattr("volseg.files.whole.temporary_path", lambda _: full)
    with pytest.raises(ResourceError) as caught:
        written(tmp_path / "seg.dcm", what, labels, labelmap=True)
    advice = "Free some space or choose another place."
    assert str(caught.value) == f"Could not write {tmp_path / 'seg.dcm'}: No space left on device. {advice}"
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize(
    ("text", "expected"), [("a\\b\nc", "a b c"), (" x ", "x"), ("é" * 70, "é" * 64), ("\0", ""), ("", "")]
)
def test_a_text_becomes_one_value_of_one_line(text, expected):
    assert one_line(text) == expected
