"""Stored values mean what the tags say, and all of them are there, in classic and enhanced files."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.data.images import ramp
from tests.data.io.dicom.writers import (
    CT,
    ENHANCED_CT,
    PET,
    affine_of,
    assert_volume,
    classic,
    enhanced,
    put,
    read,
    stack,
    write,
    write_all,
    write_kind,
)
from volseg.errors import InputError

ARRAY = ramp()
AFFINE = affine_of(stack(5))
KINDS = pytest.mark.parametrize("kind", [classic, enhanced])
IMPLICIT, BIG, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"


def spread(dtype):
    """Voxels over the range of a type, with both its ends."""
    limits, last = np.iinfo(dtype), ARRAY.size - 1
    width = int(limits.max) - int(limits.min)
    values = [int(limits.min) + width * at // last for at in range(ARRAY.size)]
    return np.array(values, dtype).reshape(ARRAY.shape)


@KINDS
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", IMPLICIT, DEFLATED])
def test_stored_values(tmp_path, kind, dtype, syntax):
    array = spread(dtype)
    made = kind(array)
    scan = read(write_all(tmp_path, made if isinstance(made, list) else [made], syntax=syntax))
    assert_volume(scan, array, AFFINE)


@KINDS
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 3, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_big_endian(tmp_path, kind, shape, dtype):
    """Bytes are written as words of 16 bits in big-endian order (OW); frames of 9 bytes begin within a word."""
    array = ramp(shape, dtype)
    made = kind(array)
    made = made if isinstance(made, list) else [made]
    for k, data in enumerate(made):
        content = array.T[k : k + 1] if kind is classic else array.T
        content = content.tobytes() + b"\0" * (content.nbytes % 2)
        data.add_new("PixelData", "OW", np.frombuffer(content, "<u2").byteswap().tobytes())
    assert_volume(read(write_all(tmp_path, made, syntax=BIG)), array, AFFINE)


@KINDS
def test_a_bare_dataset(tmp_path, kind):
    made = kind(ARRAY)
    for syntax in (IMPLICIT, "1.2.840.10008.1.2.1"):
        folder = write_all(tmp_path / syntax, made if isinstance(made, list) else [made], syntax=syntax, bare=True)
        assert_volume(read(folder), ARRAY, AFFINE)


@KINDS
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (10, 12), (16, 15), (1, 0)])
def test_bits(tmp_path, kind, signed, stored, high):
    """Other bits belong to overlays; the sign of the highest stored bit is extended."""
    meant = spread(np.int16) >> (16 - stored) if signed else spread(np.uint16) >> (16 - stored)
    noise = np.random.default_rng(3).integers(0, 2**16, meant.shape)
    mask = (2**stored - 1) << (high + 1 - stored)
    words = (meant.astype(np.int64) << (high + 1 - stored)) & mask | (noise & ~mask)
    options = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": signed}
    assert_volume(read(write_kind(tmp_path, kind, words.astype(np.uint16), **options)), meant, AFFINE)


@KINDS
@pytest.mark.parametrize("values", [(16, 17, 16), (16, 0, 15), (16, 12, 10), (16, 12, 16), (12, 12, 11), (1, 1, 0)])
def test_bits_that_contradict_each_other(tmp_path, kind, values):
    options = dict(zip(("BitsAllocated", "BitsStored", "HighBit"), values, strict=True))
    with pytest.raises(InputError, match="contradict each other or are not supported"):
        read(write_kind(tmp_path, kind, ARRAY, **options))


@KINDS
@pytest.mark.parametrize(
    "name",
    [
        *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
        "PhotometricInterpretation",
    ],
)
def test_what_says_how_pixels_are_stored_has_no_default(tmp_path, kind, name):
    values = [None, b""] if name == "PhotometricInterpretation" else [None, b"", b"\4\0\4\0"]
    for number, value in enumerate(values):
        folder = write_kind(tmp_path / str(number), kind, ARRAY, **{name: value})
        with pytest.raises(InputError, match=f"{name} is absent"):
            read(folder)


@KINDS
def test_monochrome1_is_about_display(tmp_path, kind):
    folder = write_kind(tmp_path, kind, ARRAY, PhotometricInterpretation="MONOCHROME1")
    assert_volume(read(folder), ARRAY, AFFINE)


@KINDS
@pytest.mark.parametrize("colour", ["RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_RCT"])
def test_colour(tmp_path, kind, colour):
    samples = 1 if colour == "PALETTE COLOR" else 3
    array = np.repeat(ramp((3, 4, 2), np.uint8), samples, axis=0)
    folder = write_kind(tmp_path, kind, array, PhotometricInterpretation=colour, SamplesPerPixel=samples, Columns=3)
    with pytest.raises(InputError, match=f"in colour \\({colour}\\), expected one grey value") as caught:
        read(folder)
    assert "channel" not in str(caught.value)
    assert "4-D" not in str(caught.value)


@KINDS
@pytest.mark.parametrize(
    ("slope", "intercept"),
    [(1, -1024), (2, 7), (-3, 0), (0.5, 0.25), (1, 2**31), (3, -(2**40)), (1e-3, 1e6), (0.5, 2**31)],
)
def test_rescaling(tmp_path, kind, slope, intercept):
    scan = read(write_kind(tmp_path, kind, ARRAY, RescaleSlope=f"{slope!r}", RescaleIntercept=f"{intercept!r}"))
    meant = ARRAY.astype(np.float64) * slope + intercept
    assert_volume(scan, meant, AFFINE, exact=slope == int(slope))
    # As far as float32 goes, differences between neighbours stay.
    np.testing.assert_allclose(
        np.diff(scan.channels[0].astype(float), axis=2), np.diff(meant, axis=2), atol=abs(slope) / 4
    )


def test_whole_values_are_exact_in_the_narrowest_integer(tmp_path):
    for number, (array, intercept, dtype) in enumerate(
        [(ARRAY, -1024, np.int16), (ARRAY, 10**5, np.int32), (spread(np.int32), 2**31, np.int64)]
    ):
        folder = write_kind(tmp_path / str(number), classic, array, RescaleSlope="1", RescaleIntercept=str(intercept))
        scan = read(folder)
        assert scan.channels[0].dtype == dtype
        assert_volume(scan, array.astype(np.int64) + intercept)


@KINDS
@pytest.mark.parametrize("order", [[3, 1, 4, 0, 2], [0, 3, 1, 4, 2], [2, 0, 1, 3, 4]])
@pytest.mark.parametrize("slopes", [[1, 2.5, 3, 0.5, 4], [1, 2, 3000, 4, 5], [7.5, 1, 1, 1, 1]])
def test_rescaling_of_each_slice(tmp_path, kind, order, slopes):
    """The type holds the values of all slices, whichever of them is the first."""
    intercepts = [0, -1, 7, 100, -1024]

    def change(k, stated):
        values = {"RescaleSlope": str(slopes[k]), "RescaleIntercept": str(intercepts[k])}
        for name, value in values.items():
            stated.update({name: value}) if kind is enhanced else put(stated, name, value)

    folder = write_kind(tmp_path, kind, ARRAY[..., order], positions=stack(5)[order], change=change)
    at = np.argsort(order)
    meant = ARRAY * np.array(slopes)[at] + np.array(intercepts)[at]
    assert_volume(read(folder), meant, AFFINE)


@KINDS
@pytest.mark.parametrize(
    ("slope", "intercept", "why"),
    [
        ("2", None, "RescaleIntercept is absent"),
        ("2", "", "RescaleIntercept is absent"),
        (None, "-1024", "RescaleSlope is absent"),
        ("0", "0", "RescaleSlope is 0 and RescaleIntercept 0, expected finite numbers and no slope of 0"),
        ("nan", "0", "RescaleSlope is not one number"),
        ("1,5", "0", "RescaleSlope is not one number"),
        ("1\\2", "0", "RescaleSlope is not one number"),
        ("1", "inf", "RescaleIntercept inf"),
    ],
)
def test_a_rescaling_that_is_not_stated_whole(tmp_path, kind, slope, intercept, why):
    with pytest.raises(InputError, match=why):
        read(write_kind(tmp_path, kind, ARRAY, RescaleSlope=slope, RescaleIntercept=intercept))


def table(entries, first=0, bits=16, count=None, kind="OW"):
    found = Dataset()
    values = np.array([len(entries) if count is None else count, first, bits])
    put(found, "LUTDescriptor", values.astype("<i8").astype("<u2").tobytes(), "SS" if first < 0 else "US")
    put(found, "LUTData", np.array(entries, "<u2" if bits > 8 else "u1").tobytes(), kind)
    return Sequence([found])


def test_modality_lut(tmp_path):
    entries = np.random.default_rng(4).integers(0, 2**16, 60)
    assert_volume(read(write_kind(tmp_path, classic, ARRAY, ModalityLUTSequence=table(entries))), entries[ARRAY])


def test_modality_lut_in_big_endian_order(tmp_path):
    entries = np.random.default_rng(4).integers(0, 2**16, 60)
    lut = table(entries)
    put(lut[0], "LUTData", np.array(entries, ">u2").tobytes(), "OW")
    made = classic(ARRAY, ModalityLUTSequence=lut)
    for data in made:
        put(data, "PixelData", np.frombuffer(data["PixelData"].value, "<u2").astype(">u2").tobytes(), "OW")
    folder = write_all(tmp_path, made, syntax=BIG)
    assert_volume(read(folder), entries[ARRAY])


def test_modality_lut_with_a_signed_first_value_and_ends(tmp_path):
    """Values before the first entry have that entry, those after the last have the last."""
    entries = 1000 - np.arange(20)
    folder = write_kind(tmp_path, classic, ARRAY - 30, ModalityLUTSequence=table(entries, first=-10))
    assert_volume(read(folder), entries[np.clip(ARRAY - 30 + 10, 0, 19)], AFFINE)


def test_modality_lut_of_8_bits(tmp_path):
    entries = (np.arange(60) * 37 % 256).astype(np.uint8)
    assert_volume(
        read(write_kind(tmp_path / "a", classic, ARRAY, ModalityLUTSequence=table(entries, bits=8))), entries[ARRAY]
    )
    # Entries of 8 bits may also be stored in 16.
    wide = table(entries)
    put(wide[0], "LUTDescriptor", np.array([60, 0, 8], "<u2").tobytes(), "US")
    assert_volume(read(write_kind(tmp_path / "b", classic, ARRAY, ModalityLUTSequence=wide)), entries[ARRAY])


@pytest.mark.parametrize(
    ("lut", "why"),
    [
        (table(np.arange(50), count=60), "has 50 of its 60 entries"),
        (table(np.arange(50), count=0), "has 50 of its 65536 entries"),
        (Sequence([Dataset()]), "no LUTDescriptor or LUTData"),
    ],
)
def test_modality_lut_that_is_not_whole(tmp_path, lut, why):
    with pytest.raises(InputError, match=why):
        read(write_kind(tmp_path, classic, ARRAY, ModalityLUTSequence=lut))


def test_modality_lut_beside_a_rescaling(tmp_path):
    options = {"ModalityLUTSequence": table(range(60)), "RescaleSlope": "1", "RescaleIntercept": "0"}
    with pytest.raises(InputError, match="Modality LUT Sequence and a RescaleSlope"):
        read(write_kind(tmp_path, classic, ARRAY, **options))


@pytest.mark.parametrize(("kind", "sop_class"), [(classic, CT), (enhanced, ENHANCED_CT)])
def test_ct_without_a_rescaling(tmp_path, kind, sop_class):
    scan = read(write_kind(tmp_path, kind, ARRAY, sop_class=sop_class))
    assert_volume(scan, ARRAY)
    assert scan.warnings == (
        "RescaleSlope and RescaleIntercept are absent; the stored values are taken as Hounsfield units.",
    )


@pytest.mark.parametrize(("kind", "sop_class"), [(classic, CT), (enhanced, ENHANCED_CT)])
@pytest.mark.parametrize(("stated", "warned"), [("HU", False), (None, False), ("", False), ("ED", True), ("US", True)])
def test_ct_in_other_units(tmp_path, kind, sop_class, stated, warned):
    options = {"RescaleSlope": "1", "RescaleIntercept": "0", "RescaleType": stated}
    scan = read(write_kind(tmp_path, kind, ARRAY, sop_class=sop_class, **options))
    assert_volume(scan, ARRAY)
    assert scan.warnings == (
        (f"RescaleType of the CT is {stated}, so its values may not be Hounsfield units.",) if warned else ()
    )


@pytest.mark.parametrize(("units", "said"), [("BQML", "BQML"), (None, "unstated units"), ("GML", None)])
def test_units_of_pet(tmp_path, units, said):
    slopes = [1.5, 2.5, 1.25, 4.5, 3]
    scan = read(
        write_kind(
            tmp_path,
            classic,
            ARRAY,
            sop_class=PET,
            Units=units,
            change=lambda k, data: put(put(data, "RescaleSlope", str(slopes[k])), "RescaleIntercept", "0"),
        )
    )
    assert_volume(scan, ARRAY * np.array(slopes), AFFINE)
    assert scan.warnings == ((f"The PET values are in {said} (Units), not in SUV.",) if said else ())


@pytest.mark.parametrize(("slope", "warned"), [("2", True), ("1", False)])
def test_philips_private_scale(tmp_path, slope, warned):
    def change(k, data):
        put(data, 0x2005100E, b"\0\0\0\x3f", "FL")

    folder = write_kind(tmp_path, classic, ARRAY, change=change, RescaleSlope=slope, RescaleIntercept="0")
    scan = read(folder)
    assert_volume(scan, ARRAY * int(slope))
    assert [warning.startswith("Philips MR: RescaleSlope") for warning in scan.warnings] == [True] * warned


@KINDS
def test_pixel_padding_is_counted_and_kept(tmp_path, kind):
    array = ARRAY.copy()
    array[:2, 0] = -2000
    options = {"PixelPaddingValue": np.array([-2000], "<i2").tobytes()}
    for number, vr in enumerate(("SS", "US")):
        made = kind(array)
        for data in made if isinstance(made, list) else [made]:
            put(data, "PixelPaddingValue", options["PixelPaddingValue"], vr)
        scan = read(write_all(tmp_path / str(number), made if isinstance(made, list) else [made]))
        assert_volume(scan, array)
        assert scan.warnings == ("10 pixels have the PixelPaddingValue, so nothing was measured there; they are kept.",)


def resized(data, size):
    content = data["PixelData"].value
    return put(data, "PixelData", (content + b"\1" * max(size, 0))[: len(content) + size], "OW")


@KINDS
@pytest.mark.parametrize(
    ("change", "why"), [(-2, "is cut short"), (-24, "is cut short"), (2, "PixelData has"), (24, "PixelData has")]
)
def test_another_number_of_bytes(tmp_path, kind, change, why):
    made = kind(ARRAY)
    resized(made[2] if kind is classic else made, change)
    with pytest.raises(InputError, match=why):
        read(write_all(tmp_path, made if isinstance(made, list) else [made]))


@KINDS
def test_zeros_after_the_pixels_are_fill(tmp_path, kind):
    made = kind(ARRAY)
    data = made[2] if kind is classic else made
    put(data, "PixelData", data["PixelData"].value + bytes(6), "OW")
    scan = read(write_all(tmp_path, made if isinstance(made, list) else [made]))
    np.testing.assert_array_equal(scan.channels[0], ARRAY)
    assert "PixelData has up to 6 more bytes than pixels, all zero; they are not used." in scan.warnings


@pytest.mark.parametrize(
    "number", ["0", "-1", "1.5", "x", "4", "6", "2", "1000000000", "99999999999999999999", "5\\5", ""]
)
def test_number_of_frames(tmp_path, number):
    with pytest.raises(InputError, match="NumberOfFrames"):
        read(write_kind(tmp_path / "a", enhanced, ARRAY, NumberOfFrames=number))
    if number:
        with pytest.raises(InputError, match=r"NumberOfFrames|multi-frame DICOM without functional groups"):
            read(write_kind(tmp_path / "b", classic, ARRAY, NumberOfFrames=number))


def test_odd_number_of_bytes_with_and_without_padding(tmp_path):
    array = ramp((3, 3, 3), np.uint8)
    assert_volume(read(write_kind(tmp_path / "a", classic, array)), array)
    made = enhanced(array)
    path = write(made, tmp_path / "b" / "a.dcm")
    path.write_bytes(path.read_bytes()[:-1])
    assert_volume(read(path), array)


def icon():
    """A small image of another kind, before the real one."""
    found = Dataset()
    found.Rows = found.Columns = 2
    found.BitsAllocated = found.BitsStored = 8
    found.HighBit, found.PixelRepresentation, found.SamplesPerPixel = 7, 0, 1
    found.PhotometricInterpretation, found.PixelData = "MONOCHROME2", b"\1\2\3\4"
    found["PixelData"].VR = "OB"
    return Sequence([found])


@KINDS
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", IMPLICIT, DEFLATED])
def test_an_icon_and_trailing_padding_are_not_the_pixels(tmp_path, kind, syntax):
    made = kind(ARRAY, IconImageSequence=icon())
    for data in made if isinstance(made, list) else [made]:
        data.add_new(0xFFFCFFFC, "OB", bytes(64))
    folder = write_all(tmp_path, made if isinstance(made, list) else [made], syntax=syntax)
    assert_volume(read(folder), ARRAY, AFFINE)


@KINDS
def test_pixels_in_floating_point_are_named(tmp_path, kind):
    made = kind(ARRAY)
    for data in made if isinstance(made, list) else [made]:
        del data.PixelData
        data.add_new("FloatPixelData", "OF", ARRAY.astype("<f4").tobytes())
    with pytest.raises(InputError, match=r"DICOM of another kind \(image of FloatPixelData"):
        read(write_all(tmp_path, made if isinstance(made, list) else [made]))
