"""Labels lie where they belong, as other software reads them: a part of the matrix of `make positions`."""

from dataclasses import replace

import numpy as np
import pytest

from tests.dicom.proof.kinds import dicom_outputs, suffix_of
from tests.dicom.proof.other_software import OF_SEG, OF_SOURCE, program, readers_of
from tests.dicom.proof.phantom_series import LABELS, SIZE, Series, result_of, write_series
from tests.dicom.proof.positions import LEAST_DICE, agreements, all_series
from tests.dicom.proof.reports_and_pictures import report_by_dcmqi, report_by_highdicom, true_values, wrong_sides
from volseg.api.outputs import format_names

# Every value of every property, and every orientation with both kinds of files.
PART = (
    Series("axial", "up", "unequal", "classic", "CT"),
    Series("axial", "down", "equal", "enhanced", "MR"),
    Series("sagittal", "down", "unequal", "classic", "MR"),
    Series("coronal", "up", "unequal", "enhanced", "CT"),
    Series("oblique", "down", "unequal", "classic", "CT"),
    Series("oblique sagittal", "up", "equal", "enhanced", "MR"),
)


@pytest.fixture(scope="module", params=PART, ids=str)
def case(request, tmp_path_factory):
    """A series, its folder, and its result."""
    folder = write_series(tmp_path_factory.mktemp("scan"), request.param)
    return request.param, folder, result_of(folder)


def assert_at_its_place(found, series, least_dice):
    for one in agreements(found, series):
        assert one.voxels <= 0.5, one
        assert one.dice >= least_dice, one


def test_the_phantom_has_no_symmetry():
    """No exchange or reversal of axes gives its labels again, so no such fault can hide."""
    whole = np.zeros((max(SIZE),) * 3, np.uint8)
    whole[: SIZE[0], : SIZE[1], : SIZE[2]] = Series().labels
    assert set(np.unique(whole)) == {0, *(label.value for label in LABELS)}
    for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for flips in range(8):
            turned = np.flip(whole.transpose(axes), [axis for axis in range(3) if flips >> axis & 1])
            if axes != (0, 1, 2) or flips:
                assert not np.array_equal(*(_cropped(one) for one in (whole, turned)))


def _cropped(labels):
    filled = np.argwhere(labels)
    return labels[tuple(slice(*pair) for pair in zip(filled.min(0), filled.max(0) + 1, strict=True))]


@pytest.mark.parametrize("reader", OF_SOURCE, ids=lambda one: one.software)
def test_the_source_shows_the_phantom_at_its_place(case, reader):
    series, folder, _ = case
    assert_at_its_place(reader.read(None, folder), series, 1)


@pytest.mark.parametrize("output", [one for one in dicom_outputs() if readers_of(one)])
def test_other_software_finds_the_labels_at_their_place(case, output, tmp_path):
    series, folder, result = case
    file = tmp_path / f"result{suffix_of(output)}"
    result.save(file, to=output)
    least = LEAST_DICE[output.split(":")[0]]
    for reader in readers_of(output):
        if not reader.missing:
            assert_at_its_place(reader.read(file, folder), series, least)


@pytest.mark.parametrize("reader", OF_SEG, ids=lambda one: one.software)
@pytest.mark.parametrize("axis", range(3))
def test_a_mirrored_result_is_found_out(axis, reader, tmp_path):
    if reader.missing:
        pytest.skip(reader.missing)
    series = PART[2]
    folder = write_series(tmp_path / "scan", series)
    result = result_of(folder)
    replace(result, labels=np.flip(result.labels, axis)).save(tmp_path / "mirrored.seg.dcm", to="dicom-seg")
    with pytest.raises(AssertionError):
        assert_at_its_place(reader.read(tmp_path / "mirrored.seg.dcm", folder), series, 1)


def test_the_matrix_holds_every_combination():
    assert len(set(map(str, all_series()))) == 5 * 2 * 2 * 2 * 2
    assert set(map(str, PART)) <= set(map(str, all_series()))


@pytest.mark.skipif("dicom-sr" not in format_names(), reason="there is no such format")
def test_a_report_says_the_volumes_and_centres(case, tmp_path):
    series, _, result = case
    result.save(tmp_path / "result.sr.dcm", to="dicom-sr")
    true = true_values(series)
    found = report_by_highdicom(tmp_path / "result.sr.dcm")
    assert found.keys() == true.keys()
    for name, one in found.items():
        assert one.volume_ml == pytest.approx(true[name].volume_ml, rel=1e-6)
        # Points of reports are float32.
        np.testing.assert_allclose(one.centre, true[name].centre, atol=1e-3)
    if program("tid1500reader"):
        by_dcmqi = report_by_dcmqi(tmp_path / "result.sr.dcm")
        assert {name: one.volume_ml for name, one in by_dcmqi.items()} == pytest.approx(
            {name: one.volume_ml for name, one in true.items()}, rel=1e-6
        )


@pytest.mark.skipif("dicom-sc" not in format_names(), reason="there is no such format")
def test_a_picture_shows_labels_on_their_sides(case, tmp_path):
    series, _, result = case
    result.save(tmp_path / "result.sc.dcm", to="dicom-sc")
    wrong, compared = wrong_sides(tmp_path / "result.sc.dcm", series)
    assert wrong == []
    assert compared >= 4
    mirrored = replace(result, labels=np.flip(result.labels, 0))
    mirrored.save(tmp_path / "mirrored.sc.dcm", to="dicom-sc")
    assert wrong_sides(tmp_path / "mirrored.sc.dcm", series)[0]
