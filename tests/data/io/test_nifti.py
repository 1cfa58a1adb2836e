"""Each field of a NIfTI header: absent, nonsense, or in contradiction to the file."""

import gzip
import re
import struct

import nibabel as nib
import numpy as np
import pytest

from tests.data.images import STRAIGHT, nifti, ramp
from volseg.data.io.reading import read_label, read_scan
from volseg.data.io.writing import write_labels
from volseg.errors import InputError

VOXELS = ramp((5, 4, 6)) - 7
# Where a field of a NIfTI-1 header lies, and its type.
FIELDS = {
    "sizeof_hdr": (0, "<i"),
    "dim": (40, "<8h"),
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    "pixdim": (76, "<8f"),
    "vox_offset": (108, "<f"),
    "scaling": (112, "<2f"),
    "units": (123, "<B"),
    "qform_code": (252, "<h"),
    "sform_code": (254, "<h"),
    "quaternion": (256, "<3f"),
    "qoffset": (268, "<3f"),
    "magic": (344, "<4s"),
    "extension": (348, "<4B"),
}
PIXDIM = (-1, 0.8, 1.5, 3, 0, 0, 0, 0)
NAN, INF = float("nan"), float("inf")


def file_of(folder, content=None, gz=False, **fields):
    """A file of VOXELS with some fields replaced."""
    content = bytearray(nifti(VOXELS).to_bytes() if content is None else content)
    for name, value in fields.items():
        at, kind = FIELDS[name]
        struct.pack_into(kind, content, at, *(value if isinstance(value, tuple) else (value,)))
    path = folder / ("a.nii.gz" if gz else "a.nii")
    path.write_bytes(gzip.compress(bytes(content)) if gz else content)
    return path


def rejected(path, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read_scan(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "corrupt" not in message
    return message


def read_right(path, *warnings):
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.channels[0], VOXELS)
    np.testing.assert_allclose(scan.geometry.affine, STRAIGHT, atol=1e-5)
    assert len(scan.warnings) == len(warnings), scan.warnings
    for found, expected in zip(scan.warnings, warnings, strict=True):
        assert expected in found
    return scan


@pytest.mark.parametrize("gz", [False, True])
class TestOffset:
    def test_0_is_after_the_header_if_the_length_says_so(self, tmp_path, gz):
        read_right(
            file_of(tmp_path, gz=gz, vox_offset=0), "vox_offset is 0; the length of the file says that the voxels"
        )

    def test_0_in_nifti_2(self, tmp_path, gz):
        content = bytearray(nifti(VOXELS, version=2).to_bytes())
        struct.pack_into("<q", content, 168, 0)
        read_right(file_of(tmp_path, content, gz), "begin after 544 bytes")

    @pytest.mark.parametrize("change", [-4, -1, 1, 16])
    def test_0_is_rejected_if_the_length_says_otherwise(self, tmp_path, gz, change):
        content = nifti(VOXELS).to_bytes()
        content = content[:change] if change < 0 else content + bytes(change)
        rejected(
            file_of(tmp_path, content, gz, vox_offset=0), "vox_offset, where the voxels begin, is 0, and the length"
        )

    @pytest.mark.parametrize("offset", [1, 348, 350, 351, 352.5, -352, NAN, INF, -INF])
    def test_others_are_rejected(self, tmp_path, gz, offset):
        rejected(file_of(tmp_path, gz=gz, vox_offset=offset), f"is {offset:g}, expected a whole number from 352; fix")

    def test_beyond_the_end(self, tmp_path, gz):
        rejected(file_of(tmp_path, gz=gz, vox_offset=1e12), "vox_offset, where the voxels begin, is 999999995904, but")
        rejected(
            file_of(tmp_path, gz=gz, vox_offset=1000), "its header declares" if gz else "is 1000, but the file has"
        )

    @pytest.mark.parametrize(
        ("size", "warnings"), [(32, ()), (16, ()), (13, (1,)), (10**9, (1,)), (-16, (1,)), (0, ())]
    )
    def test_extensions(self, tmp_path, gz, size, warnings):
        plain = nifti(VOXELS).to_bytes()
        content = plain[:348] + b"\1\0\0\0" + struct.pack("<ii", size, 6) + bytes(24) + plain[352:]
        words = [f"An extension of the header has a size of {size} bytes, but 32 are left" for _ in warnings]
        read_right(file_of(tmp_path, content, gz, vox_offset=384), *words)

    def test_an_extension_that_is_announced_only(self, tmp_path, gz):
        read_right(file_of(tmp_path, gz=gz, extension=(1, 0, 0, 0)))

    @pytest.mark.parametrize("bits", [0, 8, 32])
    def test_bitpix_that_contradicts_the_type(self, tmp_path, gz, bits):
        read_right(
            file_of(tmp_path, gz=gz, bitpix=bits), f"bitpix is {bits}, but datatype 4 has 16 bits, which the length"
        )
        longer = nifti(VOXELS).to_bytes() + b"\0"
        rejected(file_of(tmp_path, longer, gz, bitpix=bits), f"bitpix is {bits}, but datatype 4 has 16 bits, and the")

    def test_half_of_the_voxels_of_another_type(self, tmp_path, gz):
        """A type of 8 bits fits into the file of 16 bits, but would be another volume."""
        rejected(file_of(tmp_path, gz=gz, datatype=2), "bitpix is 16, but datatype 2 has 8 bits")

    @pytest.mark.parametrize("more", [b"more", bytes(1), bytes(40), bytes(240), bytes(10_000), bytes(9) + b"x"])
    def test_other_bytes_after_the_voxels_and_zeros_are_not_used(self, tmp_path, gz, more):
        words = f"{len(more)} byte{'s' * (len(more) > 1)} after the voxels are not used."
        read_right(file_of(tmp_path, nifti(VOXELS).to_bytes() + more, gz), words)

    @pytest.mark.parametrize(
        ("more", "dim"),
        [
            (b"", (3, 5, 4, 5, 1, 1, 1, 1)),  # a slice less than there is
            (b"", (3, 5, 4, 2, 1, 1, 1, 1)),
            (b"", (3, 5, 3, 6, 1, 1, 1, 1)),
            (b"", (2, 5, 4, 6, 1, 1, 1, 1)),  # the others are not read
            (VOXELS.tobytes(), (3, 5, 4, 6, 2, 1, 1, 1)),
            (VOXELS[..., :1].tobytes(), (3, 5, 4, 6, 1, 1, 1, 1)),
            (VOXELS[:1].tobytes(), (3, 5, 4, 6, 1, 1, 1, 1)),
            (bytes(120) + b"x", (3, 5, 4, 6, 1, 1, 1, 1)),  # half as many
            (bytes(2**22) + b"x" + bytes(80), (3, 5, 4, 6, 1, 1, 1, 1)),
            (VOXELS.tobytes(), (4, 5, 4, 3, 2, 1, 1, 1)),
        ],
    )
    def test_voxels_that_the_header_leaves_out_are_rejected(self, tmp_path, gz, more, dim):
        path = file_of(tmp_path, nifti(VOXELS).to_bytes() + more, gz, dim=dim)
        declared = 2 * int(np.prod(dim[1 : dim[0] + 1]))
        message = rejected(path, f"declares {declared} bytes of voxels, found {240 + len(more)}, so its sizes")
        assert "copy it again" not in message

    def test_a_narrower_type_than_that_of_the_voxels_is_rejected(self, tmp_path, gz):
        path = file_of(tmp_path, gz=gz, datatype=2, bitpix=8)
        rejected(path, "declares 120 bytes of voxels, found 240, so its sizes or its type are wrong; fix the header")


@pytest.mark.parametrize("more", [b"g", b"garbage", b"garbage" * 10, b"\n", bytes(600) + b"x", b"\x1f"])
@pytest.mark.parametrize("edge", [4, 500])
def test_other_bytes_after_a_gzip_stream_are_named(tmp_path, more, edge):
    voxels = np.random.default_rng(0).integers(0, 999, (edge, edge, 9), np.int16)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti(voxels).to_bytes(), 1) + more)
    assert "copy" not in rejected(path, "other bytes follow the end of the gzip stream; remove them")


@pytest.mark.parametrize("end", ["length", "checksum", "cut", "member"])
def test_a_damaged_end_of_a_gzip_stream_is_not_called_other_bytes(tmp_path, end):
    whole = gzip.compress(nifti(VOXELS).to_bytes())
    contents = {
        "length": whole[:-4] + b"\1\2\3\4",
        "checksum": whole[:-8] + b"\1\2\3\4" + whole[-4:],
        "cut": whole[:-5],
        "member": whole + whole[:-9],
    }
    path = tmp_path / "a.nii.gz"
    path.write_bytes(contents[end])
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_scan(path)
    assert "other bytes" not in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("at", "value"), [(176, 1e300), (176, -1e308), (184, 1e300), (112, 1e300), (400, 1e200), (400, 1e300)]
)
@pytest.mark.parametrize("pixdim", [1.0, 0.0])
def test_huge_numbers_of_nifti_2_are_judged_without_a_word_of_numpy(tmp_path, at, value, pixdim):
    """In scl_slope, scl_inter, pixdim and srow, which float32 could not hold; pixdim 0 is supplied from the sform."""
    content = bytearray(nifti(VOXELS, version=2).to_bytes())
    struct.pack_into("<2i", content, 344, 0, 1)
    struct.pack_into("<3d", content, 112, pixdim, 1, 1)
    struct.pack_into("<d", content, 176, 1)
    struct.pack_into("<d", content, at, value)
    path = file_of(tmp_path, content)
    if at == 112:
        np.testing.assert_array_equal(read_scan(path).channels[0], VOXELS)
    else:
        rejected(path, {176: "infinite voxels", 184: "beyond 3.4e+38", 400: "a spacing is zero or infinite"}[at])


class TestFields:
    @pytest.mark.parametrize("size", [0, -1, 540, 348 << 8])
    def test_the_size_of_the_header_is_not_used(self, tmp_path, size):
        read_right(file_of(tmp_path, sizeof_hdr=size))

    @pytest.mark.parametrize("count", [0, 8, -1, 300])
    def test_a_number_of_dimensions_that_is_none(self, tmp_path, count):
        # A count that makes sense in the other byte order swaps the header, which then makes no sense elsewhere.
        rejected(file_of(tmp_path, dim=(count, 5, 4, 6, 1, 1, 1, 1)), "the number of its dimensions (dim[0]) is")

    @pytest.mark.parametrize(
        ("sizes", "words"), [((-5, 4, 6), "its size (dim) is -5 x 4 x 6"), ((5, 0, 6), "is empty")]
    )
    def test_sizes_that_are_not_positive(self, tmp_path, sizes, words):
        rejected(file_of(tmp_path, dim=(3, *sizes, 1, 1, 1, 1)), words)

    def test_surfaces_of_freesurfer_are_no_volumes(self, tmp_path):
        """nibabel takes the size from glmin if the first one is -1."""
        rejected(file_of(tmp_path, dim=(3, -1, 1, 1, 1, 1, 1, 1)), "its size (dim) is -1 x 1 x 1")

    @pytest.mark.parametrize(
        ("code", "bits", "words"),
        [
            (0, 16, "is 0 (not stated)"),
            (1, 1, "is 1 (one bit)"),
            (1536, 128, "is 1536 (float128)"),
            (2048, 256, "complex of 256 bits"),
            (999, 16, "is 999 (unknown)"),
            (-4, 16, "is -4 (unknown)"),
        ],
    )
    def test_types_that_are_not_read(self, tmp_path, code, bits, words):
        rejected(
            file_of(tmp_path, datatype=code, bitpix=bits),
            f"the type of its voxels (datatype) {words.lstrip()}" if words.startswith("is") else words,
        )

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ([("R", "u1"), ("G", "u1"), ("B", "u1")], "the voxels are in colour (RGB), expected one real number"),
            ([(one, "u1") for one in "RGBA"], "the voxels are in colour (RGBA)"),
            (np.complex64, "the voxels are complex"),
            (np.complex128, "the voxels are complex"),
        ],
    )
    def test_kinds_of_voxels_that_are_no_scan(self, tmp_path, kind, words):
        nib.save(nifti(np.zeros((5, 4, 6), np.dtype(kind))), tmp_path / "a.nii.gz")
        assert "structured" not in rejected(tmp_path / "a.nii.gz", words)

    @pytest.mark.parametrize("scaling", [(0, 5), (0, NAN), (NAN, NAN), (NAN, 5), (1, 0)])
    def test_values_as_stored(self, tmp_path, scaling):
        assert read_right(file_of(tmp_path, scaling=scaling)).channels[0].dtype == np.int16

    @pytest.mark.parametrize("scaling", [(1, NAN), (2, INF), (INF, 0), (-INF, 1), (INF, NAN)])
    def test_scalings_that_are_not_finite(self, tmp_path, scaling):
        rejected(file_of(tmp_path, scaling=scaling), f"scl_slope {scaling[0]:g} and scl_inter {scaling[1]:g}, expected")

    @pytest.mark.parametrize("units", [0, 4, 255, 8])
    def test_no_unit_means_millimetres_that_are_not_stated(self, tmp_path, units):
        scan = read_right(file_of(tmp_path, units=units), "no spatial unit; millimetres are assumed")
        assert scan.unstated == "the header has no spatial unit"

    @pytest.mark.parametrize("units", [2, 10])
    def test_stated_millimetres(self, tmp_path, units):
        assert read_right(file_of(tmp_path, units=units)).unstated == ""

    def test_neither_form_has_a_stated_size(self, tmp_path):
        scan = read_scan(file_of(tmp_path, sform_code=0, qform_code=0))
        assert "Neither sform nor qform is set" in scan.warnings[0]
        np.testing.assert_allclose(scan.geometry.spacing_mm, (0.8, 1.5, 3), rtol=1e-6)
        assert scan.unstated == ""

    @pytest.mark.parametrize("code", [-1, 6, 9])
    def test_codes_that_nifti_does_not_have(self, tmp_path, code):
        read_right(file_of(tmp_path, qform_code=code), f"The qform_code {code} is none of NIfTI's codes")
        read_right(file_of(tmp_path, sform_code=code), f"The sform_code {code} is none of NIfTI's codes")
        both = read_scan(file_of(tmp_path, sform_code=code, qform_code=code))
        assert "Neither sform nor qform" in both.warnings[2]

    @pytest.mark.parametrize(
        "fields", [{"quaternion": (NAN, 0, 0)}, {"qoffset": (0, INF, 0)}, {"pixdim": (NAN, *PIXDIM[1:])}]
    )
    def test_a_qform_that_is_not_numbers(self, tmp_path, fields):
        scan = read_right(file_of(tmp_path, **fields), "The qform is not a rotation (")
        assert "degrees" not in scan.warnings[0]
        assert scan.warnings[0].endswith("; the sform is used.")
        rejected(file_of(tmp_path, sform_code=0, **fields), "the qform is not a rotation (")

    @pytest.mark.parametrize("qfac", [0, 1, 3])
    def test_the_handedness_of_a_qform(self, tmp_path, qfac):
        content = nifti(VOXELS, np.diag([0.8, 1.5, 3, 1])).to_bytes()
        scan = read_scan(file_of(tmp_path, content, sform_code=0, pixdim=(qfac, *PIXDIM[1:])))
        np.testing.assert_allclose(scan.geometry.affine, np.diag([0.8, 1.5, 3, 1]), atol=1e-6)
        rejected(
            file_of(tmp_path, content, sform_code=0, pixdim=(-2, *PIXDIM[1:])), "pixdim[0] is -2, expected 1 or -1"
        )

    @pytest.mark.parametrize("sizes", [(0, 0, 0), (-0.8, 1.5, 3), (NAN, 1.5, INF)])
    def test_results_state_the_size_that_was_used(self, tmp_path, sizes):
        scan = read_right(file_of(tmp_path, qform_code=0, pixdim=(0, *sizes, 0, 0, 0, 0)))
        write_labels(np.ones((5, 4, 6), np.uint8), scan, tmp_path / "seg.nii.gz")
        header = nib.Nifti1Header(gzip.decompress((tmp_path / "seg.nii.gz").read_bytes())[:348], check=False)
        np.testing.assert_allclose(header["pixdim"][1:4], (0.8, 1.5, 3), rtol=1e-6)
        np.testing.assert_allclose(nib.load(tmp_path / "seg.nii.gz").affine, STRAIGHT, atol=1e-6)

    def test_nibabel_prints_nothing(self, tmp_path, capfd):
        read_scan(file_of(tmp_path, sizeof_hdr=0, bitpix=8, qform_code=0, pixdim=(0, -1, -1, -1, 0, 0, 0, 0)))
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("magic", [b"ni1\0", b"\0\0\0\0", b"n+2\0", b"n+3\0"])
    def test_other_magics(self, tmp_path, magic):
        words = "second file" if magic == b"ni1\0" else "it has no magic"
        rejected(file_of(tmp_path, magic=magic), words)

    def test_line_ends_converted_in_nifti_2(self, tmp_path):
        content = bytearray(nifti(VOXELS, version=2).to_bytes())
        content[8:12] = b"\n\x1a\n\n"
        rejected(file_of(tmp_path, content), "line ends were converted")

    def test_several_volumes_and_vectors(self, tmp_path):
        rejected(
            file_of(tmp_path, dim=(4, 5, 4, 3, 2, 1, 1, 1)), "with 2 volumes, expected 1; choose one with --volume N"
        )
        rejected(file_of(tmp_path, dim=(5, 5, 4, 2, 1, 3, 1, 1)), "is 5-D (5 x 4 x 2 x 1 x 3, several values per voxel")
        read_right(file_of(tmp_path, dim=(7, 5, 4, 6, 1, 1, 1, 1)))


CONTENTS = [
    (b"\x28\xb5\x2f\xfd" + bytes(400), "zstd-compressed data"),
    (b"BZh9" + bytes(400), "bzip2-compressed data"),
    (b"PK\3\4" + bytes(400), "a zip archive"),
    (b"\n<!DOCTYPE HTML><html>404</html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "a Git LFS pointer"),
    (bytes(128) + b"DICM" + bytes(300), "a DICOM file"),
    (b"NRRD0004\n" + bytes(400), "an NRRD file"),
    (b"\x89HDF\r\n\x1a\n" + bytes(400), "an HDF5 file"),
]


@pytest.mark.parametrize(("content", "words"), CONTENTS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgh", ".mgz"])
def test_another_kind_of_file_is_named(tmp_path, suffix, content, words):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert "copy it again" not in rejected(path, words)
    if suffix.endswith("z"):
        path.write_bytes(gzip.compress(content))
        rejected(path, words)


def test_gzip_in_gzip_is_named(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(gzip.compress(nifti(VOXELS).to_bytes())))
    rejected(path, "is not a single-file NIfTI image, but gzip-compressed data; decompress it once")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("gz", [False, True])
def test_no_file_that_is_cut_is_read(tmp_path, version, gz):
    """At 60 random places, after decompression and before."""
    content = nifti(VOXELS, version=version).to_bytes()
    rng = np.random.default_rng(5)
    path = tmp_path / ("a.nii.gz" if gz else "a.nii")
    for end in rng.choice(len(content), 60, replace=False):
        path.write_bytes(gzip.compress(content[:end]) if gz else content[:end])
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_scan(path)
    if gz:
        whole = gzip.compress(content)
        for end in rng.choice(len(whole), 60, replace=False):
            path.write_bytes(whole[:end])
            with pytest.raises(InputError, match=re.escape(str(path))):
                read_scan(path)


def test_random_headers_give_the_volume_or_a_sentence(tmp_path):
    """Each field that matters, replaced by random bytes: never another volume at another place without a warning."""
    rng = np.random.default_rng(11)
    names = ["dim", "datatype", "bitpix", "vox_offset", "magic", "quaternion", "qoffset", "pixdim", "sizeof_hdr"]
    outcomes = {"read": 0, "rejected": 0}
    for turn in range(180):
        at, kind = FIELDS[names[turn % len(names)]]
        content = bytearray(nifti(VOXELS).to_bytes())
        content[at : at + struct.calcsize(kind)] = rng.bytes(struct.calcsize(kind))
        path = file_of(tmp_path, content)
        try:
            scan = read_scan(path)
        except InputError:
            outcomes["rejected"] += 1
            continue
        outcomes["read"] += 1
        np.testing.assert_array_equal(scan.channels[0], VOXELS)
        np.testing.assert_allclose(scan.geometry.affine, STRAIGHT, atol=1e-5)
    assert min(outcomes.values()) > 10, outcomes


def test_labels_follow_the_same_rules(tmp_path):
    content = nifti(np.ones((5, 4, 6), np.uint8)).to_bytes()
    label = read_label(file_of(tmp_path, content, vox_offset=0, units=0))
    assert label.channels[0].all()
    assert len(label.warnings) == 2
    assert label.unstated == "the header has no spatial unit"
    with pytest.raises(InputError, match="vox_offset"):
        read_label(file_of(tmp_path, content, vox_offset=350))
