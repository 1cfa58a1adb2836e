"""Nothing that volseg prints, logs or writes says who the patient is; only DICOM objects do, as they must.

The series are in folders of neutral names, but their files and inner folders are named after the patient, as viewers
and CDs do. Results are named like their input, by contract, so a neutral input has neutral results.
"""

import gzip
import json
import logging
import shutil
import sys
import zipfile
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from typer.testing import CliRunner

import volseg
from tests.data.io.dicom.writers import classic, enhanced, put, stack, write
from tests.pipeline import blob, tiny_plan, write_model
from volseg.api.outputs import find_format, format_names
from volseg.cli import app
from volseg.config import Channel
from volseg.data.cases.phantom import write_phantoms

WORDS = ("quibbler", "zedekiah", "xylander", "774411", "558822", "993311", "19610402", "1961-04-02")
PATIENT = {
    "PatientName": "Quibbler^Zedekiah^Xylander",
    "PatientID": "ID-774411",
    # Beyond what the standard allows: pydicom quotes such values when it converts them.
    "OtherPatientIDs": "558822-" + 70 * "x",
    "AccessionNumber": "ACC-993311-LONGER-THAN-ALLOWED",
    "PatientBirthDate": "1961-04-02",
}
ARRAY = blob((12, 14, 8)).astype(np.int16)
NAME = "QUIBBLER_ZEDEKIAH_19610402"
TINY = ("--set", "plan.features=[4, 8]", "--set", "plan.blocks_per_stage=1", "--set", "plan.patch_size=[16, 16, 16]")


def patient(made):
    """The datasets with the patient's data, their results in one study."""
    for data in made if isinstance(made, list) else [made]:
        for name, value in PATIENT.items():
            put(data, name, value)
    return made


def save(made, folder, name=NAME):
    """Files named after the patient."""
    for k, data in enumerate(made if isinstance(made, list) else [made], 1):
        write(data, folder / f"{name}_{k:04}.dcm")
    return folder


def series(folder, **options):
    return save(patient(classic(ARRAY, **options)), folder)


def file_of(folder, number):
    return sorted(folder.iterdir())[number - 1]


def spoilt(folder, change):
    """A series with one file of other content."""
    file = file_of(series(folder), 3)
    file.write_bytes(change(file.read_bytes()))
    return folder


def gap(folder):
    file_of(series(folder), 4).unlink()
    return folder


def lost_link(folder):
    file = file_of(series(folder), 4)
    file.unlink()
    file.symlink_to(folder / "QUIBBLER")
    return folder


def two_series(folder, uid="1.2.3.4.5"):
    series(folder)
    other = patient(classic(ARRAY, SeriesInstanceUID=uid, SeriesNumber="8", StudyID="QUIBBLER"))
    return save(other, folder, f"{NAME}_B")


def one_series_in_two_studies(folder):
    series(folder)
    return save(patient(classic(ARRAY, StudyInstanceUID="1.2.77")), folder, f"{NAME}_B")


def mixed_sizes(folder):
    series(folder)
    made = patient(classic(ARRAY[:-2], positions=stack(8) + np.array([0, 0, 24])))
    for k, data in enumerate(made):
        data.SOPInstanceUID = f"1.2.99.{k}"
    return save(made, folder, f"{NAME}_B")


def same_places_in_two_folders(folder):
    for name in ("QUIBBLER", "ZEDEKIAH"):
        made = patient(classic(ARRAY + (name == "QUIBBLER")))
        for k, data in enumerate(made):
            data.SOPInstanceUID = f"1.2.{len(name)}.{k}{name == 'QUIBBLER':d}"
        save(made, folder / name)
    return folder


def several_volumes(folder):
    for number in (1, 2):
        made = patient(enhanced(ARRAY + number))
        made.SOPInstanceUID = f"1.2.3.4.{number}"
        save(made, folder, f"{NAME}_{number}")
    return folder


def not_numbers(name, folder):
    made = patient(enhanced(ARRAY) if name == "NumberOfFrames" else classic(ARRAY))
    for data in made if isinstance(made, list) else [made]:
        put(data, name, "-3" if name == "NumberOfFrames" else "many", "IS" if name == "NumberOfFrames" else "DS")
    return save(made, folder)


def archive(folder, change=lambda content: content, extra=""):
    """A .zip whose inner names hold the patient's."""
    series(folder)
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as target:
        for file in sorted(folder.iterdir()):
            target.write(file, f"QUIBBLER/{file.name}")
        if extra:
            target.writestr(extra, b"")
    shutil.rmtree(folder)
    path.write_bytes(change(path.read_bytes()))
    return path


def flipped(content):
    """A byte of the pixels of a file, so that its checksum fails."""
    place = content.index(b"PK\3\4", 4) - 9
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def renamed(content):
    """The name of the first file, only where the file lies, so that it differs from the directory's."""
    return content.replace(b"QUIBBLER/", b"QUIBBLEX/", 1)


def file_set(folder, missing=False):
    """A DICOMDIR."""
    records = []
    for file in sorted(series(folder / "QUIBBLER").iterdir()):
        file = file.rename(file.with_suffix(""))
        records.append(put(Dataset(), "ReferencedFileID", f"QUIBBLER\\{file.name}"))
    if missing:
        file_of(folder / "QUIBBLER", 2).unlink()
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.5"
    directory.DirectoryRecordSequence = Sequence(records)
    return write(patient(directory), folder / "DICOMDIR")


def beside_other_scans(folder):
    series(folder)
    nib.save(nib.Nifti1Image(ARRAY, np.eye(4)), folder / "QUIBBLER.nii.gz")
    return folder


GOOD = {
    "folder": series,
    "zip": archive,
    "DICOMDIR": file_set,
    "series below folders of the patient": lambda folder: series(folder / "QUIBBLER" / "1961-04-02").parent.parent,
    "enhanced": lambda folder: save(patient(enhanced(ARRAY)), folder),
    "a report beside": lambda folder: (
        (
            write(
                patient(put(classic(ARRAY)[0], "SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11")),
                series(folder) / "SR.dcm",
            )
        ).parent
    ),
}
BAD = {
    "cut pixels": partial(spoilt, change=lambda content: content[:-20]),
    "cut header": partial(spoilt, change=lambda content: content[:300]),
    "empty": partial(spoilt, change=lambda content: b""),
    "no DICOM": partial(spoilt, change=lambda content: b"<html>QUIBBLER</html>"),
    "all empty": lambda folder: [file.write_bytes(b"") for file in series(folder).iterdir()] and folder,
    "missing slice": gap,
    "broken link": lost_link,
    "two series": two_series,
    "one series in two studies": one_series_in_two_studies,
    "mixed sizes": mixed_sizes,
    "same places in two folders": same_places_in_two_folders,
    "several volumes": several_volumes,
    "odd number of frames": partial(not_numbers, "NumberOfFrames"),
    "odd slope": partial(not_numbers, "RescaleSlope"),
    "odd spacing": lambda folder: series(folder, PixelSpacing="0.5"),
    "no position": lambda folder: series(folder, ImagePositionPatient=None),
    "colour": lambda folder: series(folder, PhotometricInterpretation="RGB"),
    "unknown compression": lambda folder: (
        [
            file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))
            for file in series(folder).iterdir()
        ]
        and folder
    ),
    "beside other scans": beside_other_scans,
    "zip with a bad checksum": partial(archive, change=flipped),
    "zip with another name inside": partial(archive, change=renamed),
    "zip with another scan": partial(archive, extra="QUIBBLER.nii.gz"),
    "zip within a zip": partial(archive, extra="QUIBBLER.zip"),
    "DICOMDIR with a missing file": partial(file_set, missing=True),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    two = tiny_plan(
        channels=(Channel(name="T1"), Channel(name="T2")),
        network=tiny_plan().network.model_copy(update={"in_channels": 2}),
    )
    return write_model(folder / "tiny.safetensors"), write_model(folder / "two.safetensors", two)


class Watched:
    """What a command prints, logs, warns of and writes, and under which names."""

    def __init__(self, folder, caplog, recwarn):
        self.folder, self.caplog, self.recwarn = folder, caplog, recwarn
        self.names, self.printed = [], []

    def hear(self, event, arguments):
        """An audit hook: names of files that are opened to be written, made, linked or renamed."""
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        if opened or event in (
            "os.mkdir",
            "os.rename",
            "os.symlink",
            "os.link",
            "tempfile.mkstemp",
            "tempfile.mkdtemp",
        ):
            self.names.extend(str(one) for one in arguments)

    def run(self, *arguments):
        logger = logging.getLogger("volseg")
        handlers, level = logger.handlers, logger.level
        HEARERS.append(self.hear)
        try:
            done = CliRunner().invoke(app, [str(one) for one in arguments])
        finally:
            HEARERS.remove(self.hear)
            logger.handlers, logger.level = handlers, level
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        self.printed.append(done.output)
        return done

    def said(self):
        """Everything as one text in lower case."""
        texts = [*self.printed, *self.caplog.messages, *(str(one.message) for one in self.recwarn), *self.names]
        for file in self.folder.rglob("*"):
            content = file.read_bytes() if file.is_file() and file.suffix != ".dcm" else b""
            content = gzip.decompress(content) if file.suffix == ".gz" else content
            texts += [str(file.relative_to(self.folder)), content.decode("latin-1")]
        return "\n".join(texts).lower()

    def assert_private(self):
        said = self.said()
        assert {word: said[max(said.index(word) - 200, 0) :][:260] for word in WORDS if word in said} == {}


HEARERS = []
sys.addaudithook(lambda event, arguments: [hear(event, arguments) for hear in HEARERS])


@pytest.fixture
def watched(tmp_path, caplog, recwarn, monkeypatch):
    (tmp_path / "work" / "temporary").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "work" / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path / "work")
    return Watched(tmp_path / "work", caplog, recwarn)


def all_formats():
    return [name for name in format_names() if name in ("nifti", "preview") or find_format(name).needs_dicom]


@pytest.mark.parametrize("kind", GOOD)
def test_a_scan_is_segmented_and_described_without_a_word_of_the_patient(kind, tmp_path, models, watched):
    given = GOOD[kind](tmp_path / "scan")
    # Pictures take the longest to make, and do not depend on how a scan is packed.
    formats = [name for name in all_formats() if name != "preview" or kind == "folder"]
    options = ("--model", models[0], "--device", "cpu", "--to", ",".join(formats), "--probabilities")
    done = watched.run("predict", given, *options, "--output", "out")
    assert done.exit_code == 0, done.output
    assert "ball" in done.stdout
    done = watched.run("predict", given, *options, "--output", "again", "--json")
    record = json.loads(done.stdout)["cases"][0]
    assert record["input"][0]["study"] == "1.2.3"
    assert record["formats"] == ["nifti", *(name for name in formats if name != "nifti")]
    assert watched.run("info", given).exit_code == 0
    assert watched.run("info", given, "--json").exit_code == 0
    assert watched.names
    watched.assert_private()


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_with_a_scan_is_said_without_a_word_of_the_patient(kind, tmp_path, models, watched):
    given = BAD[kind](tmp_path / "scan")
    for json_option in ((), ("--json",)):
        done = watched.run("predict", given, "--model", models[0], "--device", "cpu", "--output", "out", *json_option)
        assert done.exit_code == 2, done.output
        watched.run("info", given, *json_option)
    watched.assert_private()


def test_a_model_that_does_not_fit(tmp_path, models, watched):
    given = series(tmp_path / "scan")
    assert watched.run("predict", given, "--model", models[1], "--output", "out", "--device", "cpu").exit_code == 2
    assert watched.run("predict", given, "--model", given, "--output", "out", "--device", "cpu").exit_code == 2
    watched.assert_private()


def test_several_cases_some_of_which_fail(tmp_path, models, watched):
    series(tmp_path / "scans" / "a")
    save(patient(classic(ARRAY, SeriesInstanceUID="1.2.8", PixelSpacing="1")), tmp_path / "scans" / "b")
    BAD["cut pixels"](tmp_path / "c")
    archive(tmp_path / "c").rename(tmp_path / "scans" / "c.zip")
    done = watched.run("predict", tmp_path / "scans", "--model", models[0], "--output", "out", "--device", "cpu")
    assert done.exit_code == 3
    watched.assert_private()


def test_a_neutral_output_of_a_path_that_names_the_patient(tmp_path, models, watched):
    """The terminal shows the path as it was typed; files do not."""
    given = series(tmp_path / NAME)
    options = ("--model", models[0], "--device", "cpu", "--output", "case.nii.gz", "--preview")
    done = watched.run("predict", given, *options)
    assert done.exit_code == 0, done.output
    watched.printed, watched.caplog.handler.records[:] = [], []
    watched.assert_private()


def test_why_a_result_is_not_written_is_said_without_the_path(tmp_path, models):
    result = volseg.Segmenter.load(models[0], device="cpu")(series(tmp_path / NAME))
    nothing = replace(
        result,
        labels=np.zeros_like(result.labels),
        measures=tuple(replace(one, voxels=0, volume_ml=None, flags=("empty",)) for one in result.measures),
    )
    reasons = [find_format(name).reason_for_none(nothing) for name in all_formats()]
    assert any(reasons)
    assert not any(word in reason.lower() for reason in reasons for word in WORDS)


def test_what_pydicom_says_of_odd_values_is_not_logged(tmp_path, models, caplog, recwarn):
    """An application may have set up logging for all libraries."""
    result = volseg.Segmenter.load(models[0], device="cpu")(series(tmp_path / "scan"))
    with caplog.at_level(logging.INFO):
        for name in all_formats():
            output = find_format(name)
            if output.needs_dicom:
                result.save(tmp_path / f"case{output.suffix}", to=name)
    assert [line for line in caplog.records if line.name.partition(".")[0] in ("pydicom", "highdicom")] == []
    assert not [one for one in recwarn if any(word in str(one.message).lower() for word in WORDS)]


def test_the_header_of_a_nifti_scan_goes_nowhere(tmp_path, models, watched):
    """Converters write the patient's name into the description, and DICOM attributes into extensions."""
    write_phantoms(tmp_path / "phantoms", 2, 7, "mr", tests=1)
    for file in sorted((tmp_path / "phantoms").rglob("*.nii.gz")):
        image = nib.load(file)
        cropped = nib.Nifti1Image(np.asarray(image.dataobj)[12:36, 12:36, 8:28], image.affine, image.header)
        cropped.header["descrip"], cropped.header["db_name"] = b"Quibbler Zedekiah", b"774411"
        cropped.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Xylander 19610402"))
        nib.save(cropped, file)
    data = tmp_path / "phantoms"
    scans, labels = data / "imagesTs", data / "labelsTs"
    assert watched.run("plan", data, "--output", "plan.yaml").exit_code == 0
    budget = ("--steps", "1", "--fold", "all", "--device", "cpu", "--set", "training.workers=0")
    done = watched.run("train", data, "--output", "run", *budget, *TINY, "--set", "training.validations=0")
    assert done.exit_code == 0, done.output
    predicted = (
        "--model",
        "run/model.safetensors",
        "--output",
        "out",
        "--device",
        "cpu",
        "--preview",
        "--probabilities",
    )
    assert watched.run("predict", scans, *predicted).exit_code == 0
    assert watched.run("evaluate", "out", labels, "--output", "report.json").exit_code == 0
    for path in (scans / "phantom_003.nii.gz", "run", "run/model.safetensors"):
        assert watched.run("info", path).exit_code == 0
    watched.assert_private()
