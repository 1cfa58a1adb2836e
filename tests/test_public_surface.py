"""The names users import, and what loading them costs."""

import json
import subprocess
import sys
import time
from importlib import import_module

import pytest

import volseg


def modules_after(code: str) -> set[str]:
    """The modules loaded in a fresh interpreter after `code`."""
    report = "import sys, json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_all_is_sorted_and_resolves():
    assert volseg.__all__ == sorted(volseg.__all__)
    for name in volseg.__all__:
        assert getattr(volseg, name) is not None


def test_functions_are_not_overwritten_by_modules():
    for home in ("volseg.api.train", "volseg.api.evaluation", "volseg.cli"):
        import_module(home)
    assert callable(volseg.train)
    assert callable(volseg.evaluate)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Predictor'"):
        _ = volseg.Predictor


def test_networks_training_and_transforms_hold_the_promised_names():
    assert {"UNet", "Conv2Plus1d", "Classifier"} <= set(volseg.networks.__all__)
    assert {"fit", "classification_loss"} <= set(volseg.training.__all__)
    assert {"preprocessing", "augmentation"} <= set(volseg.transforms.__all__)


def test_importing_volseg_loads_neither_torch_nor_monai():
    assert not modules_after("import volseg") & {"torch", "monai", "matplotlib", "SimpleITK", "nibabel"}


@pytest.mark.parametrize("verb", ["", "predict", "train", "evaluate", "convert"])
def test_help_loads_neither_torch_nor_monai(verb):
    code = (
        f"import sys; sys.argv = ['volseg', *{verb.split()!r}, '--help']\n"
        "from volseg.cli import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass"
    )
    assert not modules_after(code) & {"torch", "monai", "numpy"}


def test_predicting_loads_no_monai_and_no_plotting():
    loaded = modules_after("import volseg; volseg.Segmenter; import volseg.api.evaluation")
    assert "torch" in loaded
    assert not loaded & {"monai", "matplotlib", "tensorboard", "blosc2", "SimpleITK", "scipy.ndimage", "scipy.sparse"}


def test_help_answers_quickly():
    # On a shared machine the best of several is what the code costs.
    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "volseg", "--help"], capture_output=True, check=True)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.5
