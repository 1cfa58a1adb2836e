"""Pictures as Secondary Capture images: what is drawn, and what the object says of it."""

import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydicom.uid import HTJ2K, JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from tests.data.io.dicom import writers
from tests.data.io.dicom.test_compressed import baseline, compressed, encoded, lossy_jpeg2000, smooth
from tests.dicom.results import about, series, some_labels
from tests.dicom.whole_results import PATIENT, phantom, result_of
from volseg.api.outputs import dicom_sc
from volseg.config import Label
from volseg.dicom.capture import secondary_capture
from volseg.dicom.segmentation import segmentation
from volseg.report.fitting import width_of
from volseg.report.preview import DPI, draw_preview

RED, GREEN = (255, 0, 0), (0, 255, 0)
COLOURED = (Label(name="ring", value=1, colour=RED), Label(name="block", value=2, colour=GREEN))


def saved(result, folder):
    path = folder / "x.sc.dcm"
    result.save(path, to="dicom-sc")
    return pydicom.dcmread(path)


def drawn(result, monkeypatch):
    """What the figure of a result says, line by line, and the figure."""
    figures = []

    def keep(*arguments, **options):
        figures.append(draw_preview(*arguments, **options))
        return figures[0]

    monkeypatch.setattr(dicom_sc, "draw_preview", keep)
    dicom_sc.write(result, Path(result.scan.source).parent / "drawn.sc.dcm")
    return [text.get_text() for text in figures[0].texts if text.get_text()], figures[0]


def test_it_is_a_picture_that_every_viewer_shows(tmp_path):
    made = saved(result_of(tmp_path / "series"), tmp_path)
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert made.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert (made.Modality, made.ConversionType, made.BurnedInAnnotation) == ("OT", "WSD", "NO")
    assert (made.PhotometricInterpretation, made.SamplesPerPixel, made.PlanarConfiguration) == ("RGB", 3, 0)
    assert (made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation) == (8, 8, 7, 0)
    assert made.pixel_array.shape == (made.Rows, made.Columns, 3)
    assert len(made.PixelData) % 2 == 0
    assert "FrameOfReferenceUID" not in made
    assert "ImagePositionPatient" not in made
    assert (made.StudyInstanceUID, str(made.PatientName)) == ("1.2.3", "Secret^Name")
    assert made.SeriesInstanceUID != "1.2.3.4"


def test_the_labels_are_drawn_where_they_are(tmp_path):
    picture = saved(result_of(tmp_path / "series", table=COLOURED), tmp_path).pixel_array.astype(int)
    height = picture.shape[0] // 2
    axial = picture[:height, : picture.shape[1] // 3]
    red, green = ((axial == colour).all(axis=2) for colour in (RED, GREEN))
    columns = [np.flatnonzero(mask.any(axis=0)).mean() for mask in (red, green)]
    rows = [np.flatnonzero(mask.any(axis=1)).mean() for mask in (red, green)]
    # Columns of the series run to the patient's left, which is right on the page, and rows to the back.
    assert columns[0] < columns[1]
    assert rows[0] < rows[1]


def test_every_file_of_the_source_is_named_with_its_frames(tmp_path):
    (tmp_path / "a").mkdir()
    made = saved(result_of(tmp_path / "a" / "series"), tmp_path)
    assert {one.ReferencedSOPInstanceUID for one in made.SourceImageSequence} == {f"1.2.3.4.{k + 1}" for k in range(9)}
    assert not any("ReferencedFrameNumber" in one for one in made.SourceImageSequence)
    made = saved(result_of(tmp_path / "b", kind=writers.enhanced), tmp_path)
    (image,) = made.SourceImageSequence
    assert list(image.ReferencedFrameNumber) == list(range(1, 10))


def test_a_picture_of_lossy_slices_is_lossy(tmp_path):
    lossy = {
        "LossyImageCompression": "01", "LossyImageCompressionRatio": "9.5", "LossyImageCompressionMethod": "ISO_10918_1"
    }  # fmt: skip
    made = saved(result_of(tmp_path / "series", **lossy), tmp_path)
    assert (made.LossyImageCompression, made.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert float(made.LossyImageCompressionRatio) == 9.5


# How a series was compressed, its LossyImageCompression, and what a segmentation says of that, with the method.
COMPRESSED = {
    "JPEG": (JPEGBaseline8Bit, baseline, None, "01", "ISO_10918_1"),
    "JPEG that denies it": (JPEGBaseline8Bit, baseline, "00", "01", "ISO_10918_1"),
    "JPEG 2000": (JPEG2000, lossy_jpeg2000, None, "01", "ISO_15444_1"),
    "JPEG 2000 without loss": (JPEG2000, lambda frame, _: encoded(frame, JPEG2000Lossless), "00", "00", None),
    "lossless": (JPEG2000Lossless, encoded, None, "00", None),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_lossy_transfer_syntax_tells_by_itself(tmp_path, name):
    syntax, encode, stated, lossy, method = COMPRESSED[name]
    array = smooth(np.uint8, (32, 24, 4))
    headers = compressed(writers.classic(array, LossyImageCompression=stated, **PATIENT), array, syntax, encode)
    what = about(writers.write_all(tmp_path, headers, syntax=syntax), array)
    for made in (segmentation(some_labels(array.shape), what), secondary_capture(np.zeros((4, 4, 3), "u1"), what)):
        # Only a segmentation has to state what the source leaves open.
        is_open = name == "lossless" and made.Modality == "OT"
        assert made.get("LossyImageCompression") == (None if is_open else lossy)
        assert made.get("LossyImageCompressionMethod") == method
        ratio = made.get("LossyImageCompressionRatio")
        assert (ratio is None) if method is None else 1 < float(ratio) < 32 * 24


@pytest.mark.parametrize(
    ("syntax", "method"),
    [(JPEGExtended12Bit, "ISO_10918_1"), (JPEGLSNearLossless, "ISO_14495_1"), (HTJ2K, "ISO_15444_15")],
)
def test_methods_of_other_lossy_transfer_syntaxes(tmp_path, syntax, method):
    """The pixels were read; their syntax alone is another one here."""
    labels = some_labels()
    what = about(series(tmp_path / "series"), labels)
    slices = [replace(one, header=replace(one.header, syntax=str(syntax))) for one in what.source.slices]
    made = segmentation(labels, replace(what, source=replace(what.source, slices=tuple(slices))))
    assert (made.LossyImageCompression, made.LossyImageCompressionMethod) == ("01", method)


def test_odd_statements_of_a_compression_are_not_carried(tmp_path):
    odd = {
        "LossyImageCompression": "01", "LossyImageCompressionRatio": "abc",
        "LossyImageCompressionMethod": "jpeg, of some kind",
    }  # fmt: skip
    made = saved(result_of(tmp_path / "series", **odd), tmp_path)
    assert made.LossyImageCompression == "01"
    assert not {"LossyImageCompressionRatio", "LossyImageCompressionMethod"} & set(made.dir())


def test_names_that_cannot_be_drawn_are_drawn_as_codes_without_a_warning(tmp_path, monkeypatch):
    table = (Label(name="a\nb\x07", value=1), Label(name=" \n ", value=2), Label(name="\U0001f9e0 肝", value=9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines, _ = drawn(result_of(tmp_path / "series", table=table), monkeypatch)
    assert any(one.startswith("a\\nb\\x07  ") for one in lines)
    assert any(one.startswith("label 2  ") for one in lines)
    assert not [one for one in lines if not one.isprintable()]


def test_the_volume_of_a_region_is_that_of_the_record(tmp_path, monkeypatch):
    table = (Label(name="whole", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,)))
    result = result_of(tmp_path / "series", table=table)
    lines, _ = drawn(result, monkeypatch)
    for one in result.measures:
        (line,) = [line for line in lines if line.startswith(f"{one.name}  ")]
        assert float(line.split()[1]) == pytest.approx(one.volume_ml, rel=0.005)


def test_two_runs_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        saved(result_of(tmp_path / name / "series"), tmp_path / name)
    assert (tmp_path / "a" / "x.sc.dcm").read_bytes() == (tmp_path / "b" / "x.sc.dcm").read_bytes()


def test_it_says_what_the_result_is_and_what_to_check(tmp_path, monkeypatch):
    result = result_of(tmp_path / "series", scan_flags=["intensity_outside_training_range"], model="some model")
    lines, _ = drawn(result, monkeypatch)
    assert lines[0] == "Research use only, not for diagnosis. volseg, model some model"
    assert "No voxel was given this label: absent." in lines
    assert "Cut off by the edge of the scan, so the volume is a lower bound: kidney_left." in lines
    assert "Scan intensity is outside the range of the training scans." in lines
    ml = result.volumes_ml
    assert [f"{name}  {ml[name]:#.3g} mL" for name in ("ring", "kidney_left")] == [one for one in lines if "mL" in one][
        :2
    ]
    assert {"R", "L", "A", "P", "S", "I"} <= set(lines)
    assert not any("Secret" in one or "P1" in one for one in lines)


def test_an_empty_result_says_so(tmp_path, monkeypatch):
    lines, _ = drawn(result_of(tmp_path / "series", np.zeros((22, 18, 9), np.uint8)), monkeypatch)
    assert "No label was found in this scan." in lines
    assert not any("No voxel" in one for one in lines)


def test_characters_that_the_font_lacks_are_drawn_all_the_same(tmp_path):
    table = (Label(name="肝臓" * 40, value=1), Label(name="$x_{$ Größe", value=2))
    made = saved(
        result_of(tmp_path / "series", table=table, model="モデル", SpecificCharacterSet="ISO_IR 192"), tmp_path
    )
    assert made.SpecificCharacterSet == "ISO_IR 192"
    assert made.SeriesDescription == "モデル: picture (research use only)"


def extents(figure):
    """Every text that is drawn, with its (left, bottom, right, top) in pixels."""
    figure.set_dpi(DPI)
    renderer = figure.canvas.get_renderer()
    return [(text.get_text(), text.get_window_extent(renderer).extents) for text in figure.texts if text.get_text()]


def overlapping(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("shape", [(120, 100, 12), (60, 60, 2), (200, 30, 1), (12, 12, 100)], ids=str)
@pytest.mark.parametrize("name", ["organ {}", "W" * 40 + " {}", "a name of many words that goes on and on and on {}"])
def test_nothing_overlaps_and_nothing_is_cut_off(tmp_path, monkeypatch, shape, name):
    labels = np.zeros(shape, np.uint8)
    table = [Label(name=name.format(value), value=value) for value in range(1, 21)]
    for value in range(1, 17):
        labels[value % 11 : value % 11 + 1, :, value % shape[2]] = value
    result = result_of(
        tmp_path / "series", labels, table, scan_flags=["intensity_outside_training_range"], model="long name " * 30
    )
    _, figure = drawn(result, monkeypatch)
    found = extents(figure)
    right, top = (length * DPI for length in figure.get_size_inches())
    for text, box in found:
        assert 0 <= box[0] < box[2] <= right, text
        assert 0 <= box[1] < box[3] <= top, text
    assert not [(a, b) for at, (a, one) in enumerate(found) for b, other in found[:at] if overlapping(one, other)]
    # All 20 labels are in the legend, and can be told apart.
    assert len({text for text, _ in found if text.endswith(" mL")}) == 20


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_widths_are_those_that_are_drawn(weight):
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in ("W" * 30, "iiiiiiiiii", "a liver, 12.5 mL…", "$x_{1}$", "1 mm"):
        drawn = figure.text(0, 0, text, fontsize=11, weight=weight, parse_math=False).get_window_extent(renderer).width
        assert 0.98 <= width_of(text, 11, weight) * DPI / drawn <= 1.1


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("kind", [writers.classic, writers.enhanced])
def test_dciodvfy_finds_nothing_but_a_side_that_is_unknown(tmp_path, kind):
    saved(result_of(tmp_path / "series", kind=kind), tmp_path)
    done = subprocess.run(["dciodvfy", str(tmp_path / "x.sc.dcm")], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if "attribute <Laterality>" not in line]
    assert lines == ["SCImage"]
    saved(result_of(tmp_path / "left", kind=kind, Laterality="L"), tmp_path)
    done = subprocess.run(["dciodvfy", str(tmp_path / "x.sc.dcm")], capture_output=True, text=True)
    assert done.stderr.splitlines() == ["SCImage"]


def test_without_what_draws_it_says_what_to_install(tmp_path):
    writers.write_kind(tmp_path / "series", writers.classic, phantom().astype(np.int16))
    script = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        f"sys.argv = ['volseg', 'predict', {str(tmp_path / 'series')!r}, '--model', 'hippocampus', '--output', "
        f"{str(tmp_path / 'out')!r}, '--to', 'nifti,dicom-sc']\n"
        "from volseg.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The package matplotlib is not installed, but this command needs it")
    assert not (tmp_path / "out").exists()
