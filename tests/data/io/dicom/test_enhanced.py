"""Enhanced files: where functional groups state values, and what belongs to their frames alone."""

import threading
import time

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from tests.data.images import ramp
from tests.data.io.dicom.writers import (
    ENHANCED_MR,
    GROUPS,
    affine_of,
    assert_volume,
    decimals,
    enhanced,
    macros,
    place,
    put,
    read,
    stack,
    write,
    write_kind,
)
from volseg.errors import InputError

ARRAY = ramp()
AFFINE = affine_of(stack(5))
PLACE = ("ImageOrientationPatient", "PixelSpacing", "SliceThickness")
RESCALE = {"RescaleSlope": "2", "RescaleIntercept": "-7"}


@pytest.mark.parametrize("shared", [(), PLACE, ("PixelSpacing",), (*PLACE, "RescaleSlope", "RescaleIntercept")])
def test_shared_groups_and_those_of_a_frame(tmp_path, shared):
    scan = read(write(enhanced(ARRAY, shared=shared, **RESCALE), tmp_path / "a.dcm"))
    assert_volume(scan, ARRAY * 2 - 7, AFFINE)
    assert scan.warnings == ()


def test_groups_of_unknown_representation(tmp_path):
    """A tool that does not know the groups writes them as UN, with implicit content."""
    implicit = write(enhanced(ARRAY, **RESCALE), tmp_path / "implicit.dcm", syntax=ImplicitVRLittleEndian).read_bytes()
    path = write(enhanced(ARRAY, **RESCALE), tmp_path / "s" / "a.dcm")
    content = path.read_bytes()
    for tag in (b"\x00\x52\x29\x92", b"\x00\x52\x30\x92"):
        there, here = implicit.index(tag), content.index(tag)
        size, old = (
            int.from_bytes(one[at : at + 4], "little") for one, at in ((implicit, there + 4), (content, here + 8))
        )
        unknown = tag + b"UN\0\0" + size.to_bytes(4, "little") + implicit[there + 8 : there + 8 + size]
        content = content[:here] + unknown + content[here + 12 + old :]
    path.write_bytes(content)
    assert_volume(read(path), ARRAY * 2 - 7, AFFINE)


def test_isotropic_frames_of_one_millimetre(tmp_path):
    stated = {"PixelSpacing": "1\\1", "SpacingBetweenSlices": "1", "SliceThickness": "1"}
    made = enhanced(ARRAY, positions=stack(5, step=1.0), shared=("PixelSpacing",), **stated)
    scan = read(write(made, tmp_path / "a.dcm"))
    assert_volume(scan, ARRAY, affine_of(stack(5, step=1.0), spacing=(1, 1)))
    assert scan.warnings == ()


@pytest.mark.parametrize("names", [("PixelSpacing",), ("ImageOrientationPatient", "PixelSpacing"), tuple(RESCALE)])
def test_what_no_group_states_may_stand_in_the_dataset(tmp_path, names):
    made = enhanced(ARRAY, **RESCALE)
    values = place(stack(1)[0]) | RESCALE
    for name in names:
        for group in made.PerFrameFunctionalGroupsSequence:
            del group[GROUPS[name]].value[0][name]
        put(made, name, values[name])
    assert_volume(read(write(made, tmp_path / "a.dcm")), ARRAY * 2 - 7, AFFINE)


def test_a_position_of_the_dataset_is_that_of_no_frame(tmp_path):
    made = enhanced(ARRAY)
    for group in made.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    put(made, "ImagePositionPatient", "1\\2\\3")
    with pytest.raises(InputError, match="5 images lie at 1 positions"):
        read(write(made, tmp_path / "a.dcm"))


def test_the_groups_of_a_frame_count_before_shared_ones(tmp_path):
    made = enhanced(ARRAY)
    wrong = {"PixelSpacing": "9\\9", "ImageOrientationPatient": "0\\1\\0\\1\\0\\0", "RescaleSlope": "5"}
    made.SharedFunctionalGroupsSequence = Sequence([macros(wrong)])
    for group in made.PerFrameFunctionalGroupsSequence:
        group.PixelValueTransformationSequence = macros(RESCALE).PixelValueTransformationSequence
    assert_volume(read(write(made, tmp_path / "a.dcm")), ARRAY * 2 - 7, AFFINE)


@pytest.mark.parametrize("lacking", [0, 2, 4])
@pytest.mark.parametrize("sequence", ["PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"])
def test_a_frame_without_a_group(tmp_path, sequence, lacking):
    made = enhanced(ARRAY)
    del made.PerFrameFunctionalGroupsSequence[lacking][sequence]
    with pytest.raises(InputError, match=r"lack Image(Position|Orientation)Patient|PixelSpacing is absent"):
        read(write(made, tmp_path / "a.dcm"))


def test_a_slope_in_some_frames_alone(tmp_path):
    made = enhanced(ARRAY, **RESCALE)
    del made.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence[0].RescaleIntercept
    with pytest.raises(InputError, match="RescaleIntercept is absent"):
        read(write(made, tmp_path / "a.dcm"))


def test_frames_of_another_orientation_are_no_slices(tmp_path):
    across = decimals((1, 0, 0, 0, 0, 1))
    made = write_kind(
        tmp_path, enhanced, ARRAY, change=lambda k, stated: k > 1 and stated.update(ImageOrientationPatient=across)
    )
    with pytest.raises(InputError, match="5 images differ in size, pixel spacing or orientation"):
        read(made)


def test_slices_measured_together_are_one_volume(tmp_path):
    """Simultaneous multi-slice: frames k and k + 3 have the same time, with others between them."""

    def change(k, stated):
        stated["SpacingBetweenSlices"] = "3"

    made = enhanced(ramp((3, 4, 6)), change=change)
    for k, group in enumerate(made.PerFrameFunctionalGroupsSequence):
        put(group, "FrameContentSequence", None)
        content = put(Dataset(), "FrameReferenceDateTime", f"2020010112000{k % 3}")
        group.FrameContentSequence = Sequence([content])
    assert_volume(read(write(made, tmp_path / "a.dcm")), ramp((3, 4, 6)), affine_of(stack(6)))


def test_volumes_of_different_times_between_each_other_are_two(tmp_path):
    """Slices of 3 mm at half their distance do not fit beside each other."""
    positions = np.concatenate([stack(3), stack(3) + np.array([0, 0, 1.5])])
    made = enhanced(ramp((3, 4, 6)), positions, SliceThickness="3")
    for k, group in enumerate(made.PerFrameFunctionalGroupsSequence):
        content = put(Dataset(), "FrameReferenceDateTime", f"2020010112000{k // 3}")
        group.FrameContentSequence = Sequence([content])
    path = write(made, tmp_path / "a.dcm")
    with pytest.raises(InputError, match="4-D, with 2 volumes"):
        read(path)
    assert_volume(read(path, volume=2), ramp((3, 4, 6))[..., 3:], affine_of(positions[3:]))


def test_philips_scale_in_the_groups_of_a_frame(tmp_path):
    made = enhanced(ARRAY, **RESCALE)
    for group in made.PerFrameFunctionalGroupsSequence:
        private = put(Dataset(), 0x2005100E, b"\0\0\0\x3f", "FL")
        group.add_new(0x2005140F, "SQ", Sequence([private]))
    scan = read(write(made, tmp_path / "a.dcm"))
    assert_volume(scan, ARRAY * 2 - 7)
    assert [warning.startswith("Philips MR: RescaleSlope") for warning in scan.warnings] == [True]


def test_groups_of_a_corrupt_header(tmp_path):
    path = write(enhanced(ARRAY), tmp_path / "a.dcm")
    content = path.read_bytes()
    place_of = content.index(b"\x28\x00\x10\x91SQ")
    path.write_bytes(content[: place_of + 4] + b"S\0" + content[place_of + 6 :])
    with pytest.raises(
        InputError, match=r"cut short or corrupt|ends before its pixels|PixelSpacing is absent|functional groups of"
    ):
        read(path)


def test_huge_counts_allocate_nothing(tmp_path, monkeypatch):
    """Bytes are counted before an array is made."""
    made = enhanced(ARRAY)
    made.Rows = made.Columns = 65_535
    path = write(made, tmp_path / "a.dcm")
    empty = np.empty
    sizes = []
    monkeypatch.setattr(np, "empty", lambda shape, *rest: sizes.append(np.prod(shape)) or empty(shape, *rest))
    with pytest.raises(InputError, match="is cut short: 5 x 65535 x 65535 pixels of 16 bits are 42948362250 bytes"):
        read(path)
    assert max(sizes, default=0) < 2**20


def test_a_thousand_frames_are_read_in_a_moment(tmp_path):
    array = np.arange(4 * 4 * 1000).reshape(4, 4, 1000).astype(np.uint16)
    made = enhanced(array, positions=stack(1000, step=0.5), shared=PLACE)
    path = write(made, tmp_path / "a.dcm")
    start = time.perf_counter()
    scan = read(path)
    # About 0.7 s on one slow core.
    assert time.perf_counter() - start < 10
    assert_volume(scan, array)


def test_two_threads(tmp_path):
    arrays = [ARRAY, ARRAY + 500]
    folders = [write_kind(tmp_path / str(k), enhanced, array) for k, array in enumerate(arrays)]
    results = [[], []]

    def work(k):
        results[k].extend(read(folders[k]).channels[0] for _ in range(20))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, array in zip(results, arrays, strict=True):
        assert len(found) == 20
        assert all(np.array_equal(one, array) for one in found)


def odd(path, **options):
    """A file with values of which pydicom warns: names, dates, UIDs, charsets and numbers of wrong forms."""
    values = {
        "PatientName": "a=b=c=d=e",
        "StudyDate": "yesterday",
        "PatientAge": "old",
        "StudyInstanceUID": "not.a.uid.",
        "InstanceNumber": "1.5x",
        "SliceThickness": "three",
        "Modality": "a word that is far too long for a code string",
    }
    # pydicom would not write a character set that it does not know.
    made = put(enhanced(ARRAY, sop_class=ENHANCED_MR, **(values | options)), 0x00080006, "ISO_IR 999", "CS")
    content = write(made, path).read_bytes()
    path.write_bytes(content.replace(b"\x08\x00\x06\x00CS", b"\x08\x00\x05\x00CS"))
    return path


@pytest.mark.filterwarnings("error")
def test_nothing_reaches_the_console(tmp_path, capfd):
    scan = read(odd(tmp_path / "a.dcm"))
    assert_volume(scan, ARRAY, AFFINE)
    with pytest.raises(InputError):
        read(odd(tmp_path / "b.dcm", PixelSpacing="a\\b"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.needs_data
class TestReal:
    def test_simultaneous_slices(self, data_folder):
        scan = read(data_folder / "wild" / "enh.dcm")
        assert scan.geometry.shape == (64, 64, 6)
        np.testing.assert_allclose(scan.geometry.spacing_mm, (3.375, 3.375, 2.4), atol=1e-6)
        # The first frame's ImagePositionPatient, in RAS+.
        np.testing.assert_allclose(scan.geometry.affine[:3, 3], (109.79, 58.4773, -5.40356), atol=1e-4)

    def test_uneven_positions_are_rejected(self, data_folder, tmp_path):
        content = (data_folder / "wild" / "enh.dcm").read_bytes()
        content = content.replace(b"-109.79\\-58.4774\\1.79644", b"-109.79\\-58.4774\\2.79644")
        (tmp_path / "uneven.dcm").write_bytes(content)
        with pytest.raises(InputError, match=r"not evenly spaced|4-D"):
            read(tmp_path / "uneven.dcm")
