"""Compressed pixels: equal voxels or a refusal by name, whole frames or none."""

import io
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.pixels import get_decoder, get_encoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from tests.data.io.dicom.writers import (
    affine_of,
    assert_volume,
    classic,
    enhanced,
    place,
    put,
    read,
    stack,
    write,
    write_all,
)
from volseg.data.io.dicom import decode
from volseg.errors import InputError

KINDS = pytest.mark.parametrize("kind", [classic, enhanced])
SYNTAXES = [RLELossless, JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless]
LOSSLESS = pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: UID(uid).keyword)
JPEG2000, HTJ2K, MPEG2 = UID("1.2.840.10008.1.2.4.91"), "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.100"
BY_ITK = {JPEGLosslessSV1: "JPEG", JPEG2000Lossless: "JPEG2000"}
AFFINE = affine_of(stack(4))


def smooth(dtype=np.int16, shape=(12, 10, 4)):
    """Voxels of an image-like kind, which compression makes smaller, with negative ones if the type has them."""
    i, j, k = np.indices(shape)
    values = 60 + 50 * np.sin(i / 3) * np.cos(j / 2) + 3 * k + np.random.default_rng(2).integers(0, 4, shape)
    return (values - (80 if np.dtype(dtype).kind == "i" else 0)).astype(dtype)


def encoded(frame, syntax, stored=None):
    """One frame (rows, columns) as a compressed stream."""
    if syntax in BY_ITK:
        with tempfile.TemporaryDirectory() as folder:
            writer = sitk.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.UseCompressionOn()
            writer.SetCompressor(BY_ITK[syntax])
            writer.SetFileName(str(Path(folder) / "a.dcm"))
            writer.Execute(sitk.GetImageFromArray(frame))
            return b"".join(list(generate_fragments(dcmread(Path(folder) / "a.dcm").PixelData))[1:])
    if syntax == JPEGLSLossless:
        pytest.importorskip("jpeg_ls")
    found = get_encoder(syntax).encode(
        np.ascontiguousarray(frame),
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=1,
        bits_allocated=8 * frame.dtype.itemsize,
        bits_stored=stored or 8 * frame.dtype.itemsize,
        photometric_interpretation="MONOCHROME2",
        pixel_representation=int(frame.dtype.kind == "i"),
        number_of_frames=1,
    )
    return bytes(found)


def compressed(made, array, syntax, encode=encoded, **layout):
    """Datasets of `classic` or `enhanced` with the pixels of (I, J, K) compressed."""
    frames = [encode(np.ascontiguousarray(array[:, :, k].T), syntax) for k in range(array.shape[2])]
    if not isinstance(made, list):
        return [with_frames(made, frames, **layout)]
    return [with_frames(data, [frame], **layout) for data, frame in zip(made, frames, strict=True)]


def with_frames(data, frames, **layout):
    data.add_new("PixelData", "OB", encapsulate(frames, **layout))
    data["PixelData"].is_undefined_length = True
    return data


@KINDS
@LOSSLESS
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_lossless_syntaxes(tmp_path, kind, syntax, dtype):
    array = smooth(dtype)
    scan = read(write_all(tmp_path, compressed(kind(array), array, syntax), syntax=syntax))
    assert_volume(scan, array, AFFINE)
    assert scan.warnings == ()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_stored_bits_of_compressed_pixels(tmp_path, syntax, dtype):
    """12 bits with a sign are read with it, whether or not the encoder has extended it."""
    array = smooth(dtype) * 8
    for name, frames in {"extended": array, "cut": (array.astype(np.uint16) & 4095).astype(dtype)}.items():
        if name == "cut" and syntax != RLELossless:
            continue
        made = compressed(
            classic(array, BitsStored=12, HighBit=11),
            frames,
            syntax,
            lambda frame, one: encoded(frame, one, 12) if one != RLELossless else encoded(frame, one),
        )
        assert_volume(read(write_all(tmp_path / name, made, syntax=syntax)), array, AFFINE)


@LOSSLESS
def test_rescaling_of_compressed_frames(tmp_path, syntax):
    array = smooth()

    def change(k, stated):
        stated.update(RescaleSlope=str(k + 1), RescaleIntercept=str(-10 * k))

    order = [2, 0, 3, 1]
    made = enhanced(array, positions=stack(4)[order], change=change)
    path = write(compressed(made, array, syntax)[0], tmp_path / "a.dcm", syntax=syntax)
    at = np.argsort(order)
    assert_volume(read(path), array[..., at] * (at + 1) - 10 * at, AFFINE)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless])
def test_frames_in_several_fragments(tmp_path, syntax):
    array = smooth()
    made = compressed(enhanced(array), array, syntax, fragments_per_frame=3, has_bot=True)
    assert_volume(read(write(made[0], tmp_path / "a.dcm", syntax=syntax)), array, AFFINE)
    made = compressed(classic(array), array, syntax, fragments_per_frame=3, has_bot=False)
    assert_volume(read(write_all(tmp_path / "s", made, syntax=syntax)), array, AFFINE)


def test_fragments_without_a_table_belong_to_the_frame_that_begins_before_them(tmp_path):
    array = smooth()
    made = compressed(enhanced(array), array, JPEG2000Lossless, fragments_per_frame=3, has_bot=False)
    assert_volume(read(write(made[0], tmp_path / "a.dcm", syntax=JPEG2000Lossless)), array, AFFINE)


def test_fragments_that_nothing_assigns_to_frames(tmp_path):
    array = smooth()
    made = compressed(enhanced(array), array, RLELossless, fragments_per_frame=3, has_bot=False)
    with pytest.raises(InputError, match="NumberOfFrames is 4, but there are 12 compressed fragments"):
        read(write(made[0], tmp_path / "a.dcm", syntax=RLELossless))


@KINDS
def test_bytes_after_the_end_of_a_stream_are_fill(tmp_path, kind):
    array = smooth()
    made = compressed(kind(array), array, JPEG2000Lossless)
    frames = list(generate_fragments(made[-1].PixelData))[1:]
    with_frames(made[-1], [frame + b"fill" for frame in frames])
    assert_volume(read(write_all(tmp_path, made, syntax=JPEG2000Lossless)), array, AFFINE)


@KINDS
@LOSSLESS
@pytest.mark.parametrize("in_frame", [True, False])
def test_cut_streams_never_give_other_voxels(tmp_path, capfd, kind, syntax, in_frame):
    """A stream cut anywhere, in a well-formed file or with the rest of the file."""
    array = smooth(shape=(32, 24, 2))
    content = encoded(np.ascontiguousarray(array[:, :, -1].T), syntax)
    for size in range(0, len(content) - 1, max(len(content) // 20, 1)):
        made = compressed(kind(array), array, syntax)
        frames = list(generate_fragments(made[-1].PixelData))[1:]
        if in_frame:
            with_frames(made[-1], [*frames[:-1], content[:size] or b"\0\0"])
        path = write(made[-1], tmp_path / "last.dcm", syntax=syntax)
        if not in_frame:
            # 8 bytes of the end of the sequence follow the frame.
            path.write_bytes(path.read_bytes()[: -8 - len(content) - len(content) % 2 + size])
        for k, data in enumerate(made[:-1]):
            write(data, tmp_path / f"{k}.dcm", syntax=syntax)
        with pytest.raises(InputError, match=r"cut short|corrupt|holds|cannot be read"):
            read(tmp_path)
    assert capfd.readouterr() == ("", "")


@KINDS
@LOSSLESS
@pytest.mark.parametrize("name", ["Rows", "Columns"])
@pytest.mark.parametrize("change", [-1, 1, 10])
def test_frames_of_another_size_than_stated(tmp_path, kind, syntax, name, change):
    array = smooth()
    made = compressed(kind(array), array, syntax)
    for data in made:
        setattr(data, name, getattr(data, name) + change)
    with pytest.raises(InputError, match=r"cut short or corrupt|holds .* pixels"):
        read(write_all(tmp_path, made, syntax=syntax))


@LOSSLESS
@pytest.mark.parametrize("frames", [1, 3, 5])
def test_another_number_of_frames_than_stated(tmp_path, syntax, frames):
    array = smooth()
    stored = [encoded(np.ascontiguousarray(array[:, :, k].T), syntax) for k in range(4)]
    made = with_frames(enhanced(np.concatenate([array, array], axis=2)[..., :frames]), stored)
    with pytest.raises(
        InputError, match=rf"NumberOfFrames is {frames}, but there are 4 compressed|cut short or corrupt"
    ):
        read(write(made, tmp_path / "a.dcm", syntax=syntax))


def baseline(frame, _):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def lossy_jpeg2000(frame, _):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG2000", no_jp2=True, irreversible=True)
    return stream.getvalue()


LOSSY = {
    "JPEG": (JPEGBaseline8Bit, baseline, None, "compressed with loss"),
    "JPEG 2000, stated": (JPEG2000, lossy_jpeg2000, "01", "compressed with loss"),
    "JPEG 2000, not stated": (JPEG2000, lossy_jpeg2000, None, "may have been compressed with loss"),
    "JPEG 2000 without loss": (JPEG2000, lambda frame, _: encoded(frame, JPEG2000Lossless), "00", None),
    "earlier": (JPEG2000Lossless, encoded, "01", "compressed with loss"),
}


@KINDS
@pytest.mark.parametrize("name", LOSSY)
def test_lossy_compression_gives_a_warning(tmp_path, kind, name):
    syntax, encode, stated, warning = LOSSY[name]
    array = smooth(np.uint8, (32, 24, 4))
    made = compressed(kind(array, LossyImageCompression=stated), array, syntax, encode)
    scan = read(write_all(tmp_path, made, syntax=syntax))
    assert np.abs(scan.channels[0].astype(int) - array).max() <= 8
    assert [warning in one for one in scan.warnings] == [True] if warning else scan.warnings == ()


@KINDS
@pytest.mark.parametrize("syntax", [HTJ2K, MPEG2, "1.2.840.10008.1.2.4.70.1", "1.2.3.4.5"])
def test_an_encoding_that_is_not_supported_is_named(tmp_path, kind, syntax):
    if syntax == HTJ2K and get_decoder(UID(HTJ2K)).is_available:
        pytest.skip("pylibjpeg-openjpeg is installed")
    array = smooth()
    folder = write_all(tmp_path, compressed(kind(array), array, JPEG2000Lossless), syntax=JPEG2000Lossless)
    call_it(folder, syntax)
    with pytest.raises(InputError, match=f"the transfer syntax .*{re.escape(syntax)}.* is not supported") as caught:
        read(folder)
    assert "copy it again" not in str(caught.value)


def call_it(folder, syntax):
    """State another transfer syntax than that of the pixels."""
    for file in folder.iterdir():
        content = file.read_bytes()
        place = re.search(rb"\x02\x00\x10\x00UI..", content, re.S)
        size = int.from_bytes(place[0][-2:], "little")
        uid = str(syntax).encode()
        uid += b"\0" * (len(uid) % 2)
        start = content[: place.end() - 2] + len(uid).to_bytes(2, "little") + uid
        # The length of the group of the file's own header.
        length = int.from_bytes(start[140:144], "little") + len(uid) - size
        file.write_bytes(start[:140] + length.to_bytes(4, "little") + start[144:] + content[place.end() + size :])
    return folder


@KINDS
def test_pixels_that_contradict_the_transfer_syntax(tmp_path, kind):
    array = smooth()
    made = kind(array)
    folder = write_all(tmp_path / "a", made if isinstance(made, list) else [made])
    with pytest.raises(InputError, match="PixelData is not compressed, but the transfer syntax is JPEG 2000"):
        read(call_it(folder, JPEG2000Lossless))
    made = compressed(kind(array), array, JPEG2000Lossless)
    folder = write_all(tmp_path / "b", made, syntax=JPEG2000Lossless)
    with pytest.raises(InputError, match="PixelData is compressed, but the transfer syntax is Explicit VR"):
        read(call_it(folder, "1.2.840.10008.1.2.1"))


@LOSSLESS
def test_bytes_missing_in_the_middle_of_a_stream(tmp_path, capfd, syntax):
    """The decoder of JPEG continues with invented pixels, and says so on the console alone."""
    array = smooth(shape=(32, 24, 1))
    made = classic(array)
    content = encoded(np.ascontiguousarray(array[:, :, 0].T), syntax)
    for at in range(len(content) // 3, len(content) - 60, len(content) // 20):
        with_frames(made[0], [content[:at] + content[at + 50 :]])
        with pytest.raises(InputError, match="is cut short or corrupt"):
            read(write(made[0], tmp_path / "a.dcm", syntax=syntax))
    assert capfd.readouterr() == ("", "")


def test_a_precision_on_which_gdcm_crashes(tmp_path, capfd):
    array = smooth(shape=(32, 24, 1))
    content = encoded(np.ascontiguousarray(array[:, :, 0].T), JPEGLosslessSV1)
    at = content.index(b"\xff\xc3") + 4
    made = with_frames(classic(array)[0], [content[:at] + b"\x5f" + content[at + 1 :]])
    with pytest.raises(InputError, match="is cut short or corrupt"):
        read(write(made, tmp_path / "a.dcm", syntax=JPEGLosslessSV1))
    assert capfd.readouterr() == ("", "")


def test_lines_of_others_reach_the_console(tmp_path, capfd, monkeypatch):
    array = smooth()
    folder = write_all(tmp_path, compressed(classic(array), array, JPEGLosslessSV1), syntax=JPEGLosslessSV1)
    real = sitk.ReadImage

    def noisy(*args, **options):
        os.write(2, b"a line of another thread\n")
        return real(*args, **options)

    monkeypatch.setattr(decode.sitk, "ReadImage", noisy)
    assert_volume(read(folder), array, AFFINE)
    assert capfd.readouterr().err == "a line of another thread\n" * 4


def test_gdcm_gets_no_more_than_the_frame(tmp_path):
    """No rescaling, inversion or name of the file reaches the decoder."""
    array = smooth(np.uint16)
    made = classic(array, PhotometricInterpretation="MONOCHROME1", RescaleSlope="2", RescaleIntercept="-1")
    folder = write_all(tmp_path, compressed(made, array, JPEGLosslessSV1), syntax=JPEGLosslessSV1)
    assert_volume(read(folder), array.astype(int) * 2 - 1, AFFINE)


@pytest.mark.needs_data
@pytest.mark.parametrize("name", ["compressed", "compressed_jpeg", "compressed_jpegls", "compressed_rle"])
def test_real_files(data_folder, name):
    folder = data_folder / "dicom" / "odd_dicom2nifti" / "generic" / name / "001"
    files = sorted(folder.iterdir())
    scan = read(folder)
    for file in files:
        image = sitk.ReadImage(str(file))
        place = np.linalg.inv(scan.geometry.affine) @ [*(np.array(image.GetOrigin()) * [-1, -1, 1]), 1]
        k = round(place[2])
        np.testing.assert_allclose(place[:3], (0, 0, k), atol=1e-3)
        np.testing.assert_array_equal(scan.channels[0][..., k], sitk.GetArrayFromImage(image)[0].T)
    assert scan.geometry.shape[2] == len(files)


@pytest.mark.parametrize("padding", [b"\0\0", b"\xff\xff"])
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless])
def test_bytes_that_fill_up_a_frame(tmp_path, syntax, padding):
    array = smooth()
    made = compressed(classic(array), array, syntax, lambda frame, one: encoded(frame, one) + padding)
    assert_volume(read(write_all(tmp_path, made, syntax=syntax)), array, AFFINE)


@pytest.mark.parametrize(
    "name", ["JPEG-lossy.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm"]
)
def test_files_of_pydicom(tmp_path, capfd, name):
    """12 bits in JPEG: the decoder of 8 bits says that it cannot, and another one takes over."""
    data = dcmread(get_testdata_file(name))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(get_testdata_file(name), imageIO="GDCMImageIO"))
    capfd.readouterr()
    for attribute, value in place((0, 0, 0)).items():
        put(data, attribute, value)
    data.save_as(tmp_path / name)
    scan = read(tmp_path / name)
    assert_volume(scan, expected.squeeze().T[..., None])
    assert "compressed with loss" in scan.warnings[-1]
    assert capfd.readouterr() == ("", "")
