"""NRRD: values and grids against SimpleITK and pynrrd, and what is refused or warned of."""

import bz2
import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from tests.data.io.text_headers import (
    AFFINE,
    OTHER_KINDS,
    RAW,
    VOXELS,
    as_text,
    nrrd_file,
    orientations,
    slices_beside,
)
from volseg.data.grid.geometry import LPS_FROM_RAS
from volseg.data.io.reading import read_scan
from volseg.errors import InputError

ENCODED = {
    "raw": RAW,
    "gzip": gzip.compress(RAW),
    "gz": gzip.compress(RAW[:100]) + gzip.compress(RAW[100:]),
    "bzip2": bz2.compress(RAW),
    "hex": RAW.hex("\n").encode() + b"\n",
    "ascii": as_text(VOXELS),
}


def read(path):
    scan = read_scan(path)
    return scan.channels[0], scan.geometry.affine, scan


def assert_is_the_volume(path):
    array, affine, scan = read(path)
    np.testing.assert_array_equal(array, VOXELS)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-12)
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
    def test_every_type_agrees_with_simpleitk(self, tmp_path, dtype, compressed):
        path = str(tmp_path / "a.nrrd")
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS.astype(dtype).T), path, useCompression=compressed)
        array, _, scan = read(tmp_path / "a.nrrd")
        assert array.dtype == np.dtype(dtype)
        assert scan.warnings == ()
        np.testing.assert_array_equal(array, sitk.GetArrayFromImage(sitk.ReadImage(path)).T)

    @pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
    @pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
    def test_agrees_with_pynrrd(self, tmp_path, encoding, dtype):
        pynrrd = pytest.importorskip("nrrd")
        space = {"space": "RAS", "space directions": np.diag([0.5, 2, 3]), "space origin": [1, 2, 3]}
        pynrrd.write(str(tmp_path / "a.nrrd"), VOXELS.astype(dtype), {"encoding": encoding, **space})
        array, affine, _ = read(tmp_path / "a.nrrd")
        np.testing.assert_array_equal(array, pynrrd.read(str(tmp_path / "a.nrrd"))[0])
        np.testing.assert_array_equal(affine, [[0.5, 0, 0, 1], [0, 2, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])

    @pytest.mark.parametrize("encoding", ENCODED)
    def test_every_encoding(self, tmp_path, encoding):
        path = nrrd_file(tmp_path / "a.nrrd", ENCODED[encoding], {"encoding": encoding})
        assert assert_is_the_volume(path).warnings == ()

    @pytest.mark.parametrize("encoding", ["raw", "gzip", "hex"])
    def test_big_endian(self, tmp_path, encoding):
        swapped = VOXELS.astype(">i2").tobytes(order="F")
        body = {"raw": swapped, "gzip": gzip.compress(swapped), "hex": swapped.hex().encode()}[encoding]
        scan = assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", body, {"encoding": encoding, "endian": "big"}))
        assert scan.channels[0].dtype.isnative

    @pytest.mark.parametrize("name", ["short int", "signed short", "signed short int", "int16", "int16_t", "SHORT"])
    def test_other_names_of_a_type(self, tmp_path, name):
        assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", changes={"type": name}))

    def test_text_of_reals_and_of_whole_numbers_written_as_reals(self, tmp_path):
        changes = {"encoding": "txt", "type": "double", "endian": None}
        reals = VOXELS / 7
        body = "\n".join(map(repr, reals.ravel(order="F").tolist())).encode() + b"\n"
        np.testing.assert_array_equal(read(nrrd_file(tmp_path / "a.nrrd", body, changes))[0], reals)
        body = b" ".join(b"%.1e" % value for value in VOXELS.ravel(order="F") // 100 * 100) + b"\n"
        array, *_ = read(nrrd_file(tmp_path / "b.nrrd", body, changes | {"type": "short"}))
        np.testing.assert_array_equal(array, VOXELS // 100 * 100)

    @pytest.mark.parametrize("text", ["300", "-1", "1.5", "x"])
    def test_text_that_is_not_of_the_type_is_refused(self, tmp_path, text):
        body = as_text(np.ones_like(VOXELS)).replace(b"1", text.encode(), 1)
        refused(nrrd_file(tmp_path / "a.nrrd", body, {"encoding": "ascii", "type": "uchar"}), "ascii", text)

    def test_skipped_lines_and_bytes(self, tmp_path):
        junk = b"first line\nsecond\n"
        assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", junk + RAW, {"line skip": "2"}))
        assert_is_the_volume(nrrd_file(tmp_path / "b.nrrd", junk + b"abc" + RAW, {"lineskip": "2", "byteskip": "3"}))
        assert_is_the_volume(nrrd_file(tmp_path / "c.nrrd", junk + RAW, {"byte skip": "-1"}))
        scan = assert_is_the_volume(nrrd_file(tmp_path / "e.nrrd", RAW * 3, {"byte skip": str(len(RAW))}))
        assert "420 bytes after the voxels" in scan.warnings[0]
        # Of compressed voxels, bytes are skipped after decompression.
        body = junk + gzip.compress(b"abc" + RAW)
        changes = {"encoding": "gzip", "line skip": "2", "byte skip": "3"}
        assert_is_the_volume(nrrd_file(tmp_path / "d.nrrd", body, changes))


class TestGrid:
    @pytest.mark.parametrize("matrix", orientations(), ids=lambda matrix: str(matrix.astype(int).ravel().tolist()))
    def test_all_orientations_agree_with_simpleitk(self, tmp_path, matrix):
        image = sitk.GetImageFromArray(VOXELS.T)
        image.SetDirection(matrix.ravel().tolist())
        image.SetSpacing((0.9, 0.8, 1.2))
        image.SetOrigin((30, 40, -20))
        sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
        array, affine, _ = read(tmp_path / "a.nrrd")
        for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)):
            place = LPS_FROM_RAS @ [*image.TransformIndexToPhysicalPoint(index), 1]
            np.testing.assert_allclose(affine @ [*index, 1], place, atol=1e-9)
            assert array[index] == image[index]

    @pytest.mark.parametrize(
        ("space", "signs"),
        [
            ("left-posterior-superior", (-1, -1, 1)),
            ("LPS", (-1, -1, 1)),
            ("left-posterior-superior-time", (-1, -1, 1)),
            ("LPST", (-1, -1, 1)),
            ("Right-Anterior-Superior", (1, 1, 1)),
            ("RAS", (1, 1, 1)),
            ("LAS", (-1, 1, 1)),
            ("left-anterior-superior", (-1, 1, 1)),
            ("RPI", (1, -1, -1)),
        ],
    )
    def test_anatomical_spaces(self, tmp_path, space, signs):
        end = ",0)" if space.lower().endswith(("time", "t")) else ")"
        changes = {
            "space": space,
            "space directions": f"(0.9,0,0{end} (0,0.8,0{end} (0,0,1.2{end}",
            "space origin": f"(30,40,-20{end}",
        }
        _, affine, scan = read(nrrd_file(tmp_path / "a.nrrd", changes=changes))
        lps = LPS_FROM_RAS @ AFFINE
        np.testing.assert_allclose(affine[:3], np.array(signs)[:, None] * lps[:3], atol=1e-12)
        assert scan.warnings == ()
        assert scan.unstated == ""

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"space": "scanner-xyz"}, "scanner-xyz"),
            ({"space": "3D-right-handed"}, "3D-right-handed"),
            ({"space": "3DLH"}, "3DLH"),
            ({"space": None, "space dimension": "3"}, "no space"),
            ({"space": None}, "no space"),
        ],
    )
    def test_a_space_that_is_not_anatomical_is_warned_of(self, tmp_path, changes, word):
        scan = assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", changes=changes))
        (warning,) = scan.warnings
        assert word in warning
        assert "orientation is unknown" in warning
        assert "space" in scan.unstated
        # With a unit, sizes in millimetres are stated.
        with_unit = changes | {"space units": '"mm" "mm" "mm"'}
        assert assert_is_the_volume(nrrd_file(tmp_path / "b.nrrd", changes=with_unit)).unstated == ""

    def test_spacings_alone(self, tmp_path):
        changes = {"space": None, "space directions": None, "space origin": None, "spacings": "0.9 0.8 1.2"}
        path = nrrd_file(tmp_path / "a.nrrd", changes=changes, magic="NRRD0001")
        _, affine, scan = read(path)
        np.testing.assert_allclose(affine, np.diag([-0.9, -0.8, 1.2, 1]))
        assert "orientation is unknown" in scan.warnings[0]
        assert "position is unknown" in scan.warnings[1]
        assert "spacings" in scan.unstated
        _, affine, scan = read(nrrd_file(tmp_path / "b.nrrd", changes=changes | {"units": '"cm" "mm" "um"'}))
        np.testing.assert_allclose(affine, np.diag([-9, -0.8, 0.0012, 1]))
        assert scan.unstated == ""

    @pytest.mark.parametrize("spacings", ["0.9 0.8 0", "0.9 0.8 -1", "0.9 0.8 inf", "0.9 0.8 nan", "0.9 0.8", "a b c"])
    def test_spacings_that_are_none_are_refused(self, tmp_path, spacings):
        changes = {"space": None, "space directions": None, "space origin": None, "spacings": spacings}
        refused(nrrd_file(tmp_path / "a.nrrd", changes=changes), "'spacings'")

    @pytest.mark.parametrize(
        "directions",
        [
            "(0.9,0,0) (0,0.8,0) (0,0,0)",
            "(0.9,0,0) (0,0.8,0) (0,0,nan)",
            "(0.9,0,0) (0,0.8,0) (0,0,inf)",
            "(0.9,0,0) (0,0.8,0) (0,0,1e200)",
            "(0.9,0,0) (0,0.8,0) none",
            "(0.9,0,0) (0,0.8,0)",
            "(0.9,0) (0,0.8) (0,0)",
            "(0.9,0,0) (0,0.8,0) (0,0,1.2",
            "(0.9,0,0) (0,0.8,0) (0,0,x)",
            "",
        ],
    )
    def test_directions_that_are_none_are_refused(self, tmp_path, directions):
        refused(nrrd_file(tmp_path / "a.nrrd", changes={"space directions": directions}), "space direction")

    def test_an_origin_that_is_not_stated_is_warned_of(self, tmp_path):
        for number, origin in enumerate((None, "(nan,nan,nan)", "(1,2,nan)")):
            _, affine, scan = read(nrrd_file(tmp_path / f"{number}.nrrd", changes={"space origin": origin}))
            np.testing.assert_array_equal(affine[:3, 3], 0)
            assert "origin" in scan.warnings[0]
            assert scan.unstated == ""
        for origin in ("(inf,0,0)", "(1,2)", "1 2 3", "(1,2,3) (4,5,6)", "none"):
            refused(nrrd_file(tmp_path / "a.nrrd", changes={"space origin": origin}), "'space origin'")

    @pytest.mark.parametrize(
        ("unit", "millimetres"),
        [("mm", 1), ("millimeters", 1), ("um", 1e-3), ("µm", 1e-3), ("microns", 1e-3), ("m", 1e3), ("cm", 10)],
    )
    def test_units_are_converted(self, tmp_path, unit, millimetres):
        changes = {"space units": f'"{unit}" "{unit}" "{unit}"'}
        _, affine, scan = read(nrrd_file(tmp_path / "a.nrrd", changes=changes))
        np.testing.assert_allclose(affine[:3], AFFINE[:3] * millimetres)
        assert not any("space" in warning for warning in scan.warnings)

    @pytest.mark.parametrize("units", ['"voxel" "voxel" "voxel"', '"mm" "mm" ""', '"mm" "mm"', '"s" "mm" "mm"'])
    def test_unknown_units_are_refused(self, tmp_path, units):
        refused(nrrd_file(tmp_path / "a.nrrd", changes={"space units": units}), "'space units'")

    def test_sheared_and_left_handed_axes_stay_as_stated(self, tmp_path):
        changes = {"space directions": "(-0.9,0,0) (0.3,0.8,0) (0,0,1.2)"}
        _, affine, _ = read(nrrd_file(tmp_path / "a.nrrd", changes=changes))
        np.testing.assert_allclose(affine[:3, :3], [[0.9, -0.3, 0], [0, -0.8, 0], [0, 0, 1.2]])

    def test_spacings_that_contradict_directions_are_refused(self, tmp_path):
        assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", changes={"spacings": "0.9 0.8 nan"}))
        refused(nrrd_file(tmp_path / "b.nrrd", changes={"spacings": "0.9 0.8 3"}), "spacings", "1.2")


class TestAxes:
    @pytest.mark.parametrize("kind", ["list", "time", "???"])
    @pytest.mark.parametrize("at", [0, 1, 2, 3])
    def test_an_axis_of_one_sample_outside_space_is_dropped(self, tmp_path, at, kind):
        changes = self.with_axis(at, 1, kind)
        assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", changes=changes))

    @pytest.mark.parametrize("at", [0, 1, 2, 3])
    def test_other_axes_outside_space_come_last(self, tmp_path, at):
        array = np.insert(np.expand_dims(VOXELS, at), 1, VOXELS + 1000, axis=at)
        path = nrrd_file(tmp_path / "a.nrrd", array.tobytes(order="F"), self.with_axis(at, 2, "vector"))
        scan = read_scan(path, channels=2)
        for channel, expected in zip(scan.channels, (VOXELS, VOXELS + 1000), strict=True):
            np.testing.assert_array_equal(channel, expected)
        refused(path, "4-D", "2 volumes")

    @pytest.mark.parametrize(("kind", "word"), [("RGB-color", "colour"), ("3-color", "colour"), ("complex", "complex")])
    def test_colour_and_complex_voxels_are_refused_by_name(self, tmp_path, kind, word):
        path = nrrd_file(tmp_path / "a.nrrd", RAW * 3, self.with_axis(0, 3, kind))
        assert "one file per channel" not in refused(path, word)

    def test_kinds_that_contradict_directions_are_refused(self, tmp_path):
        changes = {"kinds": "domain domain list"}
        refused(nrrd_file(tmp_path / "a.nrrd", changes=changes), "kind list", "space direction")
        changes = self.with_axis(3, 1, "domain")
        refused(nrrd_file(tmp_path / "b.nrrd", changes=changes), "kind domain", "space direction")
        refused(nrrd_file(tmp_path / "c.nrrd", changes={"kinds": "domain domain"}), "'kinds'")

    def test_spacings_of_four_axes(self, tmp_path):
        none = {"space": None, "space directions": None, "space origin": None, "dimension": "4"}
        changes = {**none, "sizes": "1 7 6 5", "spacings": "1 0.9 0.8 1.2"}
        np.testing.assert_array_equal(read(nrrd_file(tmp_path / "a.nrrd", changes=changes))[0], VOXELS)
        changes = {**none, "sizes": "2 7 6 5", "spacings": "1 0.9 0.8 1.2"}
        refused(nrrd_file(tmp_path / "b.nrrd", RAW * 2, changes), "4-D", "spacings")

    def test_two_dimensions(self, tmp_path):
        flat = {"dimension": "2", "sizes": "7 6", "space directions": None, "spacings": "1 1", "space": None}
        refused(nrrd_file(tmp_path / "a.nrrd", RAW[:84], flat | {"space origin": None}), "2-D")
        changes = {"space": None, "space dimension": "2", "space directions": "(1,0) (0,1) none"}
        refused(nrrd_file(tmp_path / "b.nrrd", changes=changes), "'space dimension' is '2'")

    @staticmethod
    def with_axis(at, size, kind):
        """Fields of a file with one more axis."""
        return {
            "dimension": "4",
            "sizes": " ".join(map(str, np.insert((7, 6, 5), at, size))),
            "kinds": " ".join(np.insert(np.array(["domain"] * 3, object), at, kind)),
            "space directions": " ".join(
                np.insert(np.array(["(0.9,0,0)", "(0,0.8,0)", "(0,0,1.2)"], object), at, "none")
            ),
        }


class TestHeader:
    @pytest.mark.parametrize("field", ["type", "dimension", "sizes", "encoding", "endian"])
    def test_a_field_that_is_needed_is_named(self, tmp_path, field):
        refused(nrrd_file(tmp_path / "a.nrrd", changes={field: None}), f"'{field}' is not stated")

    def test_no_spacing_is_refused(self, tmp_path):
        changes = {"space": None, "space directions": None, "space origin": None}
        message = refused(nrrd_file(tmp_path / "a.nrrd", changes=changes), "spacing is unknown")
        assert "copy" not in message

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("type", "half"),
            ("type", "block"),
            ("dimension", "0"),
            ("dimension", "x"),
            ("sizes", "7 6"),
            ("sizes", "7 6 -5"),
            ("sizes", "7 6 0"),
            ("sizes", "7 6 5.0"),
            ("encoding", "zrl"),
            ("endian", "middle"),
            ("byte skip", "-2"),
            ("line skip", "-1"),
            ("space", "mars"),
            ("space dimension", "4"),
            ("space dimension", "nan"),
        ],
    )
    def test_values_that_cannot_be_meant_are_named(self, tmp_path, field, value):
        message = refused(nrrd_file(tmp_path / "a.nrrd", changes={field: value}), f"'{field}'")
        assert "copy" not in message

    def test_byte_skip_from_the_end_is_for_raw_voxels_only(self, tmp_path):
        changes = {"encoding": "gzip", "byte skip": "-1"}
        refused(nrrd_file(tmp_path / "a.nrrd", ENCODED["gzip"], changes), "'byte skip'")

    def test_comments_keys_blanks_and_windows_line_ends(self, tmp_path):
        path = nrrd_file(tmp_path / "a.nrrd", b"")
        lines = path.read_text().strip().split("\n")
        lines[2:2] = ["# a comment: of any kind", "key:=value: with a colon", "content: any", "thicknesses: 1 1 1"]
        path.write_bytes("\r\n".join([*lines, "", ""]).encode() + RAW)
        assert assert_is_the_volume(path).warnings == ()

    @pytest.mark.parametrize("version", ["1", "2", "3", "5"])
    def test_versions(self, tmp_path, version):
        assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", magic=f"NRRD000{version}"))
        refused(nrrd_file(tmp_path / "b.nrrd", magic="NRRD0006"), "not an NRRD file", "NRRD0006")

    def test_a_field_twice_or_unknown_is_refused(self, tmp_path):
        refused(nrrd_file(tmp_path / "a.nrrd", changes={"spacedirections": "none none none"}), "twice")
        refused(
            nrrd_file(tmp_path / "b.nrrd", changes={"space direction": "none"}), "unknown field", "space direction:"
        )

    @pytest.mark.parametrize(("content", "words"), OTHER_KINDS)
    def test_files_of_another_kind_are_named(self, tmp_path, content, words):
        for suffix in (".nrrd", ".nhdr"):
            (tmp_path / f"a{suffix}").write_bytes(content)
            refused(tmp_path / f"a{suffix}", words)


class TestCounting:
    @pytest.mark.parametrize("encoding", ENCODED)
    def test_no_cut_of_a_file_gives_another_volume(self, tmp_path, encoding):
        path = nrrd_file(tmp_path / "a.nrrd", ENCODED[encoding], {"encoding": encoding})
        whole = path.read_bytes()
        # A last line end is no part of the voxels; of decimal text, the last number cannot be told from a shorter one.
        least = len(whole) - {"ascii": 5, "hex": 1}.get(encoding, 0)
        for length in range(least):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError):
                read_scan(path)

    def test_text_that_may_be_cut_in_its_last_number_is_warned_of(self, tmp_path):
        changes = {"encoding": "ascii"}
        scan = assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", ENCODED["ascii"].rstrip(), changes))
        assert "last number" in scan.warnings[0]

    @pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "hex"])
    def test_fewer_voxels_are_counted(self, tmp_path, encoding):
        half = RAW[:200]
        body = {"raw": half, "gzip": gzip.compress(half), "bzip2": bz2.compress(half), "hex": half.hex().encode()}
        path = nrrd_file(tmp_path / "a.nrrd", body[encoding], {"encoding": encoding})
        refused(path, "truncated", "declares 420 bytes of voxels", "found 200" if encoding != "hex" else "found 400")

    @pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "hex", "ascii"])
    def test_sizes_beyond_any_memory_are_refused_at_once(self, tmp_path, encoding):
        changes = {"encoding": encoding, "sizes": "60000 60000 60000"}
        refused(nrrd_file(tmp_path / "a.nrrd", ENCODED[encoding], changes), "truncated", "432000000000000 bytes")

    @pytest.mark.parametrize("sizes", ["7 6 4", "7 3 5", "1 6 5", "1 1 1", "2 2 2"])
    @pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
    def test_more_voxels_than_the_sizes_declare_are_refused(self, tmp_path, encoding, sizes):
        path = nrrd_file(tmp_path / "a.nrrd", ENCODED[encoding], {"encoding": encoding, "sizes": sizes})
        assert "copy" not in refused(path, "sizes or its type are wrong")

    def test_padding_is_accepted(self, tmp_path):
        scan = assert_is_the_volume(nrrd_file(tmp_path / "a.nrrd", RAW + b"\n"))
        assert "1 byte after the voxels" in scan.warnings[0]
        changes = {"encoding": "gzip"}
        assert_is_the_volume(nrrd_file(tmp_path / "b.nrrd", gzip.compress(RAW + bytes(101)), changes))
        assert (
            assert_is_the_volume(nrrd_file(tmp_path / "c.nrrd", ENCODED["gzip"] + bytes(512), changes)).warnings == ()
        )
        refused(nrrd_file(tmp_path / "d.nrrd", ENCODED["gzip"] + b"more", changes), "other bytes follow")

    def test_a_wrong_checksum_is_damage(self, tmp_path):
        body = ENCODED["gzip"][:-8] + bytes(4) + ENCODED["gzip"][-4:]
        refused(nrrd_file(tmp_path / "a.nrrd", body, {"encoding": "gzip"}), "damaged", "checksum")

    def test_voxels_that_are_compressed_against_the_header_are_named(self, tmp_path):
        refused(nrrd_file(tmp_path / "a.nrrd", ENCODED["gzip"]), "begin as a gzip stream")

    def test_nothing_is_written_to_the_console(self, tmp_path, capfd):
        refused(nrrd_file(tmp_path / "a.nrrd", ENCODED["gzip"][:50], {"encoding": "gzip"}))
        refused(nrrd_file(tmp_path / "b.nrrd", b""))
        assert capfd.readouterr() == ("", "")


class TestOtherFiles:
    @pytest.mark.parametrize("name", ["v.raw", "all voxels.raw", "sub/v.raw", "./sub/v.raw", "50%d.raw"])
    def test_one_file(self, tmp_path, name):
        (tmp_path / "sub").mkdir()
        (tmp_path / name).write_bytes(RAW)
        assert_is_the_volume(nrrd_file(tmp_path / "a.nhdr", b"", {"data file": name}))
        assert_is_the_volume(nrrd_file(tmp_path / "b.nhdr", b"", {"datafile": str(tmp_path / name)}))

    @pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii", "hex"])
    @pytest.mark.parametrize(
        ("field", "count"), [("byte skip", 10**6), ("byte skip", 10**17), ("line skip", 10**6), ("line skip", 10**17)]
    )
    def test_a_skip_beyond_the_file_is_named(self, tmp_path, encoding, field, count):
        (tmp_path / "v").write_bytes(ENCODED[encoding])
        path = nrrd_file(tmp_path / "a.nhdr", b"", {"data file": "v", "encoding": encoding, field: str(count)})
        words = f"the voxels in v begin after {count} {field.split()[0]}s, but the file ends before; fix the header"
        assert "truncated" not in refused(path, words)

    def test_separators_of_windows(self, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "v.raw").write_bytes(RAW)
        assert_is_the_volume(nrrd_file(tmp_path / "a.nhdr", b"", {"data file": ".\\sub\\v.raw"}))
        assert_is_the_volume(nrrd_file(tmp_path / "b.nhdr", b"", {"data file": "LIST 3\nsub\\v.raw"}))

    def test_compressed(self, tmp_path):
        (tmp_path / "v.raw.gz").write_bytes(ENCODED["gzip"])
        assert_is_the_volume(nrrd_file(tmp_path / "a.nhdr", b"", {"data file": "v.raw.gz", "encoding": "gzip"}))

    @pytest.mark.parametrize("value", ["s%03d.raw 0 4 1", "s%03d.raw 0 4 1 2"])
    def test_numbered_files(self, tmp_path, value):
        slices_beside(tmp_path)
        assert_is_the_volume(nrrd_file(tmp_path / "a.nhdr", b"", {"data file": value}))

    def test_numbered_files_backwards_and_with_several_slices_each(self, tmp_path):
        slices_beside(tmp_path)
        array, *_ = read(nrrd_file(tmp_path / "a.nhdr", b"", {"data file": "s%03d.raw 4 0 -1"}))
        np.testing.assert_array_equal(array, VOXELS[:, :, ::-1])
        for half in range(2):
            (tmp_path / f"h{half}.raw").write_bytes(RAW * 1)
        changes = {"data file": "h%d.raw 0 1 1 3", "sizes": "7 6 10"}
        array, *_ = read(nrrd_file(tmp_path / "b.nhdr", b"", changes))
        np.testing.assert_array_equal(array, np.concatenate([VOXELS, VOXELS], axis=2))

    @pytest.mark.parametrize("first", ["LIST", "LIST 2"])
    def test_a_list(self, tmp_path, first):
        value = "\n".join([first, *slices_beside(tmp_path)])
        assert_is_the_volume(nrrd_file(tmp_path / "a.nhdr", b"", {"data file": value}))

    def test_too_few_or_too_many_files_are_counted(self, tmp_path):
        names = slices_beside(tmp_path)
        short = nrrd_file(tmp_path / "a.nhdr", b"", {"data file": "\n".join(["LIST", *names[:3]])})
        refused(short, "names 3 files", "need 5", "2 are missing")
        refused(nrrd_file(tmp_path / "b.nhdr", b"", {"data file": "s%03d.raw 0 5 1"}), "1 are too many")
        refused(nrrd_file(tmp_path / "c.nhdr", b"", {"data file": "s%03d.raw 0 999999999 1"}), "too many")
        refused(nrrd_file(tmp_path / "d.nhdr", b"", {"data file": "s%03d.raw 0 4 0"}), "a step other than 0")
        refused(nrrd_file(tmp_path / "e.nhdr", b"", {"data file": "s%03d.raw"}), "the first and last number")

    def test_a_missing_file_is_named_and_no_damage(self, tmp_path):
        names = slices_beside(tmp_path)
        (tmp_path / names[2]).unlink()
        message = refused(nrrd_file(tmp_path / "a.nhdr", b"", {"data file": "s%03d.raw 0 4 1"}))
        assert "s002.raw, does not exist" in message
        assert "copy" not in message

    def test_a_short_file_among_several_is_named(self, tmp_path):
        names = slices_beside(tmp_path)
        (tmp_path / names[2]).write_bytes(b"short")
        refused(
            nrrd_file(tmp_path / "a.nhdr", b"", {"data file": "s%03d.raw 0 4 1"}), "84 bytes", "found 5 in s002.raw"
        )

    def test_a_header_that_ends_within_a_number_is_refused(self, tmp_path):
        (tmp_path / "v.raw").write_bytes(RAW)
        path = nrrd_file(tmp_path / "a.nhdr", b"", {"data file": "v.raw", "byte skip": "0"})
        path.write_bytes(path.read_bytes().rstrip())
        refused(path, "byte skip: 0", "line end")
