"""Every format gives the same voxels and geometry, and every corrupt file one sentence."""

import gzip
import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.data.images import OBLIQUE, STRAIGHT, nifti, orthogonal, patched, ramp, save
from volseg.data.grid.geometry import Geometry
from volseg.data.io.formats import SUFFIXES, image_suffix, sibling, stem_of
from volseg.data.io.read_cost import reading_bytes
from volseg.data.io.reading import (
    read_channels,
    read_label,
    read_scan,
    scan_from_array,
    scan_from_nibabel,
    scan_from_sitk,
)
from volseg.errors import GridError, InputError, UsageError


def itk_image(array, affine):
    """A SimpleITK image of (I, J, K) with an affine to RAS+, by SimpleITK's own calls."""
    image = sitk.GetImageFromArray(array.T)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    flip = np.diag([-1, -1, 1])
    image.SetSpacing(spacing.tolist())
    image.SetDirection((flip @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((flip @ affine[:3, 3]).tolist())
    return image


def save_as(array, affine, path):
    if path.name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        sitk.WriteImage(itk_image(array, affine), str(path))
        return path
    kind = nib.MGHImage if path.name.endswith((".mgz", ".mgh")) else nib.Nifti1Image
    return save(kind(array, affine), path)


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("scan.nii.gz", ".nii.gz", "scan"),
        ("Scan.v2.NII.GZ", ".nii.gz", "Scan.v2"),
        ("a.b.nii", ".nii", "a.b"),
        ("x.mgz", ".mgz", "x"),
        ("x.mhd", ".mhd", "x"),
        ("study.zip", None, "study"),
        ("frames.dcm", None, "frames"),
        ("folder.2024", None, "folder.2024"),
        (".nii.gz", None, ".nii.gz"),
        ("scan.gz", None, "scan.gz"),
    ],
)
def test_names(tmp_path, name, suffix, stem):
    assert image_suffix(tmp_path / name) == suffix
    assert stem_of(tmp_path / name) == stem


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_path_without_a_name_has_no_sibling(name):
    with pytest.raises(
        UsageError, match=rf"^'{name or '.'}' names no file\. Give a name that ends in one of \.nii\.gz, "
    ):
        sibling(Path(name), ".json")


@pytest.mark.parametrize("affine", [STRAIGHT, orthogonal(OBLIQUE)], ids=["flipped", "oblique"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_scan(tmp_path, suffix, affine):
    array = ramp()
    scan = read_scan(save_as(array, affine, tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(scan.channels[0], array)
    assert scan.channels[0].dtype == np.int16
    np.testing.assert_allclose(scan.geometry.affine, affine, atol=1e-5)
    assert scan.source == str(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mgz", ".nrrd", ".mha"])
def test_torch_uses_arrays_without_a_copy(tmp_path, suffix):
    (array,) = read_scan(save_as(ramp(), STRAIGHT, tmp_path / f"a{suffix}")).channels
    tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.ctypes.data
    assert array.strides == (2, 6, 24)  # first axis fastest, as in the files of all these formats


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_axis_orders_agree_between_libraries(tmp_path, order):
    """A voxel has the same position in the world, whichever library wrote the file."""
    affine = orthogonal(OBLIQUE)
    affine[:3, :3] = affine[:3, :3][:, order]
    array = ramp().transpose(order)
    one = read_scan(save_as(array, affine, tmp_path / "a.nii.gz"))
    two = read_scan(save_as(array, affine, tmp_path / "a.nrrd"))
    assert one.geometry.same_grid(two.geometry, 1e-4)
    assert one.geometry.axis_codes == "".join("RAS"[axis] for axis in order)
    np.testing.assert_array_equal(one.channels[0], two.channels[0])


KINDS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.uint64, np.float32, np.float64]


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_stay_and_are_native(tmp_path, kind, endian):
    array = ramp(dtype=kind)
    (read,) = read_scan(save(nifti(array, endian=endian), tmp_path / "a.nii")).channels
    assert read.dtype == kind
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)
    torch.from_numpy(read)


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.int32, np.float32])
def test_a_scaling_is_applied_in_float32(tmp_path, kind):
    path = save(nifti(ramp(dtype=kind)), tmp_path / "a.nii")
    patched(path, 112, np.array([0.5, -1024], "<f4").tobytes())
    (read,) = read_scan(path).channels
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, ramp() * 0.5 - 1024)
    np.testing.assert_array_equal(scan_from_nibabel(nib.load(path)).channels[0], read)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_an_unset_scaling_is_ignored(tmp_path, slope):
    path = patched(save(nifti(ramp()), tmp_path / "a.nii"), 112, np.array([slope, 7], "<f4").tobytes())
    (read,) = read_scan(path).channels
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, ramp())


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz", ".nrrd", ".mha"])
def test_four_dimensions_are_channels(tmp_path, suffix):
    array = ramp((3, 4, 5, 2))
    if suffix in (".nrrd", ".mha"):
        image = sitk.JoinSeries([itk_image(np.ascontiguousarray(array[..., c]), STRAIGHT) for c in range(2)])
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    else:
        save_as(array, STRAIGHT, tmp_path / f"a{suffix}")
    scan = read_scan(tmp_path / f"a{suffix}", channels=2)
    assert scan.geometry.shape == (3, 4, 5)
    np.testing.assert_allclose(scan.geometry.affine, STRAIGHT, atol=1e-5)
    for channel in range(2):
        np.testing.assert_array_equal(scan.channels[channel], array[..., channel])
    with pytest.raises(InputError, match=r"4-D .* with 2 volumes, expected 1; choose one with --volume N"):
        read_scan(tmp_path / f"a{suffix}")


def test_vector_voxels_are_channels(tmp_path):
    array = ramp((3, 4, 5, 2))
    parts = [itk_image(np.ascontiguousarray(array[..., c]), STRAIGHT) for c in range(2)]
    sitk.WriteImage(sitk.Compose(parts), str(tmp_path / "a.nrrd"))
    scan = read_scan(tmp_path / "a.nrrd", channels=2)
    np.testing.assert_array_equal(np.stack(scan.channels, axis=-1), array)


def test_channels_of_several_files(tmp_path):
    paths = [save(nifti(ramp() * (c + 1)), tmp_path / f"a_{c}.nii.gz") for c in range(3)]
    scan = read_channels(paths, 3)
    for channel in range(3):
        np.testing.assert_array_equal(scan.channels[channel], ramp() * (channel + 1))
    assert scan.source == str(paths[0])
    assert read_channels(paths[:1]).geometry == scan.geometry
    with pytest.raises(InputError, match="has 2 files, expected 1 or 3"):
        read_channels(paths[:2], 3)
    save(nifti(ramp((3, 4, 6))), paths[2])
    with pytest.raises(GridError, match=r"a_2.nii.gz has another geometry than the first channel: 3 x 4 x 6 voxels"):
        read_channels(paths, 3)


class TestFromMemory:
    def test_array_is_not_copied(self):
        array = ramp()
        scan = scan_from_array(array, OBLIQUE)
        assert np.shares_memory(scan.channels[0], array)
        np.testing.assert_array_equal(scan.geometry.affine, OBLIQUE)
        assert scan.header is None

    def test_simpleitk_image_is_not_copied_and_kept_alive(self):
        image = itk_image(ramp(), orthogonal(OBLIQUE))
        scan = scan_from_sitk(image)
        view = sitk.GetArrayViewFromImage(image)
        assert scan.channels[0].ctypes.data == view.ctypes.data
        del image, view
        others = [sitk.Image(3, 4, 5, sitk.sitkInt16) + 7 for _ in range(50)]
        np.testing.assert_array_equal(scan.channels[0], ramp())
        np.testing.assert_allclose(scan.geometry.affine, orthogonal(OBLIQUE), atol=1e-12)
        assert len(others) == 50

    def test_nibabel_image_keeps_its_header(self, tmp_path):
        image = nifti(ramp(), sform=3, qform=1)
        scan = scan_from_nibabel(image)
        assert np.shares_memory(scan.channels[0], image.dataobj)
        assert int(scan.header["sform_code"]) == 3
        assert scan.source == "The nibabel image"
        loaded = scan_from_nibabel(nib.load(save(image, tmp_path / "a.nii.gz")))
        assert loaded.geometry == read_scan(tmp_path / "a.nii.gz").geometry
        assert loaded.source == str(tmp_path / "a.nii.gz")

    def test_nibabel_image_without_an_affine_is_rejected(self):
        with pytest.raises(InputError, match="has no affine"):
            scan_from_nibabel(nib.spatialimages.SpatialImage(ramp(), None))

    def test_nibabel_image_of_a_truncated_file_is_rejected(self, tmp_path):
        path = save(nifti(ramp((8, 8, 8))), tmp_path / "a.nii.gz")
        image = nib.load(path)
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(InputError, match="cannot be read: corrupt, truncated"):
            scan_from_nibabel(image)

    @pytest.mark.parametrize("affine", [np.eye(3), np.full((4, 4), np.nan), np.diag([1, 1, 1, 2])])
    def test_affine_of_another_kind_is_rejected(self, affine):
        with pytest.raises(InputError, match="not a finite 4 x 4 matrix"):
            scan_from_array(ramp(), affine)

    @pytest.mark.parametrize(
        ("array", "affine", "message"),
        [
            (
                ramp(),
                "RAS",
                "The array's affine cannot be made from a str (could not convert string to float: "
                "'RAS'); give a 4 x 4 matrix to RAS+ millimetres.",
            ),
            (
                [[1, 2], [3]],
                np.eye(4),
                "The array cannot be made from a list (setting an array element with a sequence); "
                "give numbers in (I, J, K).",
            ),
            (
                torch.zeros(2, 2, 2, requires_grad=True),
                np.eye(4),
                "The array cannot be made from a Tensor (Can't call numpy() on Tensor that requires "
                "grad); give numbers in (I, J, K).",
            ),
        ],
    )
    def test_other_objects_than_arrays_are_rejected(self, array, affine, message):
        with pytest.raises(InputError) as caught:
            scan_from_array(array, affine)
        assert str(caught.value) == message


class TestLabels:
    def test_labels_become_the_smallest_type(self, tmp_path):
        labels = np.zeros((3, 4, 5), np.float32)
        labels[1, 2, 3] = 255
        scan = read_label(save(nifti(labels), tmp_path / "a.nii.gz"))
        assert scan.channels[0].dtype == np.uint8
        assert scan.channels[0][1, 2, 3] == 255
        labels[0, 0, 0] = 65535
        scan = read_label(save(nifti(labels), tmp_path / "a.nii.gz"))
        assert scan.channels[0].dtype == np.uint16
        np.testing.assert_array_equal(scan.channels[0], labels)

    def test_all_background_is_fine(self, tmp_path):
        assert not read_label(save(nifti(np.zeros((3, 4, 5), np.uint8)), tmp_path / "a.nii.gz")).channels[0].any()

    def test_another_geometry_is_rejected_with_both_geometries(self, tmp_path):
        path = save(nifti(np.zeros((3, 4, 5), np.uint8)), tmp_path / "a.nii.gz")
        geometry = Geometry((3, 4, 5), STRAIGHT)
        assert read_label(path, like=geometry).geometry.same_grid(geometry)
        with pytest.raises(GridError) as caught:
            read_label(path, like=Geometry((3, 4, 6), np.diag([2.0, 2.0, 2.5, 1.0])))
        assert f"{path} has another geometry than the image or reference it belongs to: 3" in str(caught.value)
        assert "3 x 4 x 5 voxels of 0.8 x 1.5 x 3 mm, LAS, from [31.5, -40.25, 12.0]" in str(caught.value)
        assert "expected 3 x 4 x 6 voxels of 2 x 2 x 2.5 mm, RAS, from [0.0, 0.0, 0.0]" in str(caught.value)

    def test_unknown_values_are_rejected(self, tmp_path):
        path = save(nifti(ramp(dtype=np.uint8) % 4), tmp_path / "a.nii.gz")
        read_label(path, known=(1, 2, 3))
        with pytest.raises(InputError, match=r"unknown label values \[3\], expected \[1, 2\]"):
            read_label(path, known=(1, 2))


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(-9999, 9999, (20, 20, 20)).astype(np.int16)


class TestCorrupt:
    def rejected(self, path, message):
        with pytest.raises(InputError, match=message) as caught:
            read_scan(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path):
        self.rejected(tmp_path / "a.nii", "does not exist")

    def test_a_name_that_is_too_long(self, tmp_path):
        self.rejected(tmp_path / f"{'x' * 300}.nii", "cannot be read: File name too long; check its name, its permi")

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.dcm", "a.zip"])
    def test_a_pipe(self, tmp_path, name):
        """Opening one would block."""
        os.mkfifo(tmp_path / name)
        self.rejected(tmp_path / name, "is neither a file nor a folder; give another file")
        assert reading_bytes(tmp_path / name) == 0

    @pytest.mark.parametrize("suffix", [*SUFFIXES, ".dcm", ".zip"])
    def test_an_unreadable_file_is_not_called_corrupt(self, tmp_path, monkeypatch, suffix):
        path = tmp_path / f"a{suffix}"
        path.touch()

        def refuse(file, *arguments, **options):
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(InputError) as caught:
            read_scan(path)
        assert str(caught.value) == (
            f"{path} cannot be read: Permission denied; check its name, its permissions and its disk."
        )

    def test_a_missing_file_of_a_nibabel_image_is_not_called_corrupt(self, tmp_path):
        path = save(nifti(ramp()), tmp_path / "a.nii.gz")
        image = nib.load(path)
        path.unlink()
        with pytest.raises(InputError, match=rf"^{path} cannot be read: No such file or directory; check its name, "):
            scan_from_nibabel(image)

    def test_unknown_suffix(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"\x89PNG")
        self.rejected(tmp_path / "a.png", r"has no supported image format. Supported: \.nii\.gz")

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize(
        "content",
        [b"", b"just some text, no image\n" * 40, gzip.compress(b"text" * 300)],
        # gzip notes the time, and processes that run tests together have to call them by the same names.
        ids=["nothing", "text", "compressed text"],
    )
    def test_no_image_at_all(self, tmp_path, suffix, content):
        (tmp_path / f"a{suffix}").write_bytes(content)
        self.rejected(tmp_path / f"a{suffix}", "a[.]")

    @pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha"])
    @pytest.mark.parametrize("cut", [30, 900, -1, -300])
    def test_truncated(self, tmp_path, noise, suffix, cut):
        """After some bytes of the header, or before the last ones; the last bytes of an MGH file are not voxels."""
        path = save_as(noise, STRAIGHT, tmp_path / f"a{suffix}")
        if cut == -1 and suffix == ".mgh":
            cut = -100
        path.write_bytes(path.read_bytes()[:cut])
        self.rejected(path, "a[.]")

    @pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
    def test_checksum(self, tmp_path, noise, suffix):
        path = save_as(noise, STRAIGHT, tmp_path / f"a{suffix}")
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(content)
        self.rejected(path, "corrupt, truncated .*CRC")

    def test_not_gzip(self, tmp_path):
        save(nifti(ramp()), tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
        self.rejected(tmp_path / "a.nii.gz", "is not gzip-compressed despite its suffix .nii.gz; rename it")

    def test_gzip_without_gz(self, tmp_path):
        save(nifti(ramp()), tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
        self.rejected(tmp_path / "a.nii", "is gzip-compressed despite its suffix .nii; rename it")

    @pytest.mark.parametrize(
        ("suffix", "content"), [(".nii", ".mgh"), (".mgh", ".nii"), (".nrrd", ".nii"), (".mha", ".nrrd")]
    )
    def test_another_format(self, tmp_path, suffix, content):
        save_as(ramp((9, 9, 9)), STRAIGHT, tmp_path / f"a{content}").rename(tmp_path / f"b{suffix}")
        self.rejected(tmp_path / f"b{suffix}", "is not|cannot be read: not")

    def test_a_header_that_declares_too_much(self, tmp_path):
        path = patched(save(nifti(ramp()), tmp_path / "a.nii"), 42, np.array([32000] * 3, "<i2").tobytes())
        self.rejected(path, "declares 65536000000352 bytes, found at most 472; copy it again")
        with gzip.open(tmp_path / "b.nii.gz", "wb") as file:
            file.write(path.read_bytes())
        self.rejected(tmp_path / "b.nii.gz", "declares 65536000000352 bytes")

    def test_an_unknown_type_of_voxels(self, tmp_path):
        self.rejected(patched(save(nifti(ramp()), tmp_path / "a.nii"), 70, b"\1\0"), r"is 1 \(one bit\); convert it")

    def test_no_voxels(self, tmp_path):
        self.rejected(patched(save(nifti(ramp()), tmp_path / "a.nii"), 44, b"\0\0"), "is empty: its size is 3 x 0 x 5")

    def test_detached_header(self, tmp_path):
        self.rejected(
            patched(save(nifti(ramp()), tmp_path / "a.nii"), 344, b"ni1\0"), "is not a single-file NIfTI image"
        )

    @pytest.mark.parametrize("pixdim", [0.0, -1.0, np.nan])
    def test_invalid_voxel_sizes_are_rejected_if_they_are_used(self, tmp_path, pixdim):
        value = np.array([pixdim], "<f4").tobytes()
        self.rejected(
            patched(save(nifti(ramp(), qform=1), tmp_path / "a.nii"), 84, value),
            "expected positive numbers; fix the header",
        )
        used = read_scan(patched(save(nifti(ramp(), qform=0), tmp_path / "b.nii"), 84, value))
        np.testing.assert_allclose(used.geometry.affine, STRAIGHT, atol=1e-5)

    def test_an_invalid_quaternion(self, tmp_path):
        path = patched(save(nifti(ramp()), tmp_path / "a.nii"), 256, np.array([2, 2, 2], "<f4").tobytes())
        self.rejected(path, "the qform is not a rotation")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("sform", [0, 2])
@pytest.mark.parametrize("qform", [0, 1])
def test_forms(tmp_path, version, sform, qform):
    image = nifti(ramp(), orthogonal(OBLIQUE), sform=sform, qform=qform, version=version)
    scan = read_scan(save(image, tmp_path / "a.nii.gz"))
    if sform or qform:
        np.testing.assert_allclose(scan.geometry.affine, orthogonal(OBLIQUE), atol=1e-5)
        assert scan.warnings == ("The image axes are oblique by 20 degrees and are not straightened.",)
    else:
        np.testing.assert_allclose(scan.geometry.affine, np.diag([*image.header["pixdim"][1:4], 1]))
        assert scan.warnings == (
            "Neither sform nor qform is set, so the orientation is unknown; RAS+ axes are assumed.",
        )


@pytest.mark.needs_data
class TestReal:
    @pytest.mark.parametrize(
        ("name", "shape", "spacing", "codes", "dtype", "warnings"),
        [
            ("FLAIR.nii.gz", (124, 160, 140), (1, 1, 1), "RAS", np.uint8, ["oblique by 19"]),
            ("shear.nii.gz", (306, 422, 54), (0.4824, 0.4824, 2.3708), "RAS", np.float32, ["differ", "meet at 71.5"]),
            ("ct_torso_3mm.nii.gz", (122, 101, 112), (3, 3, 3), "RAS", np.int32, ["millimetres are assumed"]),
            ("wm.mgz", (256, 256, 256), (1, 1, 1), "LIA", np.uint8, []),
        ],
    )
    def test_readable(self, data_folder, name, shape, spacing, codes, dtype, warnings):
        path = data_folder / "wild" / name
        scan = read_scan(path)
        assert scan.geometry.shape == shape
        assert scan.geometry.axis_codes == codes
        np.testing.assert_allclose(scan.geometry.spacing_mm, spacing, atol=1e-4)
        assert scan.channels[0].dtype == dtype
        assert len(scan.warnings) == len(warnings)
        for found, expected in zip(scan.warnings, warnings, strict=True):
            assert expected in found
        image = nib.load(path)
        np.testing.assert_array_equal(scan.geometry.affine, image.affine)
        few = np.s_[::5, ::5, ::5]
        np.testing.assert_allclose(scan.channels[0][few], np.asarray(image.dataobj)[few], rtol=1e-6, atol=1e-4)

    def test_complex_is_rejected(self, data_folder):
        with pytest.raises(InputError, match="the voxels are complex"):
            read_scan(data_folder / "wild" / "complex.nii.gz")

    def test_perfusion_is_rejected_as_one_channel(self, data_folder):
        path = data_folder / "wild" / "pcasl.nii.gz"
        with pytest.raises(InputError, match=r"is 4-D \(52 x 68 x 20 x 10\) with 10 volumes, expected 1"):
            read_scan(path)
        assert len(read_scan(path, channels=10).channels) == 10

    def test_every_file_is_read_or_rejected(self, data_folder):
        """Every file is read, or rejected in one sentence."""
        rejected = {}
        for path in sorted((data_folder / "wild").iterdir()):
            try:
                read_scan(path)
            except InputError as error:
                rejected[path.name] = str(error)
        assert rejected.keys() == {"complex.nii.gz", "pcasl.nii.gz"}
        assert all(name in message and "\n" not in message for name, message in rejected.items())

    def test_training_cases_have_the_geometry_of_their_labels(self, data_folder):
        folder = data_folder / "Task04_Hippocampus"
        images = sorted((folder / "imagesTr").glob("*.nii.gz"))[:10]
        assert images
        for image in images:
            scan = read_scan(image)
            read_label(folder / "labelsTr" / image.name, like=scan.geometry, known=(1, 2))
