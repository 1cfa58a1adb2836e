"""Cards and configurations with a random field made absurd: each is harmless, or refused in a sentence."""

import sys
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

import volseg.api.predict  # noqa: F401 - loaded before the trials are forked
from tests.pipeline import blob
from tests.strangers.absurd import absurd, as_text
from tests.strangers.models import card_in, whole_model, with_card
from tests.strangers.trials import SLOWNESS, check_words, command, run
from volseg.config import Config, load_config
from volseg.errors import VolsegError
from volseg.planning.planner import network_of_choices

CARDS, CONFIGURATIONS, AT_ONCE = 200, 100, 25


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A folder with a scan and a model."""
    folder = tmp_path_factory.mktemp("stranger")
    nib.save(nib.Nifti1Image(blob((12, 12, 10)), np.diag([2.0, 1.5, 1.5, 1])), folder / "scan.nii")
    return folder, whole_model(folder / "model.safetensors")


@pytest.mark.parametrize("first", range(0, CARDS, AT_ONCE))
def test_cards(stranger, tmp_path, first):
    folder, model = stranger
    codes: Counter[int] = Counter()
    for seed in range(first, first + AT_ONCE):
        what, card = absurd(card_in(model), seed)
        path = with_card(model, as_text(card), tmp_path / "model.safetensors")
        output = tmp_path / f"{seed}.nii.gz"
        options = ("--model", path, "--output", output, "--precision", "fp32")
        trial = run(command("predict", folder / "scan.nii", *options), tmp_path)
        assert trial.code in (0, 1, 2), (seed, what, trial)
        # A network grid of absurd spacing does not fit into any memory.
        assert trial.code != 1 or "memory" in trial.error, (seed, what, trial.error)
        assert (trial.code == 0) == output.exists(), (seed, what)
        assert trial.seconds < 5 * SLOWNESS, (seed, what, trial)
        assert trial.grown < 500, (seed, what, trial)
        if trial.code:
            check_words(trial)
        codes[trial.code] += 1
    assert codes[2] > AT_ONCE // 4


@pytest.mark.parametrize("first", range(0, CONFIGURATIONS, AT_ONCE))
def test_configurations(tmp_path, first):
    base = Config().model_dump(mode="json")
    base["plan"] |= {"spacing_mm": [2.0, 1.0, 1.0], "patch_size": [16, 32, 32], "features": [4, 8], "block": "conv3d"}
    for seed in range(first, first + AT_ONCE):
        what, document = absurd(base, seed)
        path = tmp_path / "config.yaml"
        path.write_text(as_text(document), encoding="utf-8")

        def load(path=path):
            try:
                config = load_config(path)
                if config.plan.patch_size and config.plan.spacing_mm:
                    network_of_choices(config.plan)
            except VolsegError as error:
                sys.stderr.write(f"{error}\n")
                raise SystemExit(error.exit_code) from error

        trial = run(load, tmp_path)
        assert trial.code in (0, 2), (seed, what, trial.error[-2000:])
        assert len(trial.error) < 2500, (seed, what, trial.error)
        assert "Traceback" not in trial.error
        assert trial.seconds < 2 * SLOWNESS, (seed, what, trial)
        assert trial.grown < 200, (seed, what, trial)
