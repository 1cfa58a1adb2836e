"""A calibration in the card of a model: what it changes in results, what it does not, and how it gets there."""

import json
from itertools import permutations

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.inference.test_memory_plan import need_of
from tests.pipeline import blob, tiny_plan, write_model
from volseg import Segmenter, ensemble
from volseg.api import segmenter as segmenting
from volseg.api.training.calibrate import of_member, records_of
from volseg.confidence.estimate import estimate
from volseg.confidence.fitting import fit
from volseg.confidence.records import TEMPERATURES, LabelRecord, Records, ScanRecord
from volseg.confidence.reliability import LEAST
from volseg.confidence.sums import Sums
from volseg.config import ComponentRule, Label
from volseg.data.cases.dataset import TrainingCase
from volseg.errors import InputError
from volseg.inference.budget import ChunkSize
from volseg.modelfile import ModelCard, load_model, read_card, save_model
from volseg.modelfile.calibration import BINS, Calibration, LabelCalibration, Reliability
from volseg.networks import UNet

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])  # the spacing of the tiny plan, so that nothing is resampled
RELIABILITY = Reliability(
    voxels=tuple(range(1, BINS + 1)), probability=(0.25,) * BINS, frequency=(0.125,) * BINS, error=0.125
)
KNOWN = LabelCalibration(typical_ml=2.0, error=0.05, volume_low=-1.5, volume_high=0.5, cases=20)


def calibration_of(*names: str, temperature: float = 1.0) -> Calibration:
    labels = dict.fromkeys(names, KNOWN)
    return Calibration(temperature=temperature, labels=labels, before=RELIABILITY, after=RELIABILITY, cases=20)


def region_plan():
    """Two regions, of which the second lies in the first."""
    network = tiny_plan().network.model_copy(update={"classes": 2})
    labels = (Label(name="whole", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,)))
    return tiny_plan(regions=True, labels=labels, network=network)


def model_of(path, plan=None, calibration=None, rules=None, bias=None):
    """A model with random weights that finds every label; `bias` is added to the logits of its classes."""
    plan = plan or tiny_plan()
    torch.manual_seed(3)
    weights = UNet(plan.network).state_dict()
    for name in [name for name in weights if name.startswith("head")]:
        weights[name] = 4 * weights[name]
        if bias and name.endswith("bias"):
            weights[name] += torch.tensor(bias)
    card = ModelCard(name="tiny", plan=plan, calibration=calibration, postprocessing=rules or {})
    save_model(path, card, weights)
    return path


def loaded(path, **options) -> Segmenter:
    return Segmenter.load(path, device="cpu", precision="fp32", **options)


@pytest.mark.parametrize(
    ("affine", "regions", "tta"),
    [(AFFINE, False, "mirror"), (np.diag([1.1, 1.3, 2.7, 1.0]), False, "none"), (AFFINE, True, "none")],
)
def test_labels_and_probabilities_are_the_same_bits_with_and_without(tmp_path, affine, regions, tta):
    plan = region_plan() if regions else tiny_plan()
    rules = {} if regions else {"ball": ComponentRule(largest_only=True)}
    names = [label.name for label in plan.labels]
    calibration = calibration_of(*names, temperature=2.5)
    without = loaded(model_of(tmp_path / "a.safetensors", plan, None, rules), tta=tta)
    calibrated = loaded(model_of(tmp_path / "b.safetensors", plan, calibration, rules), tta=tta)
    scan = (blob(), affine)
    for options in ({}, {"probabilities": True}, {"uncertainty": True}):
        one, other = without(scan, **options), calibrated(scan, **options)
        assert set(np.unique(one.labels)) == {0, 1, 2}
        assert one.labels.tobytes() == other.labels.tobytes()
        assert one.volumes_ml == other.volumes_ml
        if "probabilities" in options:
            assert one.probabilities.tobytes() == other.probabilities.tobytes()
    assert all(found.expected_dice is None and not found.is_calibrated for found in one.confidence.values())
    assert all(0 < found.expected_dice < 1 for found in other.confidence.values())


def test_a_calibration_survives_the_model_file(tmp_path):
    path = model_of(tmp_path / "m.safetensors", calibration=calibration_of("ball", "rod", temperature=1.3))
    card = read_card(path)
    assert card.calibration == calibration_of("ball", "rod", temperature=1.3)
    assert card.calibration.labels["ball"] == KNOWN
    save_model(tmp_path / "again.safetensors", *load_model(path))
    assert read_card(tmp_path / "again.safetensors") == card


def test_an_old_card_has_none_and_a_new_one_without_reads_in_old_versions(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    card, weights = load_model(path)
    document = json.loads(card.model_dump_json())
    assert "calibration" not in document
    save_file(weights, path, metadata={"volseg": json.dumps(document)})
    assert read_card(path).calibration is None
    found = loaded(path)((blob(), AFFINE)).record["labels"]
    assert {row["confidence_reason"] for row in found.values()} == {
        "the model has no calibration; training makes one where at least five validation cases have a label"
    }


def test_a_calibration_of_labels_that_the_plan_lacks_is_rejected(tmp_path):
    card, weights = load_model(write_model(tmp_path / "m.safetensors"))
    save_model(tmp_path / "m.safetensors", card.model_copy(update={"calibration": calibration_of("liver")}), weights)
    with pytest.raises(InputError, match="calibration has liver, but the plan has no such label"):
        read_card(tmp_path / "m.safetensors")


# ---- ensembles


def scan_record(case, kind="", volume=1.0, labels=("ball", "rod")) -> ScanRecord:
    """A scan whose numbers follow from its volume in mL."""
    row = (1000 * volume, 1000 * volume, 900 * volume, 100 * volume)
    label = LabelRecord(dice=0.9, reference_ml=volume, volume_ml=1.1 * volume, sums=(row,) * len(TEMPERATURES))
    bins = (((10 * volume, 5 * volume, 4 * volume),) * BINS,) * len(TEMPERATURES)
    return ScanRecord(
        case=case, kind=kind, voxel_ml=0.001, labels=dict.fromkeys(labels, label), bins=() if kind else bins
    )


def folds_of(tmp_path, *records):
    """Two models of different folds, each beside the records of its run."""
    models = []
    for fold, scans in enumerate(records):
        folder = tmp_path / f"run{fold}"
        folder.mkdir()
        path = write_model(folder / "model.safetensors", seed=fold)
        card, weights = load_model(path)
        save_model(path, card.model_copy(update={"training": {"fold": fold}}), weights)
        (folder / "calibration.json").write_text(Records(scans=tuple(scans)).model_dump_json())
        models.append(path)
    return models


def test_an_ensemble_pools_the_records_of_its_members(tmp_path):
    first = [scan_record("a", volume=1.0), scan_record("a", "noise", 1.0), scan_record("b", volume=2.0)]
    second = [scan_record(name, volume=volume) for name, volume in (("c", 4.0), ("d", 6.0), ("e", 7.0))]
    second.append(scan_record("d", "blur", 6.0))
    found = read_card(ensemble(folds_of(tmp_path, first, second), tmp_path / "all.safetensors")).calibration
    assert (found.cases, found.degraded, found.out_of_fold) == (5, 2, True)
    # Ten voxels per mL of volume in each bin: of 1, 2, 4, 6 and 7 mL.
    assert found.before.voxels == (200,) * BINS
    assert found.before.error == pytest.approx(0.1)
    assert {name: one.typical_ml for name, one in found.labels.items()} == {"ball": 4.0, "rod": 4.0}
    assert {one.cases for one in found.labels.values()} == {5}
    assert found == fit([*of_member(first, 0), *of_member(second, 1)], out_of_fold=True)
    # Neither member alone has enough cases.
    assert fit(first) is None is fit(second)


def test_an_ensemble_has_no_calibration_where_a_member_has_no_records_or_other_labels(tmp_path):
    others = [scan_record(name, labels=("ball",)) for name in "ghijk"]
    models = folds_of(tmp_path, [scan_record(name) for name in "abcde"], others)
    assert read_card(ensemble(models, tmp_path / "other.safetensors")).calibration is None
    models[1].with_name("calibration.json").unlink()
    assert read_card(ensemble(models, tmp_path / "none.safetensors")).calibration is None


def test_damaged_records_of_a_member_are_named(tmp_path):
    models = folds_of(tmp_path, [scan_record("a")], [scan_record("b")])
    models[1].with_name("calibration.json").write_text('{"scans": [')
    with pytest.raises(InputError, match=r"run1/calibration\.json is not readable JSON"):
        ensemble(models, tmp_path / "all.safetensors")


# ---- memory


def test_the_memory_estimate_counts_the_map_of_uncertainty(tmp_path, monkeypatch):
    plain, mapped = (need_of(uncertainty=one).parts(ChunkSize()) for one in (False, True))
    voxels = 36 * 50 * 34
    # float16 while it is computed; a byte more while it is written.
    assert {name: mapped[name] - plain[name] for name in plain} == {
        "preprocessing": 0,
        "windows and labels": 2 * voxels,
        "measuring labels": 2 * voxels,
        "writing labels": 3 * voxels,
    }
    needs, plan_chunks = [], segmenting.plan_chunks
    monkeypatch.setattr(segmenting, "plan_chunks", lambda need, *more: needs.append(need) or plan_chunks(need, *more))
    segmenter = loaded(model_of(tmp_path / "m.safetensors"))
    for wanted in (True, False):
        segmenter((blob(), AFFINE), uncertainty=wanted)
    assert [need.uncertainty for need in needs] == [True, False]


# ---- regions


def test_a_map_of_uncertainty_lies_where_its_probabilities_do(tmp_path):
    # Whichever axis is the longest: planes come along it, the two others in the order of the network's axes.
    segmenter = loaded(model_of(tmp_path / "m.safetensors"))
    for shape in permutations((14, 15, 17)):
        result = segmenter((blob(shape), AFFINE), probabilities=True, uncertainty=True)
        p = np.clip(result.probabilities.astype(np.float64), 1e-9, 1)
        assert result.uncertainty.shape == shape
        np.testing.assert_allclose(result.uncertainty, -(p * np.log(p)).sum(0) / np.log(3), atol=5e-3)


def test_estimates_of_regions_are_those_of_their_probabilities(tmp_path):
    calibration = calibration_of("whole", "core")
    segmenter = loaded(model_of(tmp_path / "m.safetensors", region_plan(), calibration))
    result = segmenter((blob(), AFFINE), probabilities=True, uncertainty=True)
    p = result.probabilities.astype(np.float64)
    p = np.where(p.max(0) > np.exp(-7), p, 0)
    masks = np.stack([result.labels > 0, result.labels == 2])
    sums = Sums(*(np.array(one).sum((1, 2, 3)) for one in (masks, p, masks * p, p * (1 - p))))
    expected = estimate(sums, calibration, result.volumes_ml, result.scan.geometry.voxel_ml)
    for name, found in result.confidence.items():
        assert found.expected_dice == pytest.approx(expected[name].expected_dice, abs=2e-3)
        assert found.volume_ml_low == pytest.approx(expected[name].volume_ml_low, rel=5e-3)
        assert found.volume_ml_high == pytest.approx(expected[name].volume_ml_high, rel=5e-3)
    inside = np.clip(result.probabilities.astype(np.float64), 1e-9, 1 - 1e-9)
    entropies = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
    np.testing.assert_allclose(result.uncertainty, entropies.max(0), atol=5e-3)


def test_a_region_model_is_calibrated_on_the_union_of_its_parts(tmp_path):
    segmenter = loaded(model_of(tmp_path / "m.safetensors", region_plan()))
    result = segmenter((blob(), AFFINE), probabilities=True)
    result.save(tmp_path / "reference.nii.gz")
    nibabel.save(nibabel.Nifti1Image(blob(), AFFINE), tmp_path / "scan.nii.gz")
    case = TrainingCase("case", (tmp_path / "scan.nii.gz",), tmp_path / "reference.nii.gz")
    [record] = records_of(segmenter, case, copies=0)
    voxel_ml = result.scan.geometry.voxel_ml
    sizes = {"whole": (result.labels > 0).sum(), "core": (result.labels == 2).sum()}
    for name, size in sizes.items():
        row = record.labels[name]
        # Compared with itself, each region is perfect, and has the voxels of its parts.
        assert row.dice == 1.0
        assert row.reference_ml == pytest.approx(size * voxel_ml)
        assert {Sums(*one).mask for one in row.sums} == {size}
    (at_one,) = np.flatnonzero(np.isclose(TEMPERATURES, 1.074))
    notable = result.probabilities.astype(np.float64) >= LEAST
    masks = np.stack([result.labels > 0, result.labels == 2])
    voxels, _, inside = np.sum(record.bins, axis=1)[at_one]
    assert voxels == pytest.approx(notable.sum(), rel=0.01)
    assert inside == pytest.approx((notable & masks).sum(), rel=0.01)


# ---- labels without a voxel


@pytest.mark.parametrize("why", ["not found", "removed"])
def test_an_empty_label_has_no_expected_dice_and_the_reason(tmp_path, why):
    rules = {"rod": ComponentRule(smallest_ml=1e6)} if why == "removed" else {}
    bias = [0.0, 0.0, -1e4] if why == "not found" else None
    model = model_of(tmp_path / "m.safetensors", None, calibration_of("ball", "rod"), rules, bias)
    result = loaded(model)((blob(), AFFINE))
    assert {one.name: one.voxels > 0 for one in result.measures} == {"ball": True, "rod": False}
    assert result.confidence["rod"].document == {
        "expected_dice": None,
        "expected_dice_error": None,
        "volume_ml_low": None,
        "volume_ml_high": None,
        "confidence_reason": "no voxel was given this label",
    }
    assert result.confidence["ball"].expected_dice > 0
    result.save(tmp_path / "out.nii.gz")
    stored = json.loads((tmp_path / "out.json").read_text())["labels"]
    assert stored["rod"]["expected_dice"] is None
    assert stored["rod"]["confidence_reason"] == "no voxel was given this label"
    assert stored["ball"]["confidence_reason"] is None


# ---- intervals of volumes


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.5, 0.5, (0.97, 1.01)),
        (-100.0, 1.0, (0.0, 1.02)),  # never below 0
        (0.5, 2.0, (1.01, 1.04)),  # masks that were too small on the validation cases: the mask's own is not in it
    ],
)
def test_intervals_are_ordered_and_may_leave_out_the_volume_of_the_mask(low, high, expected):
    known = KNOWN.model_copy(update={"volume_low": low, "volume_high": high})
    calibration = Calibration(labels={"ball": known}, before=RELIABILITY, after=RELIABILITY)
    sums = Sums(*(np.array([value]) for value in (1000.0, 1000.0, 900.0, 20.0)))
    found = estimate(sums, calibration, {"ball": 1.0}, 0.001)["ball"]
    assert (found.volume_ml_low, found.volume_ml_high) == pytest.approx(expected)
    assert found.volume_ml_low <= found.volume_ml_high
