"""With two dimensions a scan keeps its slices; only the plane is resampled."""

import nibabel
import numpy as np
import pytest
import torch

from tests.pipeline import tiny_plan, write_model
from tests.transforms.test_slices import flat_plan
from volseg import Segmenter
from volseg.config import Resampling
from volseg.data.grid.geometry import Geometry, map_to_network
from volseg.data.grid.preprocess import image_to_network
from volseg.inference.budget import windows_at_once
from volseg.inference.labelling import nearest_axis


@pytest.mark.parametrize("thickness", [0.3, 2.0, 6.0, 17.0])
@pytest.mark.parametrize("slices", [1, 2, 11])
def test_slices_are_neither_added_nor_lost(slices, thickness):
    plan = flat_plan(spacing_mm=(2.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    scan = rng.normal(size=(20, 30, slices)).astype(np.float32)
    geometry = Geometry(scan.shape, np.diag([2.0, 1.5, thickness, 1.0]))
    volume, grid = image_to_network([scan], geometry, plan)
    assert tuple(volume.shape) == (1, slices, 40, 45)
    assert grid.shape == (slices, 40, 45)
    # Each slice depends on its own voxels alone.
    changed = scan.copy()
    changed[..., 0] = changed[::-1, :, 0]
    other, _ = image_to_network([changed], geometry, plan)
    assert torch.equal(volume[:, 1:], other[:, 1:])


def test_which_axis_is_separate_follows_from_the_scan():
    separate = Resampling(order=1, separate="anisotropic")
    plan = flat_plan(spacing_mm=(1.0, 1.0, 1.0), logits_resampling=separate)
    for thickness, axis in ((2.0, None), (6.0, 0)):
        grid = map_to_network(Geometry((20, 30, 5), np.diag([1.0, 1.0, thickness, 1.0])), plan)
        assert nearest_axis(plan, grid) == axis


@pytest.mark.parametrize("shape", [(40, 36, 1), (40, 36, 9), (1, 40, 36), (40, 1, 36)])
def test_a_stack_is_segmented_slice_by_slice(tmp_path, shape):
    axis = min(range(3), key=lambda one: shape[one])
    plan = flat_plan(spacing_mm=(5.0, 1.0, 1.0), axes=(axis, *[one for one in range(3) if one != axis]))
    segmenter = Segmenter.load(
        write_model(tmp_path / "m.safetensors", plan), device="cpu", precision="fp32", tta="mirror"
    )
    scan = np.random.default_rng(1).normal(200, 50, shape).astype(np.float32)
    spacing = np.where(np.arange(3) == axis, 7.0, 1.2)
    found = segmenter((scan, np.diag([*spacing, 1.0])))
    assert found.labels.shape == shape
    assert len(np.unique(found.labels)) > 1
    voxel_ml = 7.0 * 1.2 * 1.2 / 1000
    for label in plan.labels:
        assert found.volumes_ml[label.name] == pytest.approx((found.labels == label.value).sum() * voxel_ml)
    # A single slice of a stack, its intensities scaled as the stack's: the same labels as within it.
    if shape[axis] > 1:
        whole = (scan - scan.mean()) / scan.std()
        plan = plan.model_copy(update={"channels": (plan.channels[0].model_copy(update={"normalisation": "none"}),)})
        plain = Segmenter.load(write_model(tmp_path / "n.safetensors", plan), device="cpu", precision="fp32")
        affine = np.diag([*spacing, 1.0])
        one = plain((whole.take([4], axis), affine)).labels
        assert np.array_equal(one, plain((whole, affine)).labels.take([4], axis))


def test_the_result_of_one_slice_keeps_its_file(tmp_path):
    scan = np.random.default_rng(1).normal(200, 50, (40, 36, 1)).astype(np.float32)
    image = nibabel.Nifti1Image(scan, np.diag([1.1, 1.1, 8.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "scan.nii.gz")
    model = write_model(tmp_path / "m.safetensors", flat_plan(spacing_mm=(5.0, 1.0, 1.0)))
    result = Segmenter.load(model, device="cpu")(tmp_path / "scan.nii.gz")
    result.save(tmp_path / "out.nii.gz")
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.shape == (40, 36, 1)
    assert np.allclose(written.affine, image.affine)
    assert written.header["pixdim"][3] == 8.0


def test_small_slices_are_computed_together_on_a_cpu():
    cpu = torch.device("cpu")
    for edge, expected in ((16, 16), (128, 4), (512, 1)):
        plan = flat_plan(patch_size=(1, edge, edge))
        assert windows_at_once(plan, torch.float32, cpu) == expected
    assert windows_at_once(tiny_plan(), torch.float32, cpu) == 1
