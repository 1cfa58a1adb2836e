"""The bounding box of the body: its position, and that cropping changes the windows and few voxels of the result."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from tests.data.grid.test_preprocess import imported_plan
from tests.pipeline import tiny_plan, write_model
from volseg import Segmenter
from volseg.config import Channel, Resampling
from volseg.data.grid.body import body_box, otsu_threshold
from volseg.data.grid.geometry import Geometry
from volseg.data.grid.preprocess import image_to_network, network_grid
from volseg.errors import UsageError

SPACING = (2.0, 2.0, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
# First and last + 1 voxel of the body along I, J, K.
BODY = ((30, 62), (24, 58), (10, 36))


def ct(seed=0):
    """An ellipse of tissue with organs and bone over some slices, on air, and a table under it that does not touch."""
    rng = np.random.default_rng(seed)
    scan = rng.normal(-1000, 15, (90, 84, 48))
    place = np.indices(scan.shape[:2])
    radius = sum(((place[axis] + 0.5 - sum(BODY[axis]) / 2) / (np.ptp(BODY[axis]) / 2)) ** 2 for axis in (0, 1))
    scan[:, :, slice(*BODY[2])] += ((radius <= 1) * 1040)[..., None]
    scan[40:50, 35:45, 16:30] += 150
    scan[52:56, 38:44, 10:36] += 700
    scan[20:72, 68:71, :] = 200
    return scan.round().astype(np.int16)


class ByIntensity(torch.nn.Module):
    """Predicts ball above one normalised intensity and rod above a higher one."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.nn.Parameter(torch.tensor([2.9, 4.0]))

    def forward(self, x):
        low, high = self.steps
        return torch.cat([low - x, torch.minimum(x - low, high - x), x - high], 1)


def segment(tmp_path, scan, **options):
    """The result and the number of windows of a network that thresholds intensities."""
    loaded = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu", precision="fp32", **options)
    segmenter = replace(loaded, labeller=replace(loaded.labeller, network=ByIntensity()))
    texts = []
    result = segmenter((scan, AFFINE), progress=lambda *update: texts.append(update[-1]))
    return result, int(texts[-1].split()[-1])


def inside(grid):
    """Voxels of the scan that lie in the crop."""
    return grid.back(np.ones(grid.box_shape, bool))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_threshold_is_otsus(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(-1000, 20, 5000), rng.normal(40, 60, 3000)]).astype(np.float32)
    clipped = values.clip(*np.quantile(values, (0.005, 0.995)))
    bins = np.ptp(clipped) / 256
    assert otsu_threshold(values) == pytest.approx(threshold_otsu(clipped), abs=1.01 * bins)
    metal = np.append(values, np.full(20, 30000, np.float32))
    np.testing.assert_array_equal(metal > otsu_threshold(metal), metal > -500)


@pytest.mark.parametrize("spacing", [SPACING, (0.5, 4.0, 9.0)])
def test_the_box_holds_the_body_and_a_margin_and_neither_table_nor_air(spacing):
    scan = ct()
    steps = [max(1, round(4 / one)) for one in spacing]
    for (start, stop), (first, last), size, mm, step in zip(
        body_box(scan, spacing), BODY, scan.shape, spacing, steps, strict=True
    ):
        margin = int(np.ceil(10 / mm))
        # The ellipse is thin at its ends; the subsampled copy may miss two of its voxels there.
        assert max(0, first - margin - 2 * step) <= start <= max(0, first - margin + 2)
        assert min(size, last + margin - 2) <= stop <= min(size, last + margin + 2 * step)


def test_metal_and_loose_specks_do_not_move_the_box():
    scan = ct()
    expected = body_box(scan, SPACING)
    scan[44:46, 40:42, 20:22] = 30000
    scan[::9, ::9, 0] = scan[0, 0, ::8] = 500
    assert body_box(scan, SPACING) == expected


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_the_box_of_a_constant_volume_is_everything(dtype):
    assert body_box(np.full((9, 8, 7), 5, dtype), SPACING) == ((0, 9), (0, 8), (0, 7))


@pytest.mark.parametrize("normalisation", ["zscore", "zscore_nonzero", "rescale", "none"])
def test_intensities_are_normalised_as_without_the_crop_and_the_plans_own_crop_still_holds(normalisation):
    scan = ct()
    scan[:25] = scan[:, :, 34:] = 0
    other = scan // 2
    channels = tuple(Channel(name=name, normalisation=normalisation) for name in "ab")
    plan = imported_plan(channels, spacing_mm=SPACING[::-1], image_resampling=Resampling(order=3))
    geometry = Geometry(scan.shape, AFFINE)
    whole, outer = image_to_network([scan, other], geometry, plan)
    cut, grid = image_to_network([scan, other], geometry, plan, body=True)
    assert outer == network_grid([scan, other], geometry, plan)
    assert not (inside(grid) & ~inside(outer)).any()
    assert inside(grid).sum() < 0.8 * inside(outer).sum()
    # The spacing is the plan's, so nothing is resampled.
    d, h, w = (slice(a - c, b - c) for (a, b), (c, _) in zip(grid.box, outer.box, strict=True))
    torch.testing.assert_close(cut, whole[:, d, h, w], atol=0, rtol=0)


def test_labels_inside_stay_nearly_the_same_outside_is_background_and_the_record_says_so(tmp_path):
    scan = ct()
    plain, all_windows = segment(tmp_path, scan)
    cropped, windows = segment(tmp_path, scan, crop="body")
    assert windows < 0.6 * all_windows
    assert (plain.run["crop"], cropped.run["crop"]) == ("none", "body")
    geometry = Geometry(scan.shape, AFFINE)
    box = inside(image_to_network([scan], geometry, tiny_plan(), body=True)[1])
    assert not cropped.labels[~box].any()
    assert plain.labels[~box].any(), "the table is a label without the crop"
    assert set(np.unique(cropped.labels[box])) == {0, 1, 2}
    for value in (1, 2):
        one, other = plain.labels[box] == value, cropped.labels[box] == value
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.97
    assert (plain.labels[box] == cropped.labels[box]).mean() > 0.995


def test_a_border_of_constant_air_costs_no_windows(tmp_path):
    scan = ct()
    padded = np.pad(scan, ((40, 40), (40, 40), (0, 0)), constant_values=-1000)
    _, all_windows = segment(tmp_path, padded)
    _, windows = segment(tmp_path, padded, crop="body")
    assert windows == segment(tmp_path, scan, crop="body")[1] < 0.25 * all_windows


def test_another_crop_is_rejected(tmp_path):
    with pytest.raises(UsageError, match="Unknown crop 'head'"):
        Segmenter.load(write_model(tmp_path / "m.safetensors"), crop="head")
