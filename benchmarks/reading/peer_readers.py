"""Read files by nnU-Net's or TotalSegmentator's own readers, in a Python that has them; used by peers.py.

    PYTHON peer_readers.py nnunet|totalsegmentator MANIFEST FOLDER

MANIFEST is a JSON object of paths by name. Each answer is a line of JSON: {"begin": name} before a file is read, then
{"name": name} with "error": text, "several": what it takes the file for, or "file": an .npz with `voxels` (I, J, K) and
`affine` to RAS+ mm.
"""

import json
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from totalsegmentator.dicom_io import dcm_to_nifti

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class SeveralVolumesError(Exception):
    """The reader takes a file for several volumes, which is no refusal."""


def by_nnunet(path):
    """The reader that nnU-Net takes for the file by default: nibabel for .nii, SimpleITK for the others."""
    reader = NibabelIO() if path.endswith(".nii") else SimpleITKIO()
    channels, properties = reader.read_images([path])
    if len(channels) != 1:
        raise SeveralVolumesError(f"{len(channels)} channels of one patient")
    if "nibabel_stuff" in properties:
        affine = properties["nibabel_stuff"]["original_affine"]
    else:
        stated = properties["sitk_stuff"]
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(stated["direction"], (3, 3)) * stated["spacing"]
        affine[:3, 3] = stated["origin"]
        affine = LPS_RAS @ affine
    return channels[0].transpose(2, 1, 0), affine


def by_totalsegmentator(path):
    """As its nnUNet_predict_image reads: NIfTI by nibabel, of 4-D the first volume; all else through dicom2nifti."""
    with tempfile.TemporaryDirectory() as folder:
        if not path.endswith((".nii", ".nii.gz")):
            converted = Path(folder) / "converted_dcm.nii.gz"
            dcm_to_nifti(path, converted, Path(folder))
            path = converted
        image = nib.load(path)
        if len(image.shape) == 2:
            raise ValueError("TotalSegmentator does not work for 2D images. Use a 3D image.")
        voxels = image.get_fdata()
        return (voxels[:, :, :, 0] if len(image.shape) > 3 else voxels), image.affine


def main(reader, manifest, folder):
    read = {"nnunet": by_nnunet, "totalsegmentator": by_totalsegmentator}[reader]
    for number, (name, path) in enumerate(json.loads(Path(manifest).read_text()).items()):
        print(json.dumps({"begin": name}), flush=True)
        try:
            voxels, affine = read(path)
        except SeveralVolumesError as found:
            print(json.dumps({"name": name, "several": str(found)}), flush=True)
            continue
        except BaseException as error:
            print(json.dumps({"name": name, "error": f"{type(error).__name__}: {error}"}), flush=True)
            continue
        file = Path(folder) / f"{number}.npz"
        np.savez(file, voxels=voxels, affine=affine)
        print(json.dumps({"name": name, "file": str(file)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
