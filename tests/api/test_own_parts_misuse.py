"""Parts of the caller's own that do not do what they have to: one sentence, and no result."""

import shutil

import pytest
import torch
from monai.transforms import RandAffined
from torch import nn

import volseg
from tests.pipeline import TINY
from volseg.errors import UsageError
from volseg.networks import UNet

pytestmark = pytest.mark.usefixtures("one_thread")
OVERRIDES = (*TINY, "training.workers=0", "training.validations=0", "augmentation.warmup_epochs=0")
SETTINGS = {"overrides": OVERRIDES, "device": "cpu", "steps": 2, "fold": "all"}


def planned(plan):
    """The network that the plan describes."""
    return UNet(plan.network)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda sample: None, r'A transform returned NoneType, expected a dictionary with "image" and "label"'),
        (lambda sample: [sample, sample], r'A transform returned list, expected a dictionary with "image" and "label"'),
        (
            lambda sample: {"image": sample["image"]},
            'A transform returned the keys image, expected a dictionary with "',
        ),
        (
            lambda sample: sample | {"image": sample["image"][:, :4]},
            r'made "image" \(1, 4, 16, 16\), expected \(1, 16, ',
        ),
        (
            lambda sample: sample | {"label": sample["label"][0]},
            r'made "label" \(16, 16, 16\), expected \(1, 16, 16, 16',
        ),
        (
            lambda sample: sample | {"label": 0 * sample["label"] + 9},
            r'"label" values from 9 to 9, expected class indices',
        ),
        (
            lambda sample: sample | {"label": sample["label"] + 0.5},
            r"expected class indices: whole numbers from 0 to 2",
        ),
    ],
)
def test_what_a_transform_returns_is_checked(transform, message, phantoms, tmp_path):
    with pytest.raises(UsageError, match=message):
        volseg.train(phantoms, tmp_path / "run", transforms=transform, **SETTINGS)


def test_a_transform_may_return_other_number_types(phantoms, tmp_path):
    """As MONAI's spatial transforms do of the label, and NumPy of the image."""
    turn = RandAffined(("image", "label"), prob=1, rotate_range=0.1, mode=("bilinear", "nearest"))
    several = [turn, lambda sample: sample | {"image": sample["image"].double().numpy()}]
    assert volseg.train(phantoms, tmp_path / "run", transforms=several, **SETTINGS)


def test_a_loss_that_teaches_nothing_is_refused(phantoms, tmp_path):
    with pytest.raises(UsageError, match="a number that does not depend on the logits, so nothing can be learned"):
        volseg.train(phantoms, tmp_path / "run", loss=lambda logits, _: logits.mean().detach(), **SETTINGS)


def test_a_loss_that_fails_is_told_what_it_was_given(phantoms, tmp_path):
    """As with losses that take one-hot targets, such as most of MONAI."""
    loss = torch.nn.BCEWithLogitsLoss()
    said = r"raised ValueError for logits \(2, 3, .*\) and a target \(2, \d+, \d+, \d+\) of torch.int64: Target"
    with pytest.raises(UsageError, match=said):
        volseg.train(phantoms, tmp_path / "run", loss=lambda logits, target: loss(logits, target.float()), **SETTINGS)


def test_none_stands_for_no_part(phantoms, tmp_path):
    parts = {"loss": None, "network": None, "transforms": None, "optimiser": None, "callbacks": None}
    assert volseg.train(phantoms, tmp_path / "run", **parts, **SETTINGS)


@pytest.mark.parametrize(("network", "kind"), [(nn.Conv3d(1, 3, 1), "Conv3d"), ("UNet", "str")])
def test_a_model_is_loaded_with_a_function_that_makes_its_network(network, kind, phantoms, tmp_path):
    run = volseg.train(phantoms, tmp_path / "run", network=planned, **SETTINGS)
    model = run / "model.safetensors"
    other = shutil.copy(model, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=f"network is a {kind}; give a function that makes it"):
        volseg.Segmenter.load(model, network=network)
    with pytest.raises(UsageError, match=f"network is a {kind}; give a function that makes it"):
        volseg.ensemble([model, other], tmp_path / "both.safetensors", network=network)
