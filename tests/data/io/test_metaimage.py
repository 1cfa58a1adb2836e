"""MetaImage: values and grids against SimpleITK, and what is refused or warned of."""

import gzip
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from tests.data.io.text_headers import (
    AFFINE,
    OTHER_KINDS,
    RAW,
    VOXELS,
    as_text,
    meta_file,
    orientations,
    slices_beside,
)
from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.data.io.reading import read_scan
from volseg.errors import InputError

PACKED = zlib.compress(RAW)
# Changed keys and the bytes after them, for every way to store the voxels.
STORED = {
    "raw": ({}, RAW),
    "zlib": ({"CompressedData": "True"}, PACKED),
    "gzip": ({"CompressedData": "True"}, gzip.compress(RAW)),
    "text": ({"BinaryData": "False"}, as_text(VOXELS)),
}


def assert_is_the_volume(path):
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.channels[0], VOXELS)
    np.testing.assert_allclose(scan.geometry.affine, AFFINE, atol=1e-12)
    return scan


def refused(path, *words):
    """The sentence of a refusal, which names the file and says all words."""
    with pytest.raises(InputError) as error:
        read_scan(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


class TestValues:
    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    @pytest.mark.parametrize("suffix", [".mha", ".mhd"])
    def test_every_type_agrees_with_simpleitk(self, tmp_path, suffix, dtype, compressed):
        path = tmp_path / f"a{suffix}"
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS.astype(dtype).T), str(path), useCompression=compressed)
        scan = read_scan(path)
        assert scan.channels[0].dtype == np.dtype(dtype)
        assert scan.warnings == ()
        np.testing.assert_array_equal(scan.channels[0], sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T)

    @pytest.mark.parametrize("stored", STORED)
    def test_every_way_to_store_voxels(self, tmp_path, stored):
        changes, body = STORED[stored]
        scan = assert_is_the_volume(meta_file(tmp_path / "a.mha", body, changes))
        assert scan.warnings == ()
        assert scan.unstated == ""

    @pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
    def test_big_endian(self, tmp_path, key):
        changes = {"BinaryDataByteOrderMSB": None, key: "True"}
        scan = assert_is_the_volume(meta_file(tmp_path / "a.mha", VOXELS.astype(">i2").tobytes(order="F"), changes))
        assert scan.channels[0].dtype.isnative

    def test_a_byte_order_that_is_not_stated_is_warned_of(self, tmp_path):
        scan = assert_is_the_volume(meta_file(tmp_path / "a.mha", changes={"BinaryDataByteOrderMSB": None}))
        assert "byte order" in scan.warnings[0]
        changes = {"BinaryDataByteOrderMSB": None, "ElementType": "MET_UCHAR"}
        assert read_scan(meta_file(tmp_path / "b.mha", RAW[:210], changes)).warnings == ()
        changes = {"ElementByteOrderMSB": "True"}
        refused(meta_file(tmp_path / "c.mha", changes=changes), "ElementByteOrderMSB", "contradict")

    def test_binary_is_assumed_with_a_warning(self, tmp_path):
        scan = assert_is_the_volume(meta_file(tmp_path / "a.mha", changes={"BinaryData": None}))
        assert "BinaryData" in scan.warnings[0]

    def test_channels_come_last_and_are_not_called_colour(self, tmp_path):
        array = np.stack([VOXELS, VOXELS + 1, VOXELS + 2])
        changes = {"ElementNumberOfChannels": "3"}
        path = meta_file(tmp_path / "a.mha", array.tobytes(order="F"), changes)
        for channel, found in enumerate(read_scan(path, channels=3).channels):
            np.testing.assert_array_equal(found, VOXELS + channel)
        assert "colour" not in refused(path, "4-D", "3 volumes")

    def test_a_stated_scaling_is_applied(self, tmp_path):
        changes = {"ElementToIntensityFunctionSlope": "2", "ElementToIntensityFunctionOffset": "-1"}
        scan = read_scan(meta_file(tmp_path / "a.mha", changes=changes))
        np.testing.assert_array_equal(scan.channels[0], VOXELS * 2.0 - 1)
        assert "ElementToIntensityFunctionSlope" in scan.warnings[0]
        for slope in ("0", "nan", "inf", "x"):
            changes = {"ElementToIntensityFunctionSlope": slope}
            refused(meta_file(tmp_path / "b.mha", changes=changes), "ElementToIntensityFunctionSlope")

    def test_a_header_before_the_voxels_is_skipped(self, tmp_path):
        (tmp_path / "v.raw").write_bytes(b"12345678" + RAW)
        (tmp_path / "two.raw").write_bytes(bytes(8) + RAW + RAW)
        scan = assert_is_the_volume(
            meta_file(tmp_path / "t.mhd", b"", {"ElementDataFile": "two.raw", "HeaderSize": "8"})
        )
        assert "420 bytes after the voxels in two.raw" in scan.warnings[0]
        for size in ("8", "-1"):
            changes = {"ElementDataFile": "v.raw", "HeaderSize": size}
            assert_is_the_volume(meta_file(tmp_path / "a.mhd", b"", changes))
        refused(meta_file(tmp_path / "b.mhd", b"", {"ElementDataFile": "v.raw", "HeaderSize": "9"}), "truncated")
        refused(meta_file(tmp_path / "c.mhd", b"", {"ElementDataFile": "v.raw", "HeaderSize": "-2"}), "'HeaderSize'")


class TestGrid:
    @pytest.mark.parametrize("matrix", orientations(), ids=lambda matrix: str(matrix.astype(int).ravel().tolist()))
    def test_all_orientations_agree_with_simpleitk(self, tmp_path, matrix):
        image = sitk.GetImageFromArray(VOXELS.T)
        image.SetDirection(matrix.ravel().tolist())
        image.SetSpacing((0.9, 0.8, 1.2))
        image.SetOrigin((30, 40, -20))
        sitk.WriteImage(image, str(tmp_path / "a.mha"))
        scan = read_scan(tmp_path / "a.mha")
        for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)):
            place = LPS_FROM_RAS @ [*image.TransformIndexToPhysicalPoint(index), 1]
            np.testing.assert_allclose(scan.geometry.affine @ [*index, 1], place, atol=1e-9)
            assert scan.channels[0][index] == image[index]

    def test_an_oblique_grid_agrees_with_simpleitk(self, tmp_path):
        image = sitk.GetImageFromArray(VOXELS.T)
        image.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.4, 0.7).GetMatrix())
        image.SetSpacing((0.9, 0.8, 1.2))
        sitk.WriteImage(image, str(tmp_path / "a.mha"))
        place = LPS_FROM_RAS @ [*image.TransformIndexToPhysicalPoint((6, 5, 4)), 1]
        affine = read_scan(tmp_path / "a.mha").geometry.affine
        np.testing.assert_allclose(affine @ [6, 5, 4, 1], place, atol=1e-9)

    def test_sheared_axes_stay_as_stated(self, tmp_path):
        changes = {"TransformMatrix": "1 0 0 0.6 0.8 0 0 0 1"}
        affine = read_scan(meta_file(tmp_path / "a.mha", changes=changes)).geometry.affine
        np.testing.assert_allclose(affine[:3, :3], [[-0.9, -0.48, 0], [0, -0.64, 0], [0, 0, 1.2]])

    @pytest.mark.parametrize(("key", "name"), [("TransformMatrix", "Rotation"), ("TransformMatrix", "Orientation")])
    @pytest.mark.parametrize("other", ["Position", "Origin"])
    def test_other_names_of_matrix_and_origin(self, tmp_path, key, name, other):
        changes = {key: None, name: "1 0 0 0 1 0 0 0 1", "Offset": None, other: "30 40 -20"}
        assert assert_is_the_volume(meta_file(tmp_path / "a.mha", changes=changes)).warnings == ()
        refused(meta_file(tmp_path / "b.mha", changes={other: "1 2 3"}), "Offset", other, "contradict")

    def test_a_spacing_that_is_not_stated_is_refused(self, tmp_path):
        message = refused(
            meta_file(tmp_path / "a.mha", changes={"ElementSpacing": None}), "'ElementSpacing'", "unknown"
        )
        assert "copy" not in message

    def test_the_size_of_an_element_is_its_spacing_with_a_warning(self, tmp_path):
        changes = {"ElementSpacing": None, "ElementSize": "0.9 0.8 1.2"}
        scan = assert_is_the_volume(meta_file(tmp_path / "a.mha", changes=changes))
        assert "ElementSpacing" in scan.warnings[0]
        assert "ElementSize" in scan.unstated
        # Beside a spacing, it is the extent of an element and says nothing about the grid.
        assert assert_is_the_volume(meta_file(tmp_path / "b.mha", changes={"ElementSize": "3 3 3"})).warnings == ()

    @pytest.mark.parametrize(
        "value", ["0.9 0.8 0", "0.9 0.8 -1.2", "0.9 0.8 nan", "0.9 0.8 inf", "0.9 0.8", "1 x 1", "1e200 1 1", ""]
    )
    def test_spacings_that_are_none_are_refused(self, tmp_path, value):
        refused(meta_file(tmp_path / "a.mha", changes={"ElementSpacing": value}), "'ElementSpacing'")

    def test_an_orientation_that_is_not_stated_is_warned_of(self, tmp_path):
        scan = assert_is_the_volume(meta_file(tmp_path / "a.mha", changes={"TransformMatrix": None}))
        assert "TransformMatrix" in scan.warnings[0]
        assert "TransformMatrix" in scan.unstated
        changes = {"TransformMatrix": None, "DistanceUnits": "mm"}
        assert assert_is_the_volume(meta_file(tmp_path / "b.mha", changes=changes)).unstated == ""

    @pytest.mark.parametrize(
        "value", ["0 0 0 0 0 0 0 0 0", "2 0 0 0 2 0 0 0 2", "1 0 0 0 nan 0 0 0 1", "1 0 0 0 1 0", "1 0 0 1 0 0 0 0 1"]
    )
    def test_matrices_that_are_none_are_refused(self, tmp_path, value):
        refused(meta_file(tmp_path / "a.mha", changes={"TransformMatrix": value}))

    def test_an_origin_that_is_not_stated_is_warned_of(self, tmp_path):
        for offset in (None, "nan nan nan"):
            scan = read_scan(meta_file(tmp_path / "a.mha", changes={"Offset": offset}))
            np.testing.assert_array_equal(scan.geometry.affine[:3, 3], 0)
            assert "Offset" in scan.warnings[0]
            assert scan.unstated == ""
        refused(meta_file(tmp_path / "b.mha", changes={"Offset": "inf 0 0"}), "'Offset'")

    @pytest.mark.parametrize(("unit", "millimetres"), [("mm", 1), ("um", 1e-3), ("cm", 10), ("?", 1)])
    def test_units_are_converted(self, tmp_path, unit, millimetres):
        scan = read_scan(meta_file(tmp_path / "a.mha", changes={"DistanceUnits": unit}))
        np.testing.assert_allclose(scan.geometry.affine[:3], AFFINE[:3] * millimetres)
        refused(meta_file(tmp_path / "b.mha", changes={"DistanceUnits": "parsec"}), "'DistanceUnits'", "parsec")

    def test_four_dimensions(self, tmp_path):
        changes = {
            "NDims": "4",
            "DimSize": "7 6 5 2",
            "TransformMatrix": "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1",
            "Offset": "30 40 -20 0",
            "ElementSpacing": "0.9 0.8 1.2 1",
        }
        path = meta_file(tmp_path / "a.mha", RAW + (VOXELS + 1).tobytes(order="F"), changes)
        scan = read_scan(path, channels=2)
        np.testing.assert_allclose(scan.geometry.affine, AFFINE, atol=1e-12)
        np.testing.assert_array_equal(scan.channels[1], VOXELS + 1)
        refused(path, "4-D", "2 volumes")
        changes |= {"TransformMatrix": "1 0 0 0 0 1 0 0 0 0 0 1 0 0 1 0"}
        refused(meta_file(tmp_path / "b.mha", RAW * 2, changes), "TransformMatrix", "time")


class TestHeader:
    @pytest.mark.parametrize("key", ["NDims", "DimSize", "ElementType", "ElementDataFile"])
    def test_a_key_that_is_needed_is_named(self, tmp_path, key):
        refused(meta_file(tmp_path / "a.mha", changes={key: None}), key)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("ObjectType", "Mesh"),
            ("NDims", "1"),
            ("NDims", "5"),
            ("NDims", "x"),
            ("DimSize", "7 6"),
            ("DimSize", "7 6 -5"),
            ("DimSize", "7 6 0"),
            ("DimSize", "7 6 5.5"),
            ("ElementType", "MET_OTHER"),
            ("ElementType", "MET_SHORT_ARRAY"),
            ("ElementNumberOfChannels", "0"),
            ("BinaryData", "maybe"),
            ("CompressedData", "2"),
            ("BinaryDataByteOrderMSB", "little"),
        ],
    )
    def test_values_that_cannot_be_meant_are_named(self, tmp_path, key, value):
        message = refused(meta_file(tmp_path / "a.mha", changes={key: value}), f"'{key}'")
        assert "copy" not in message

    def test_text_cannot_be_compressed(self, tmp_path):
        changes = {"BinaryData": "False", "CompressedData": "True"}
        refused(meta_file(tmp_path / "a.mha", changes=changes), "'CompressedData'")

    def test_two_dimensions(self, tmp_path):
        changes = {"NDims": "2", "DimSize": "7 6", "ElementSpacing": "1 1", "TransformMatrix": None, "Offset": None}
        refused(meta_file(tmp_path / "a.mha", RAW[:84], changes), "2-D")

    def test_a_key_twice_or_after_the_last_is_refused(self, tmp_path):
        path = meta_file(tmp_path / "a.mha", b"")
        header = path.read_bytes()
        path.write_bytes(b"NDims = 3\n" + header + RAW)
        refused(path, "'NDims'", "twice")
        path.write_bytes(header + b"Modality = MET_MOD_CT\n" + RAW)
        refused(path, "'ElementDataFile' has to be the last key", "Modality")
        (tmp_path / "v.raw").write_bytes(RAW)
        path = meta_file(
            tmp_path / "b.mhd", b"ElementSpacing = 1 1 1\n", {"ElementDataFile": "v.raw", "ElementSpacing": None}
        )
        refused(path, "'ElementDataFile' has to be the last key", "ElementSpacing")

    def test_windows_line_ends_colons_and_keys_without_meaning(self, tmp_path):
        path = meta_file(tmp_path / "a.mha", b"", {"Modality": "MET_MOD_MR", "CenterOfRotation": "9 9 9"})
        text = path.read_text().replace("\n", "\r\n").replace("NDims =", "NDims:")
        path.write_bytes(text.encode() + RAW)
        assert assert_is_the_volume(path).warnings == ()

    @pytest.mark.parametrize(("content", "words"), OTHER_KINDS)
    def test_files_of_another_kind_are_named(self, tmp_path, content, words):
        for suffix in (".mha", ".mhd"):
            (tmp_path / f"a{suffix}").write_bytes(content)
            refused(tmp_path / f"a{suffix}", words)


class TestCounting:
    @pytest.mark.parametrize("stored", STORED)
    def test_no_cut_of_a_file_gives_another_volume(self, tmp_path, stored):
        changes, body = STORED[stored]
        path = meta_file(tmp_path / "a.mha", body, changes)
        whole = path.read_bytes()
        # Of decimal text, the last number cannot be told from a shorter one.
        for length in range(len(whole) - 5 * (stored == "text")):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError):
                read_scan(path)

    @pytest.mark.parametrize("size", [None, len(PACKED), len(PACKED) // 2, 1, 10**12])
    def test_the_stated_size_of_a_stream_does_not_matter(self, tmp_path, size):
        changes = {"CompressedData": "True", "CompressedDataSize": None if size is None else str(size)}
        assert_is_the_volume(meta_file(tmp_path / "a.mha", PACKED, changes))
        message = refused(meta_file(tmp_path / "b.mha", PACKED[:-100], changes), "truncated", "declares 420 bytes")
        assert "found 0" not in message

    def test_streams_that_are_damaged_or_followed_by_more(self, tmp_path):
        changes = {"CompressedData": "True"}
        refused(meta_file(tmp_path / "a.mha", PACKED[:-4] + bytes(4), changes), "damaged", "checksum")
        refused(meta_file(tmp_path / "b.mha", PACKED + b"more", changes), "other bytes follow")
        assert_is_the_volume(meta_file(tmp_path / "c.mha", PACKED + b"\n", changes))
        refused(meta_file(tmp_path / "d.mha", zlib.compress(RAW[:84]), changes), "truncated", "found 84")

    @pytest.mark.parametrize("stored", STORED)
    def test_sizes_beyond_any_memory_are_refused_at_once(self, tmp_path, stored):
        changes, body = STORED[stored]
        path = meta_file(tmp_path / "a.mha", body, changes | {"DimSize": "60000 60000 60000"})
        refused(path, "truncated", "432000000000000 bytes")

    @pytest.mark.parametrize("size", ["7 6 4", "7 3 5", "1 1 1"])
    @pytest.mark.parametrize("stored", STORED)
    def test_more_voxels_than_the_sizes_declare_are_refused(self, tmp_path, stored, size):
        changes, body = STORED[stored]
        message = refused(
            meta_file(tmp_path / "a.mha", body, changes | {"DimSize": size}), "sizes or its type are wrong"
        )
        assert "copy" not in message

    def test_compressed_voxels_that_are_declared_as_plain_are_named(self, tmp_path):
        refused(meta_file(tmp_path / "a.mha", PACKED), "begin as a zlib stream")

    def test_nothing_is_written_to_the_console(self, tmp_path, capfd):
        refused(meta_file(tmp_path / "a.mha", PACKED[:50], {"CompressedData": "True"}))
        refused(meta_file(tmp_path / "b.mha", b""))
        assert capfd.readouterr() == ("", "")


class TestOtherFiles:
    @pytest.mark.parametrize("name", ["v.raw", "all voxels.raw", "sub/v.raw", "./sub/v.raw"])
    def test_one_file(self, tmp_path, name):
        (tmp_path / "sub").mkdir()
        (tmp_path / name).write_bytes(RAW)
        assert_is_the_volume(meta_file(tmp_path / "a.mhd", b"", {"ElementDataFile": name}))
        assert_is_the_volume(meta_file(tmp_path / "b.mhd", b"", {"ElementDataFile": str(tmp_path / name)}))

    @pytest.mark.parametrize("value", ["s%03d.raw 0 4 1", "s%03d.raw 0 4", "s%03d.raw 0"])
    def test_numbered_files(self, tmp_path, value):
        slices_beside(tmp_path)
        assert_is_the_volume(meta_file(tmp_path / "a.mhd", b"", {"ElementDataFile": value}))

    def test_numbers_begin_at_1(self, tmp_path):
        for number, name in enumerate(slices_beside(tmp_path), 1):
            (tmp_path / name).rename(tmp_path / f"n{number}")
        assert_is_the_volume(meta_file(tmp_path / "a.mhd", b"", {"ElementDataFile": "n%d"}))

    @pytest.mark.parametrize("first", ["LIST", "LIST 2", "LIST 2D"])
    def test_a_list(self, tmp_path, first):
        names = "\n".join(slices_beside(tmp_path)) + "\n"
        assert_is_the_volume(meta_file(tmp_path / "a.mhd", names.encode(), {"ElementDataFile": first}))

    def test_a_list_of_compressed_slices(self, tmp_path):
        names = slices_beside(tmp_path)
        for name in names:
            (tmp_path / name).write_bytes(zlib.compress((tmp_path / name).read_bytes()))
        changes = {"ElementDataFile": "LIST", "CompressedData": "True"}
        assert_is_the_volume(meta_file(tmp_path / "a.mhd", "\n".join(names).encode(), changes))

    def test_too_few_files_are_counted_and_a_missing_one_named(self, tmp_path):
        names = slices_beside(tmp_path)
        path = meta_file(tmp_path / "a.mhd", "\n".join(names[:3]).encode(), {"ElementDataFile": "LIST"})
        refused(path, "names 3 files", "need 5", "2 are missing")
        refused(meta_file(tmp_path / "b.mhd", b"", {"ElementDataFile": "s%03d.raw 0 2 1"}), "2 are missing")
        (tmp_path / names[1]).write_bytes(b"short")
        changes = {"ElementDataFile": "s%03d.raw 0 4 1"}
        refused(meta_file(tmp_path / "c.mhd", b"", changes), "84 bytes", "found 5 in s001.raw")
        (tmp_path / names[1]).unlink()
        message = refused(meta_file(tmp_path / "d.mhd", b"", changes), "s001.raw, does not exist")
        assert "copy" not in message

    @pytest.mark.parametrize("size", [10**6, 10**17])
    def test_a_header_size_beyond_the_file_is_named(self, tmp_path, size):
        (tmp_path / "v.raw").write_bytes(RAW)
        path = meta_file(tmp_path / "a.mhd", b"", {"HeaderSize": str(size), "ElementDataFile": "v.raw"})
        assert "truncated" not in refused(path, f"begin after {size} bytes, but the file ends before")

    @pytest.mark.parametrize("name", [".\\v.raw", "sub\\v.raw", ".\\sub\\v.raw", "sub\\..\\v.raw"])
    def test_separators_of_windows(self, tmp_path, name):
        (tmp_path / "sub").mkdir()
        for folder in (tmp_path, tmp_path / "sub"):
            (folder / "v.raw").write_bytes(RAW)
        path = meta_file(tmp_path / "a.mhd", b"", {"ElementDataFile": name})
        assert_is_the_volume(path)
        # Elsewhere a backslash may be a letter of the name, which goes first.
        (tmp_path / name).write_bytes(RAW[:-2])
        refused(path, "truncated", "found 418")

    @pytest.mark.parametrize("name", [".\\no.raw", "C:\\data\\v.raw"])
    def test_a_missing_file_is_named_as_the_header_does(self, tmp_path, name):
        (tmp_path / "v.raw").write_bytes(RAW)
        refused(meta_file(tmp_path / "a.mhd", b"", {"ElementDataFile": name}), f"{name}, does not exist")

    def test_numbered_files_with_separators_of_windows(self, tmp_path):
        (tmp_path / "sub").mkdir()
        for k, at in enumerate(range(0, len(RAW), len(RAW) // 5)):
            (tmp_path / "sub" / f"s{k}.raw").write_bytes(RAW[at : at + len(RAW) // 5])
        assert_is_the_volume(meta_file(tmp_path / "a.mhd", b"", {"ElementDataFile": "sub\\s%d.raw 0 4 1"}))

    def test_a_folder_is_no_file_of_voxels(self, tmp_path):
        (tmp_path / "v.raw").mkdir()
        refused(meta_file(tmp_path / "a.mhd", b"", {"ElementDataFile": "v.raw"}), "v.raw, is not a file")
