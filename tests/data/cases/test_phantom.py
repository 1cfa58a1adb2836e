"""Phantoms: seeded, in the world, not solvable by thresholds; clips; and the samples that are shipped."""

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from volseg.data.cases.phantom import LABELS, make_clip, make_phantom, threshold_baseline, write_phantoms
from volseg.data.grid.geometry import Geometry

SAMPLES = Path(__file__).parents[3] / "data_samples"


@pytest.mark.parametrize("kind", ["ct", "mr"])
def test_equal_seeds_give_equal_phantoms_and_others_do_not(kind):
    first, again, other = make_phantom(3, kind), make_phantom(3, kind), make_phantom(4, kind)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("kind", ["ct", "mr"])
def test_phantom_has_the_promised_values(kind):
    image, labels, affine = make_phantom(7, kind)
    geometry = Geometry(image.shape, affine)
    assert (image.dtype, labels.dtype) == (np.int16, np.uint8)
    assert image.size <= 150_000
    assert sorted(geometry.spacing_mm) == pytest.approx([1.25, 1.5, 2.0])
    assert np.unique(labels).tolist() == [0, 1, 2]
    # A ball of 9 to 11 mm; a rod of 6 to 7 mm, 26 to 32 mm long.
    ball_ml, rod_ml = (np.count_nonzero(labels == value) * geometry.voxel_ml for value in (1, 2))
    assert 4 / 3 * np.pi * 0.9**3 * 0.95 < ball_ml < 4 / 3 * np.pi * 1.1**3 * 1.05
    assert np.pi * 0.6**2 * 2.6 * 0.9 < rod_ml < np.pi * 0.7**2 * 3.2 * 1.05


def test_ct_is_in_hounsfield_units_and_the_labels_share_an_intensity():
    image, labels, _ = make_phantom(0, "ct")
    assert np.percentile(image, 1) == pytest.approx(-1000, abs=60)
    means = [image[labels == value].mean() for value in (1, 2)]
    assert means == pytest.approx([160, 160], abs=3)


def test_mr_scale_differs_between_scans():
    means = [make_phantom(seed, "mr")[0].mean() for seed in range(6)]
    assert max(means) > 1.5 * min(means)


def test_anatomy_stays_put_in_the_world_whatever_the_storage():
    centres, codes, oblique = [], set(), 0
    for seed in range(12):
        image, labels, affine = make_phantom(seed, "mr")
        codes.add(Geometry(image.shape, affine).axis_codes)
        oblique += np.count_nonzero(np.abs(affine[:3, :3]) > 1e-6) > 3
        centres.append((affine[:3, :3] @ np.argwhere(labels == LABELS["ball"]).mean(axis=0)) + affine[:3, 3])
    assert len(codes) > 1
    assert 0 < oblique < 12
    np.testing.assert_allclose(np.array(centres), np.tile([10.0, 6.0, 0.0], (12, 1)), atol=3.0)


def test_threshold_baseline_by_hand():
    # Label 1 has intensity 5, shared with two unlabelled voxels; label 2 has intensity 9, alone.
    image = np.array([5, 5, 5, 5, 9, 9, 0, 0]).reshape(2, 2, 2)
    labels = np.array([1, 1, 0, 0, 2, 2, 0, 0]).reshape(2, 2, 2)
    assert threshold_baseline([image], [labels]) == pytest.approx((2 * 2 / (2 + 4) + 1.0) / 2)


def test_threshold_baseline_gives_each_scan_its_own_window():
    image = np.array([5, 0, 0, 9, 9, 9, 9, 9]).reshape(2, 2, 2)
    labels = (image == 5).astype(np.uint8)
    assert threshold_baseline([image, 100 * image], [labels, labels]) == 1.0


@pytest.mark.parametrize("kind", ["ct", "mr"])
def test_no_threshold_solves_the_phantoms(kind):
    phantoms = [make_phantom(seed, kind) for seed in range(4)]
    assert threshold_baseline([one[0] for one in phantoms], [one[1] for one in phantoms]) < 0.6


def disc_places(clip: np.ndarray) -> np.ndarray:
    """Where the disc of each frame is, to about a pixel: (T, 2), where a mean over 5 x 5 pixels is farthest from 0."""
    smooth = np.abs(uniform_filter(clip, size=(1, 5, 5)))
    return np.array([np.unravel_index(frame.argmax(), frame.shape) for frame in smooth])


def test_clips_of_a_seed_begin_alike_and_only_one_of_them_moves():
    for seed in range(20):
        still, moving = make_clip(seed, moving=False), make_clip(seed, moving=True)
        np.testing.assert_array_equal(still, make_clip(seed, moving=False))
        np.testing.assert_array_equal(still[0], moving[0])
        # Two frames of a disc that stands still differ by their noise.
        assert np.std(still[1:] - still[0]) == pytest.approx(0.5 * np.sqrt(2), rel=0.05)
        assert np.std(moving[1:] - moving[0]) > 1.05 * np.std(still[1:] - still[0])
        assert not np.array_equal(still, make_clip(seed + 1, moving=False))


def test_a_disc_moves_straight_on_at_one_to_two_pixels_a_frame():
    speeds = []
    for seed in range(40):
        places = disc_places(make_clip(seed, moving=True))
        speeds.append(np.linalg.norm(places[4] - places[0]) / 4)  # less if it was reflected
    assert max(speeds) < 2.5
    assert 1.0 < np.quantile(speeds, 0.75) < 2.0


def test_a_disc_that_moves_is_in_the_end_as_likely_anywhere_as_one_that_does_not():
    still, moving = (
        np.array([disc_places(make_clip(seed, kind)[-1:])[0] for seed in range(600)]) for kind in (False, True)
    )
    middle, error = (24 - 1) / 2, still.std(0) / np.sqrt(600)
    assert (np.abs(still.mean(0) - middle) < 4 * error).all()
    assert (np.abs(moving.mean(0) - middle) < 4 * error).all()
    np.testing.assert_allclose(moving.std(0), still.std(0), rtol=0.1)


def test_written_dataset(tmp_path):
    write_phantoms(tmp_path, count=2, seed=5, kind="ct", tests=1)
    document = json.loads((tmp_path / "dataset.json").read_text())
    assert document["modality"] == {"0": "CT"}
    assert document["labels"] == {"0": "background", "1": "ball", "2": "rod"}
    assert [entry["image"] for entry in document["training"]] == [
        "./imagesTr/phantom_001.nii.gz",
        "./imagesTr/phantom_002.nii.gz",
    ]
    image, labels, affine = make_phantom(7, "ct")
    scan = nibabel.load(tmp_path / document["test"][0])
    np.testing.assert_array_equal(np.asanyarray(scan.dataobj), image)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)
    assert scan.header.get_xyzt_units()[0] == "mm"
    stored = nibabel.load(tmp_path / "labelsTs" / "phantom_003.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(stored.dataobj), labels)
    assert stored.get_data_dtype() == np.uint8
    assert stored.header.get_xyzt_units()[0] == "mm"


def test_samples_have_their_checksums():
    listed = dict(reversed(line.split()) for line in (SAMPLES / "SHA256SUMS").read_text().splitlines())
    found = {
        str(path.relative_to(SAMPLES)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("phantoms", "phantoms_ct")
        for path in (SAMPLES / folder).rglob("*")
        if path.is_file()
    }
    assert len(found) == 31 + 5
    assert found == listed
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 4e6


@pytest.mark.parametrize("number", [1, 13])
def test_samples_are_made_again_from_their_seed(number):
    image, labels, _ = make_phantom(19 + number, "mr")
    part = "Tr" if number <= 12 else "Ts"
    for array, place in ((image, "images"), (labels, "labels")):
        stored = nibabel.load(SAMPLES / "phantoms" / f"{place}{part}" / f"phantom_{number:03d}.nii.gz")
        # Other processors may round the last bit of a sine differently.
        np.testing.assert_allclose(np.asanyarray(stored.dataobj).astype(int), array.astype(int), atol=1)
