"""The page "Where do I add ...?": its examples add a part of each kind through the public seams; its table is true."""

import json
import re

import pytest

import volseg.api.outputs
from tests.docs.pages import EXTEND, ROOT
from tests.docs.running import run_page
from volseg.losses import LOSSES
from volseg.modelfile import read_card
from volseg.networks import NETWORKS

KINDS = ["loss", "network", "transform", "optimiser", "callback", "output format", "format to read", "metric"]


@pytest.fixture
def registries():
    """Takes away what a page adds to this process."""
    every = (LOSSES, NETWORKS, volseg.api.outputs._added)
    before = [dict(one) for one in every]
    yield
    for one, old in zip(every, before, strict=True):
        one.clear()
        one.update(old)


def losses_of(run):
    """The loss of each step of a run."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_examples_of_the_page_add_what_they_say(workplace, small_budgets, registries):
    names = run_page(EXTEND)
    runs = workplace / "runs"

    card = read_card(runs / "mostly_dice" / "model.safetensors")
    assert card.training["custom_loss"].endswith("mostly_dice")
    assert "training.loss=squared_dice" in read_card(runs / "squared_dice" / "model.safetensors").training["command"]
    # A random network has a cross-entropy of about log(3), so that dice_ce would begin above 1.
    assert all(0 < loss < 1 for name in ("mostly_dice", "squared_dice") for loss in losses_of(runs / name))

    segmenter = names["segmenter"]
    assert segmenter.card.plan.network.architecture == "custom"
    assert segmenter.card.training["custom_network"].endswith("Shallow")
    assert isinstance(segmenter.labeller.network, names["Shallow"])

    assert read_card(runs / "adamw" / "model.safetensors").training["custom_optimiser"].endswith("adamw")
    assert (runs / "early" / "model.safetensors").exists()

    assert read_card(runs / "shifted" / "model.safetensors").training["custom_transforms"].endswith("RandShift")

    for scan in sorted((workplace / "scans").iterdir()):
        stem = workplace / "results" / scan.name.removesuffix(".nii.gz")
        record = json.loads(stem.with_suffix(".json").read_text())
        lines = [f"{name},{label['volume_ml']}" for name, label in record["labels"].items()]
        assert stem.with_suffix(".csv").read_text().splitlines() == lines
    assert (workplace / "scan_volumes.csv").read_text().startswith("Anterior,")

    ratios = [case["labels"]["Anterior"]["volume_ratio"] for case in names["report"]["cases"]]
    volumes = [case["labels"]["Anterior"] for case in names["report"]["cases"]]
    expected = [volume["prediction_ml"] / volume["reference_ml"] for volume in volumes]
    assert ratios == pytest.approx(expected)
    assert names["report"]["mean"]["labels"]["Anterior"]["volume_ratio"] == pytest.approx(sum(expected) / len(expected))


def test_the_table_names_at_most_three_files_for_each_kind():
    row = re.compile(r"^\| ([a-z ]+) \| (`volseg/[^|]*) \| ([^|]+) \|$", re.MULTILINE)
    rows = row.findall(EXTEND.read_text(encoding="utf-8"))
    assert [kind for kind, _, _ in rows] == KINDS
    for kind, inside, outside in rows:
        files = re.findall(r"`(volseg/[^`]+)`", inside)
        assert 1 <= len(files) <= 3, kind
        for file in files:
            path = ROOT / file
            # A new module goes into a folder that exists.
            assert (path.parent if "<name>" in file else path).exists(), file
        assert "volseg." in outside
