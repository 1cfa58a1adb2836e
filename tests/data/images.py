"""Small images and files of them, for the tests of reading and writing."""

import locale
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

OBLIQUE = np.array([[1.2, -0.3, 0.1, -20.0], [0.4, 0.9, -0.2, 15.0], [-0.1, 0.25, 2.9, 7.5], [0, 0, 0, 1.0]])
SHEARED = np.array([[1.0, 0.3, 0.0, -20.0], [0.0, 1.0, 0.0, 15.0], [0.0, 0.0, 2.0, 7.5], [0, 0, 0, 1.0]])
STRAIGHT = np.array([[-0.8, 0, 0, 31.5], [0, 1.5, 0, -40.25], [0, 0, 3.0, 12.0], [0, 0, 0, 1.0]])


def orthogonal(affine):
    """The affine with the nearest orthogonal axes and the same spacings."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = affine.copy()
    straight[:3, :3] = left @ right * spacing
    return straight


def ramp(shape=(3, 4, 5), dtype=np.int16):
    """Voxels 0, 1, 2, ..., all different."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def nifti(array, affine=STRAIGHT, sform=1, qform=1, units="mm", slope=None, inter=None, version=1, endian="<"):
    """A NIfTI image with the given header fields."""
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = kind(array, affine, kind.header_class(endianness=endian), dtype=array.dtype)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.header["xyzt_units"] = {"mm": 2, "none": 0, "metre": 1, "micron": 3, "mm+s": 10}[units]
    image.header.set_slope_inter(slope, inter)
    return image


def save(image, path: Path) -> Path:
    nib.save(image, path)
    return path


def patched(path: Path, offset: int, data: bytes) -> Path:
    """An uncompressed file with some bytes replaced."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


def write_series(
    folder: Path, array, positions, spacing=(0.5, 0.75), axes=((1, 0, 0), (0, 1, 0)), series="1.2.3.4", first=0, **tags
):
    """Write (I, J, K) as one DICOM file per slice at `positions` (K, 3) LPS+, in scrambled file names.

    `tags` ("0028_1052") are added to the usual ones or replace them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # GDCM leaves the process in the C locale after writing, in which other tests cannot read UTF-8.
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, position in enumerate(positions):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[:, :, k].T))
        image.SetSpacing(spacing)
        values = {
            "0008|0060": "MR",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0010|0010": "Secret^Name",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0020|0011": "7",
            "0020|0013": str(k + 1),
            "0008|0018": f"{series}.{first + k + 1}",
            "0018|0050": "9",
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.8f}" for axis in axes for value in axis),
        } | {key.replace("_", "|"): value for key, value in tags.items()}
        for key, value in values.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{series}-{(first + k) * 7 % 31:02}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
    return folder
