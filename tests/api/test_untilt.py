"""A stack of tilted slices, segmented on an upright grid and labelled on its own."""

import math
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.data.images import write_series
from tests.pipeline import blob, tiny_plan, write_model
from volseg import Segmenter
from volseg.data.grid.shear import upright, upright_geometry
from volseg.data.io.choice import Choice
from volseg.data.io.reading import read_scan, scan_from_array
from volseg.errors import InputError, UsageError
from volseg.inference.budget import MemoryEstimate

TILT = 15.0
SHAPE = (48, 52, 20)
UNTILT = Choice(untilt=True)


def tilted_affine() -> np.ndarray:
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    affine[1, 2] = 3.0 * math.tan(math.radians(TILT))
    affine[:3, 3] = (-30, 12, 100)
    return affine


def sphere() -> np.ndarray:
    """A ball of radius 20 mm in the world, on the tilted slices."""
    affine = tilted_affine()
    places = np.tensordot(affine[:3, :3], np.indices(SHAPE), 1)
    middle = affine[:3, :3] @ (24, 26, 10)
    return np.linalg.norm(places - middle.reshape(3, 1, 1, 1), axis=0) <= 20


class Threshold(torch.nn.Module):
    """Says label 1 where the normalised intensity is above 0.5, and keeps the shapes of what it was given."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x - 0.5, torch.full_like(x, -9.0)], 1)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    model = write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", tiny_plan(spacing_mm=(3.0, 1.5, 1.5)))
    loaded = Segmenter.load(model, device="cpu", precision="fp32")
    return replace(loaded, labeller=replace(loaded.labeller, network=Threshold()))


@pytest.fixture(params=["nii.gz", "nrrd"])
def path(request, tmp_path):
    array, target = np.where(sphere(), 900, -100).astype(np.int16), tmp_path / f"tilted.{request.param}"
    if request.param == "nrrd":
        image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
        lps = np.diag([-1.0, -1.0, 1.0]) @ tilted_affine()[:3]
        spacing = np.linalg.norm(lps[:, :3], axis=0)
        image.SetSpacing(spacing)
        image.SetOrigin(lps[:, 3])
        image.SetDirection((lps[:, :3] / spacing).ravel())
        sitk.WriteImage(image, str(target))
    else:
        image = nibabel.Nifti1Image(array, tilted_affine())
        image.header.set_xyzt_units("mm")
        nibabel.save(image, target)
    return target


def test_labels_lie_on_the_tilted_slices(segmenter, path, tmp_path):
    scan = read_scan(path, choice=UNTILT)
    result = segmenter(scan)
    found, true = result.labels == 1, sphere()
    assert found.shape == SHAPE
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.97
    assert result.record["untilted"] == pytest.approx(TILT, abs=1e-3)
    assert [line for line in result.warnings if "tilted by 15.0 degrees" in line]
    assert not [line for line in result.warnings if "not straightened" in line]
    # The volume is that of the slices' own voxels.
    assert found.sum() * result.scan.geometry.voxel_ml == pytest.approx(4 / 3 * math.pi * 20**3 / 1000, rel=0.05)
    assert result.measures[0].voxels == found.sum()
    assert result.scan.geometry.same_grid(read_scan(path).geometry)
    result.save(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(nibabel.load(tmp_path / "labels.nii.gz").affine, tilted_affine(), atol=1e-4)


def test_the_network_sees_the_upright_scan(segmenter, path):
    seen = []

    class Seeing(Threshold):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    scan = read_scan(path, choice=UNTILT)
    whole = replace(segmenter.labeller.windows, patch_size=(20, 56, 64))
    labeller = replace(segmenter.labeller, network=Seeing(), windows=whole)
    array, affine = upright(scan.channels[0], scan.geometry.affine)
    replace(segmenter, labeller=labeller)(scan)
    first, seen = seen[0], []
    labeller = replace(labeller, network=Seeing())
    replace(segmenter, labeller=labeller)(scan_from_array(array, affine))
    torch.testing.assert_close(first, seen[0])


def test_without_the_wish_or_without_a_tilt_nothing_happens(segmenter, path, tmp_path):
    usual = segmenter(read_scan(path))
    assert "untilted" not in usual.record
    assert [line for line in usual.warnings if "not straightened" in line]
    nibabel.save(nibabel.Nifti1Image(blob(), np.diag([1.5, 1.5, 3.0, 1.0])), tmp_path / "straight.nii.gz")
    asked, plain = (read_scan(tmp_path / "straight.nii.gz", choice=choice) for choice in (UNTILT, Choice()))
    assert not asked.untilt
    assert asked.warnings == plain.warnings
    result = segmenter(asked)
    assert "untilted" not in result.record
    np.testing.assert_array_equal(result.labels, segmenter(plain).labels)


def test_every_form_of_a_scan_can_be_made_upright(segmenter, path, tmp_path):
    expected = segmenter(read_scan(path, choice=UNTILT))
    array = np.where(sphere(), 900, -100).astype(np.int16)
    image = nibabel.Nifti1Image(array, tilted_affine())
    forms = [path, str(path), (array, tilted_affine()), image]
    # The spacing between slices of a series is measured from their positions.
    positions = [tilted_affine() @ (0, 0, k, 1) * (-1, -1, 1, 1) for k in range(SHAPE[2])]
    axes = ((-1, 0, 0), (0, -1, 0))
    series = write_series(tmp_path / "series", array, [place[:3] for place in positions], (1.5, 1.5), axes)
    for form in (*forms, series):
        result = segmenter(form, untilt=True)
        assert result.record["untilted"] == pytest.approx(TILT, abs=0.01)
        assert (result.labels != expected.labels).mean() < 1e-3
    with pytest.raises(InputError, match="gantry tilt"):
        segmenter(series)


@pytest.mark.parametrize("where", ["array", "file"])
def test_probabilities_are_refused_in_one_sentence(segmenter, path, tmp_path, where):
    target = True if where == "array" else tmp_path / "p.npy"
    with pytest.raises(UsageError, match="probabilities cannot be mapped back to its tilted slices"):
        segmenter(read_scan(path, choice=UNTILT), probabilities=target)
    assert not list(tmp_path.glob("*.npy"))


def test_memory_is_planned_for_the_upright_grid(segmenter, path):
    scan = read_scan(path, choice=UNTILT)
    need = MemoryEstimate(segmenter.card, scan, segmenter.labeller.windows, torch.float32, torch.device("cpu"))
    plain = replace(need, scan=read_scan(path))
    assert need.geometry == upright_geometry(scan.geometry)
    assert need.grid[1:] != plain.grid[1:]
    assert need.volume_bytes > plain.volume_bytes
    with pytest.raises(InputError, match="but --max-memory"):
        replace(segmenter, max_memory=1 << 20)(scan)
