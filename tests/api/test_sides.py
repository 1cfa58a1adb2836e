"""Left and right: labels that a flip exchanges, in augmentation, in test-time augmentation, and trained end to end."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.data.small_cases import small_plan
from tests.pipeline import TINY, tiny_plan, write_model
from volseg import Segmenter, train
from volseg.config import AugmentationConfig, Label, Sides
from volseg.errors import ConfigError
from volseg.inference.stream import averaged_over_flips
from volseg.inference.windows import Windows
from volseg.modelfile import read_card
from volseg.transforms import RandAffinePatchd

pytestmark = pytest.mark.usefixtures("one_thread")
# A_xes of tiny plans are S, R, A, so R is axis 1.
SIDES = Sides(axis=1, pairs=((1, 2),))
SHAPE = (32, 16, 16)


@pytest.mark.parametrize("rotation", [0, 1])
@pytest.mark.parametrize(("axes", "exchanged"), [((1,), True), ((0, 2), False), ((), False)])
def test_a_flip_from_left_to_right_exchanges_the_labels_of_a_patch(axes, exchanged, rotation):
    sides = Sides(axis=1, pairs=((3, 5),))
    plan = small_plan(mirror_axes=axes, sides=sides, patch_size=(8, 8, 8), spacing_mm=(1.0, 1.0, 1.0))
    label = np.zeros((1, 8, 8, 8), np.uint8)
    label[0, 2:6, 1:3, 2:6], label[0, 2:6, 5:7, 2:6] = 1, 2
    config = AugmentationConfig(rotation=rotation, rotation_degrees=1, scaling=0, mirror=1)
    crop = RandAffinePatchd(("image", "label"), plan, config, mode=("bilinear", "nearest"))
    crop.set_random_state(0)
    out = crop({"image": label.astype(np.float32), "label": label})
    # A flipped and exchanged patch has the first label at low H again; the image is flipped all the same.
    assert (out["label"][0].numpy() == label[0]).mean() > (0.97 if rotation else 0.9999)
    low, high = (float(out["image"][0, 3:5, rows, 3:5].mean()) for rows in (slice(1, 3), slice(5, 7)))
    assert (low > high) == exchanged
    plain = RandAffinePatchd(
        ("image", "label"), plan.model_copy(update={"sides": None}), config, ("bilinear", "nearest")
    )
    plain.set_random_state(0)
    flipped = plain({"image": label.astype(np.float32), "label": label})["label"]
    assert (flipped[0].numpy()[label[0] == 1] == 1).mean() == pytest.approx(0 if exchanged else 1, abs=0.05)


def by_position(batch: torch.Tensor) -> torch.Tensor:
    """Outputs that depend on the position along H alone: background, low H, high H."""
    rising = torch.linspace(-1, 1, batch.shape[3])[:, None].expand(batch.shape[0], *batch.shape[2:])
    return torch.stack([torch.zeros_like(rising), -rising, rising], dim=1)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_test_time_flips_exchange_the_outputs(batch_size):
    batch = torch.zeros(1, 1, 4, 6, 4)
    kept = averaged_over_flips(by_position, Windows((4, 6, 4), 0.5, batch_size, (0, 1, 2), (1, ((1, 2),))))(batch)
    torch.testing.assert_close(kept, by_position(batch))
    lost = averaged_over_flips(by_position, Windows((4, 6, 4), 0.5, batch_size, (0, 1, 2)))(batch)
    torch.testing.assert_close(lost, torch.zeros_like(lost))
    # No flip along the axis, no exchange.
    other = averaged_over_flips(by_position, Windows((4, 6, 4), 0.5, batch_size, (0, 2), (1, ((1, 2),))))(batch)
    torch.testing.assert_close(other, by_position(batch))


@pytest.mark.parametrize("features", [(4, 8), (2, 4)])
def test_a_model_with_sides_gives_mirrored_labels_for_a_mirrored_scan(tmp_path, features):
    """With test-time flips a mirrored scan has the mirrored result, left and right exchanged, whatever the weights.

    With fewer features than classes the last layer would run after the flips are averaged, where it is too late.
    """
    network = tiny_plan().network.model_copy(update={"features": features})
    plan = tiny_plan(mirror_axes=(1,), sides=SIDES, network=network, spacing_mm=(1.0, 1.0, 1.0))
    segmenter = Segmenter.load(write_model(tmp_path / "model.safetensors", plan), device="cpu", tta="mirror")
    scan = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    labels, mirrored = (segmenter((array, np.eye(4))).labels for array in (scan, scan[::-1].copy()))
    assert {1, 2} <= set(np.unique(labels))
    exchanged = np.array([0, 2, 1], labels.dtype)[labels[::-1]]
    assert (mirrored == exchanged).mean() > 0.995


def test_sides_that_do_not_fit_the_plan_are_rejected():
    for changes, message in (
        ({"sides": Sides(axis=1, pairs=((1, 7),))}, "expected each plain label at most once"),
        ({"sides": Sides(axis=1, pairs=((1, 1),))}, "expected each plain label at most once"),
        ({"sides": Sides(axis=0, pairs=((1, 2),))}, "expected the network axis that runs from left to right"),
        ({"sides": SIDES, "orientation": "stored"}, "expected the network axis that runs from left to right"),
        (
            {"sides": SIDES, "regions": True, "network": tiny_plan().network.model_copy(update={"classes": 2}),
             "labels": (Label(name="a", value=1, parts=(1, 2)), Label(name="b", value=2, parts=(2,)))},
            "expected each plain label at most once",
        ),
    ):  # fmt: skip
        with pytest.raises((ConfigError, ValueError), match=message):
            tiny_plan(**changes)


def write_pairs(folder: Path, count: int = 4) -> Path:
    """Equal balls on both sides of a bright wall without a label, named left and right; x grows to the left."""
    place = np.indices(SHAPE)
    for name, seed in ((f"case_{number}", number) for number in range(count)):
        rng = np.random.default_rng(seed)
        label, middle = np.zeros(SHAPE, np.uint8), rng.uniform(14, 17)
        scan = rng.normal(0, 10, SHAPE)
        scan[np.abs(place[0] - middle) < 1.5] += 100
        for value, side in ((1, 8), (2, -8)):
            centre = np.array([middle + side, *rng.uniform(6, 9, 2)]).reshape(3, 1, 1, 1)
            label[((place - centre) ** 2).sum(axis=0) <= 3.5**2] = value
        scan[label > 0] += 60
        for kind, array in (("images", scan.astype(np.int16)), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.5, 1.5, 1.5, 1.0])), folder / kind / f"{name}.nii")
    (folder / "labels.json").write_text(json.dumps({"organ_left": 1, "organ_right": 2}))
    return folder


def test_a_network_trained_with_flips_never_swaps_left_and_right(tmp_path):
    data = write_pairs(tmp_path / "data")
    # Deep enough to see the wall from the outer side of a ball.
    overrides = [
        *TINY[:2],
        "plan.features=[8, 16, 32]",
        "plan.patch_size=[16, 32, 16]",
        "training.validations=0",
        "augmentation.warmup_epochs=0",
    ]
    run = train(data, tmp_path / "run", folds=4, fold=0, steps=300, overrides=overrides, device="cpu")
    plan = read_card(run / "model.safetensors").plan
    assert plan.sides is not None
    assert (plan.axes[plan.sides.axis], plan.sides.axis in plan.mirror_axes) == (0, True)
    assert "exchanges left and right labels" in (run / "plan.yaml").read_text()
    validated = json.loads((run / "validation.json").read_text())["cases"][0]["name"]
    reference = np.asarray(nibabel.load(data / "labels" / f"{validated}.nii").dataobj)
    for tta in ("none", "mirror"):
        segmenter = Segmenter.load(run / "model.safetensors", device="cpu", tta=tta)
        labels = segmenter(data / "images" / f"{validated}.nii").labels
        for value, other in ((1, 2), (2, 1)):
            inside = labels[reference == value]
            assert (inside == value).mean() > 0.8
            assert not (inside == other).any()
