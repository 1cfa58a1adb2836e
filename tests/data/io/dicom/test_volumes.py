"""One volume is one volume: everything that tells two apart, in classic and enhanced files."""

import shutil

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.data.images import ramp
from tests.data.io.dicom.writers import (
    affine_of,
    assert_volume,
    classic,
    enhanced,
    put,
    read,
    stack,
    write,
    write_all,
)
from volseg.data.io.choice import Choice
from volseg.data.io.dicom.reader import count_volumes
from volseg.errors import InputError

FIRST, SECOND = ramp((3, 4, 4)), ramp((3, 4, 4)) + 500
BOTH = np.concatenate([FIRST, SECOND], axis=2)
FD, UL, US = (lambda value, code=code: np.array([value], code).tobytes() for code in ("<f8", "<u4", "<u2"))
SAME, BETWEEN, ABOVE = (np.concatenate([stack(4), stack(4) + np.array([0, 0, up])]) for up in (0, 1.5, 12))
PLACES = {"same": SAME, "between": BETWEEN, "above": ABOVE}
# What differs in the second volume, with values of both, and how it is named.
CLASSIC = {
    "echo time": ("EchoTime", "2.5", "7.5"),
    "echo": ("EchoNumbers", "1", "2"),
    "image type": ("ImageType", "ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P"),
    "time point": ("TemporalPositionIdentifier", "1", "2"),
    "b value": ("DiffusionBValue", FD(0.0), FD(1000.0)),
    "Siemens b value": (0x0019100C, "0", "1000"),
    "inversion time": ("InversionTime", "100", "200"),
    "flip angle": ("FlipAngle", "4", "20"),
    "tube voltage": ("KVP", "80", "140"),
    "kernel": ("ConvolutionKernel", "B30f", "B60f"),
    "stack": ("StackID", "1", "2"),
    "frame of reference": ("FrameOfReferenceUID", "1.2.8", "1.2.9"),
    "GE image type": (0x0043102F, "0", "1"),
    "series number": ("SeriesNumber", "3", "4"),
    "contrast agent": ("ContrastBolusAgent", None, "Gd"),
    "contrast volume": ("ContrastBolusVolume", "10", "20"),
    "slice thickness": ("SliceThickness", "8", "9"),
    "reconstruction method": ("ReconstructionMethod", "FBP", "OSEM"),
    "filter": ("FilterType", "BODY FILTER", "HEAD FILTER"),
    "SUV type": ("SUVType", "BW", "LBM"),
    "decay correction": ("DecayCorrection", "ADMIN", "START"),
    "corrections": ("CorrectedImage", "DECY\\ATTN", "DECY"),
    "photometric interpretation": ("PhotometricInterpretation", "MONOCHROME1", "MONOCHROME2"),
}
ENHANCED = {
    "echo time": ("EffectiveEchoTime", FD(2.5), FD(7.5)),
    "stack": ("StackID", "1", "2"),
    "time point": ("TemporalPositionIndex", UL(1), UL(2)),
    "b value": ("DiffusionBValue", FD(0.0), FD(1000.0)),
    "frame type": ("FrameType", "ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P"),
    "complex component": ("ComplexImageComponent", "MAGNITUDE", "PHASE"),
    "label": ("ASLContext", "CONTROL", "LABEL"),
    "velocity direction": ("VelocityEncodingDirection", FD((0, 1.0, 0)), FD((1.0, 0, 0))),
    "largest velocity": ("VelocityEncodingMaximumValue", FD(100.0), FD(200.0)),
    "reconstruction": ("ReconstructionAlgorithm", "FILTER_BACK_PROJ", "ITERATIVE"),
    "contrast administered": ("ContrastBolusAgentAdministered", "NO", "YES"),
}
KINDS = [(classic, name, *one) for name, one in CLASSIC.items()] + [
    (enhanced, name, *one) for name, one in ENHANCED.items()
]
PRIVATE = {0x0019100C: ("IS", "SIEMENS MR HEADER"), 0x0043102F: ("SS", "GEMS_PARM_01")}


def two(folder, kind, attribute, first, second, positions=SAME):
    """Two volumes of 4 slices that differ in one attribute."""

    def change(k, stated):
        value = first if k < 4 else second
        if kind is enhanced:
            stated[attribute] = value
        else:
            representation, creator = PRIVATE.get(attribute, (None, None))
            put(stated, attribute, value, representation)
            if creator:
                put(stated, attribute & 0xFFFF0000 | 0x10, creator, "LO")

    made = kind(BOTH, positions, change=change)
    return write_all(folder, made if isinstance(made, list) else [made])


@pytest.mark.parametrize(
    ("kind", "name", "attribute", "first", "second", "place"),
    # Stacks beside each other may be one volume.
    [(*one, place) for one in KINDS for place in PLACES if (one[1], place) != ("stack", "above")],
)
def test_what_never_differs_within_a_volume(tmp_path, kind, name, attribute, first, second, place):
    folder = two(tmp_path, kind, attribute, first, second, PLACES[place])
    with pytest.raises(InputError, match=rf"4-D, with 2 volumes \(1: {name} .*, 4 images; 2: {name} .*--volume N"):
        read(folder)
    assert count_volumes(folder, Choice()) == 2
    assert_volume(read(folder, volume=1), FIRST, affine_of(PLACES[place][:4]))
    assert_volume(read(folder, volume=2), SECOND, affine_of(PLACES[place][4:]))
    with pytest.raises(InputError, match="has no volume 3; it has 2"):
        read(folder, volume=3)


RUNS = [
    (classic, "AcquisitionNumber", "1", "2"),
    (classic, "TriggerTime", "0", "40.5"),
    (classic, "FrameReferenceTime", "0", "1000"),
    (enhanced, "FrameAcquisitionNumber", US(1), US(2)),
]


@pytest.mark.parametrize("place", ["same", "between"])
@pytest.mark.parametrize(("kind", "attribute", "first", "second"), RUNS)
def test_runs_that_overlap_are_two_volumes(tmp_path, kind, attribute, first, second, place):
    folder = two(tmp_path, kind, attribute, first, second, PLACES[place])
    with pytest.raises(InputError, match="4-D, with 2 volumes"):
        read(folder)
    assert_volume(read(folder, volume=1), FIRST, affine_of(PLACES[place][:4]))
    assert_volume(read(folder, volume=2), SECOND, affine_of(PLACES[place][4:]))


@pytest.mark.parametrize(("kind", "attribute", "first", "second"), RUNS)
def test_a_volume_scanned_in_parts_is_one(tmp_path, kind, attribute, first, second):
    scan = read(two(tmp_path, kind, attribute, first, second, ABOVE))
    assert_volume(scan, BOTH, affine_of(ABOVE))
    assert scan.warnings == ()


@pytest.mark.parametrize("attribute", ["AcquisitionNumber", "TriggerTime"])
def test_a_run_of_its_own_for_each_slice_tells_nothing(tmp_path, attribute):
    folder = write_all(tmp_path, classic(FIRST, change=lambda k, data: put(data, attribute, str(k))))
    assert_volume(read(folder), FIRST, affine_of(stack(4)))


@pytest.mark.parametrize("kind", [classic, enhanced])
def test_images_at_one_place_that_nothing_tells_apart(tmp_path, kind):
    made = kind(BOTH, SAME)
    with pytest.raises(InputError, match="8 images lie at 4 positions"):
        read(write_all(tmp_path, made if isinstance(made, list) else [made]))


@pytest.mark.parametrize("kind", [classic, enhanced])
def test_a_localiser_among_the_slices_is_set_aside(tmp_path, kind):
    type_of = "ImageType" if kind is classic else "FrameType"

    def change(k, stated):
        value = "ORIGINAL\\PRIMARY\\" + ("LOCALIZER" if k == 4 else "AXIAL")
        if kind is classic:
            put(stated, type_of, value)
        else:
            stated[type_of] = value

    made = kind(ramp(), change=change)
    scan = read(write_all(tmp_path, made if isinstance(made, list) else [made]))
    assert_volume(scan, ramp()[..., :4], affine_of(stack(4)))
    assert scan.warnings == ("1 localiser image of the series (ImageType) are set aside.",)


def test_copies_are_used_once(tmp_path):
    folder = write_all(tmp_path / "s", classic(FIRST))
    (folder / "again").mkdir()
    for file in sorted(folder.glob("*.dcm"))[:2]:
        shutil.copy(file, folder / "again" / file.name)
    scan = read(folder)
    assert_volume(scan, FIRST, affine_of(stack(4)))
    assert scan.warnings == ("2 images are there twice (same file); each is used once.",)


def test_a_changed_copy_is_no_copy(tmp_path):
    made = classic(FIRST)
    write(made[0], tmp_path / "copy.dcm")
    put(made[0], "PixelData", bytes(24), "OW")
    with pytest.raises(InputError, match="5 images lie at 4 positions"):
        read(write_all(tmp_path, made))


def concatenation(array, positions, total=2, uid="1.2.3.7"):
    """One volume in two enhanced files."""
    made = []
    for part, (start, end) in enumerate(((0, 3), (3, array.shape[2]))):
        stated = {"ConcatenationUID": uid, "InConcatenationNumber": part + 1, "InConcatenationTotalNumber": total}
        data = enhanced(array[..., start:end], positions[start:end], **stated)
        data.SOPInstanceUID = f"1.2.3.4.{part + 1}"
        made.append(data)
    return made


def test_a_concatenation_is_one_volume(tmp_path):
    order = [4, 0, 2, 1, 3]
    folder = write_all(tmp_path, concatenation(ramp()[..., order], stack(5)[order]))
    assert_volume(read(folder), ramp(), affine_of(stack(5)))


def test_a_concatenation_with_a_part_missing(tmp_path):
    made = concatenation(ramp(), stack(5))
    for given in (tmp_path, write(made[0], tmp_path / "a.dcm")):
        with pytest.raises(InputError, match=r"holds 1 of the 2 files of one volume \(a concatenation\); add"):
            read(given)


def test_enhanced_files_at_the_same_places_are_volumes_of_their_own(tmp_path):
    made = [enhanced(FIRST), enhanced(SECOND)]
    made[1].SOPInstanceUID = "1.2.3.4.9"
    folder = write_all(tmp_path, made)
    with pytest.raises(InputError, match=r"4-D, with 2 volumes .*file"):
        read(folder)
    assert_volume(read(folder, volume=1), FIRST)
    assert_volume(read(folder, volume=2), SECOND)


def dimensions(data, *pointers):
    data.DimensionIndexSequence = Sequence([put(Dataset(), "DimensionIndexPointer", pointer) for pointer in pointers])
    return data


@pytest.mark.parametrize("place", PLACES)
def test_dimension_indices(tmp_path, place):
    """The second dimension counts something that no attribute here names."""

    def change(k, stated):
        stated["DimensionIndexValues"] = np.array([k % 4 + 1, 1 + (k > 3)], "<u4").tobytes()

    made = enhanced(BOTH, PLACES[place], change=change)
    folder = write_all(tmp_path, [dimensions(made, 0x00200032, 0x00189151)])
    with pytest.raises(InputError, match=r"4-D, with 2 volumes \(1: dimension 2 1, 4 images; 2: dimension 2 2"):
        read(folder)
    assert_volume(read(folder, volume=2), SECOND, affine_of(PLACES[place][4:]))


def test_dimension_indices_of_slices_tell_no_volumes_apart(tmp_path):
    made = enhanced(FIRST, change=lambda k, stated: stated.update(DimensionIndexValues=UL(k + 1)))
    for pointer in (0x00209057, 0x00200032, 0x00201041):
        folder = write_all(tmp_path / str(pointer), [dimensions(made, pointer)])
        assert_volume(read(folder), FIRST, affine_of(stack(4)))


@pytest.mark.parametrize("kind", [classic, enhanced])
def test_numbers_that_are_not_finite_tell_nothing_apart(tmp_path, kind):
    """Some scanners write NaN for "none"."""
    name = "DiffusionGradientOrientation" if kind is classic else "EffectiveEchoTime"
    made = kind(FIRST, **{name: FD(np.nan) * (3 if kind is classic else 1)})
    assert_volume(read(write_all(tmp_path, made if isinstance(made, list) else [made])), FIRST)


def test_many_volumes_are_ordered_by_number_and_counted(tmp_path):
    array = ramp((2, 2, 50))
    values = np.roll(np.arange(25), 7)
    positions = np.tile(stack(2), (25, 1))
    made = classic(array, positions, change=lambda k, data: put(data, "EchoTime", str(values[k // 2] * 10)))
    folder = write_all(tmp_path, made)
    with pytest.raises(InputError, match=r"with 25 volumes \(1: echo time none|1: echo time 0, 2 images; .*and 5 more"):
        read(folder)
    for number in (1, 2, 11, 25):
        at = int(np.flatnonzero(values == number - 1)[0])
        assert_volume(read(folder, volume=number), array[..., 2 * at : 2 * at + 2])
