"""Several channels, regions and ignored voxels, each trained end to end on scans of a few thousand voxels."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.pipeline import TINY
from volseg import Segmenter, evaluate, train
from volseg.api.describe import describe
from volseg.modelfile import read_card

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (24, 22, 20)
CASES = ("a", "b", "c", "d")
# Far above what random weights reach: see `test_random_weights_score_far_below`.
LEARNED = 0.75


def balls(seed: int, *radii: float) -> list[np.ndarray]:
    """Masks of balls that do not touch, at random positions in each case."""
    rng = np.random.default_rng(seed)
    corners = rng.permutation([(7, 7, 6), (16, 7, 13), (7, 15, 13), (16, 15, 6)])
    place = np.indices(SHAPE)
    centres = corners + rng.uniform(-1, 1, corners.shape)
    return [
        ((place - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) <= radius**2
        for centre, radius in zip(centres, radii, strict=False)
    ]


def noisy(seed: int, *bright: tuple[np.ndarray, float]) -> np.ndarray:
    """A noisy scan in which each mask has a brightness; where masks overlap, the last one counts."""
    scan = np.zeros(SHAPE)
    for mask, value in bright:
        scan[mask] = value
    return (scan + np.random.default_rng(1000 + seed).normal(0, 15, SHAPE)).astype(np.int16)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1.0])), path)


def load(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def write_nnunet(folder: Path, scans: list[np.ndarray], references: list[np.ndarray], **labels: object) -> Path:
    for name, scan, reference in zip(CASES, scans, references, strict=True):
        save(folder / "imagesTr" / f"{name}_0000.nii.gz", scan)
        save(folder / "labelsTr" / f"{name}.nii.gz", reference)
    document = {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz", **labels}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def trained(folder: Path, steps: int = 100) -> tuple[Path, dict]:
    """A run trained on two of the cases, and its validation scores on the other two."""
    overrides = [*TINY, "plan.blocks_per_stage=2"]
    run = train(folder, folder / f"run_{steps}", folds=2, steps=steps, overrides=overrides, device="cpu")
    return run, json.loads((run / "validation.json").read_text())


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory) -> Path:
    """Decathlon layout, 4-D scans. First and second look alike in one channel, second and a decoy in the other."""
    folder = tmp_path_factory.mktemp("two_channels")
    for seed, name in enumerate(CASES):
        first, second, decoy = balls(seed, 5, 5, 5)
        channels = [noisy(seed, (first, 100), (second, 100)), noisy(seed + 10, (second, 400), (decoy, 400))]
        save(folder / f"{name}.nii.gz", np.stack(channels, axis=-1))
        save(folder / f"{name}_label.nii.gz", (first + 2 * second).astype(np.uint8))
    document = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "first", "2": "second"},
        "training": [{"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"} for name in CASES],
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> Path:
    """A ball with a bright core; the regions are the whole ball and its core."""
    scans, references = [], []
    for seed in range(len(CASES)):
        whole, core = balls(seed, 6.5)[0], balls(seed, 4)[0]
        scans.append(noisy(seed, (whole, 100), (core, 200)))
        references.append((whole + core.astype(np.uint8)).astype(np.uint8))
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    folder = tmp_path_factory.mktemp("regions")
    return write_nnunet(folder, scans, references, labels=labels, regions_class_order=[1, 2])


@pytest.fixture(scope="module")
def ignored(tmp_path_factory) -> Path:
    """A ball, annotated in every sixth slice only; all other slices have the ignore label."""
    masks = [balls(seed, 6)[0].astype(np.uint8) for seed in range(len(CASES))]
    scans = [noisy(seed, (mask == 1, 100)) for seed, mask in enumerate(masks)]
    sparse = [np.where(np.arange(SHAPE[2]) % 6 == 1, mask, 2).astype(np.uint8) for mask in masks]
    return write_nnunet(
        tmp_path_factory.mktemp("ignored"), scans, sparse, labels={"background": 0, "ball": 1, "ignore": 2}
    )


def test_two_channels_separate_what_one_alone_cannot(two_channels):
    run, scores = trained(two_channels)
    assert all(scores["mean"]["labels"][name]["dice"] > LEARNED for name in ("first", "second"))
    # Each channel is normalised separately, so the scale of one channel does not matter.
    segmenter, scan = Segmenter.load(run / "model.safetensors", device="cpu"), load(two_channels / "a.nii.gz")
    scaled = scan * np.array([1, 3], dtype=np.int16)
    assert (segmenter((scan, np.eye(4))).labels == segmenter((scaled, np.eye(4))).labels).mean() > 0.999


def test_regions_are_learned_written_and_scored_as_unions_of_their_parts(regions):
    run, scores = trained(regions)
    card = read_card(run / "model.safetensors")
    assert card.plan.regions
    assert describe(run / "model.safetensors")["labels"] == "1 whole (of 1, 2), 2 core (of 2)"
    assert card.postprocessing == scores["postprocessing"] == {}
    for case in scores["cases"]:
        written, truth = (load(part / f"{case['name']}.nii.gz") for part in (run / "validation", regions / "labelsTr"))
        assert set(np.unique(written)) == {0, 1, 2}
        for name, dice in {"whole": dice_of(written > 0, truth > 0), "core": dice_of(written == 2, truth == 2)}.items():
            assert case["labels"][name]["dice"] == pytest.approx(dice)
            assert dice > LEARNED
    while_training = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [list(record["dice"]) for record in while_training if "dice" in record] == [["whole", "core"]]
    again = evaluate(run / "validation", regions / "labelsTr", regions / "dataset.json")
    assert again["cases"] == scores["cases"]


def test_a_label_annotated_in_some_slices_is_segmented_in_all(ignored):
    run, scores = trained(ignored)
    assert read_card(run / "model.safetensors").plan.ignore == 2
    described = describe(run / "model.safetensors")
    assert (described["labels"], described["ignored_value"]) == ("1 ball", 2)
    for case in scores["cases"]:
        written = load(run / "validation" / f"{case['name']}.nii.gz")
        truth = balls(CASES.index(case["name"]), 6)[0]
        # Scored on the annotated slices, and right in the others too.
        assert case["labels"]["ball"]["dice"] == pytest.approx(dice_of(written[..., 1::6] == 1, truth[..., 1::6]))
        assert set(np.unique(written)) == {0, 1}
        assert dice_of(written == 1, truth) > LEARNED
    again = evaluate(run / "validation", ignored / "labelsTr", ignored / "dataset.json")
    assert again["cases"] == scores["cases"]


@pytest.mark.parametrize("kind", ["two_channels", "regions", "ignored"])
def test_random_weights_score_far_below(kind, request):
    _, scores = trained(request.getfixturevalue(kind), steps=1)
    assert scores["mean"]["foreground_dice"] < 0.5
