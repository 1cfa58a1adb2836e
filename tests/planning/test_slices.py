"""Which datasets are planned slice by slice, and what such a plan has."""

import math

import pytest

from tests.planning.test_planner import case, planned
from volseg.config import Plan, PlanChoices
from volseg.errors import ConfigError
from volseg.planning.commented import plan_text
from volseg.planning.planner import SET, read_plan
from volseg.planning.topology import feature_map_size

SINGLE = [case((240, 256, 1), (0.8, 0.9, 5.0))] * 20
# Spinal cord, 0.84 x 0.84 x 17 mm.
DISTANT = [case((192, 192, 14), (0.84, 0.84, 17.0))] * 10
DATASETS = {
    "single": SINGLE,
    "thin": [case((240, 256, 1), (0.8, 0.9, 0.5))] * 20,
    "three": [case((240, 256, 3), (0.8, 0.9, 1.0))] * 20,
    "sagittal": [case((1, 256, 240), (3.0, 0.9, 0.8))] * 20,
    "coronal": [case((256, 1, 240), (0.8, 0.2, 0.9))] * 20,
    "distant": DISTANT,
    "distant_sagittal": [case((9, 300, 300), (10.0, 0.6, 0.6))] * 10,
}
THROUGH = {"sagittal": 0, "coronal": 1, "distant_sagittal": 0}


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("name", DATASETS)
def test_slices_are_planned_one_by_one(tmp_path, name, accelerated):
    plan, reasons = planned(*DATASETS[name], accelerated=accelerated)
    assert (plan.dimensions, plan.patch_size[0], plan.axes[0]) == (2, 1, THROUGH.get(name, 2))
    network = plan.network
    assert all(kernel == (1, 3, 3) for kernel in network.kernels)
    assert all(stride[0] == 1 for stride in network.strides)
    assert len(network.strides) > 3
    assert min(edge // divisor for edge, divisor in zip(plan.patch_size, network.divisor, strict=True)) == 1
    assert min(edge // divisor for edge, divisor in zip(plan.patch_size[1:], network.divisor[1:], strict=True)) >= 4
    assert network.block == "conv3d"
    assert 0 not in plan.mirror_axes
    # As many values as two patches of volumes may have, but no more slices than are worth it.
    values = 2 * (8 if accelerated else 0.5) * 560e6 / 8
    assert plan.batch_size * feature_map_size(network, plan.patch_size) <= 1.1 * values
    assert plan.batch_size >= (12 if accelerated else 4)
    # The scans' own distance of slices.
    scan = DATASETS[name][0]
    assert plan.spacing_mm[0] == scan.spacing_mm[plan.axes[0]]
    assert reasons["dimensions"]
    (tmp_path / "plan.yaml").write_text(plan_text(plan, reasons))
    assert read_plan(tmp_path / "plan.yaml") == plan
    lines = [line.strip() for line in plan_text(plan, reasons).splitlines()]
    for key in ("axes", "dimensions", "patch_size", "batch_size", "network.kernels", "network.strides"):
        assert lines[lines.index(f"# {reasons[key]}") + 1].startswith(key.rpartition(".")[2])


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        ((320, 320, 20), (0.6, 0.6, 3.6)),
        ((216, 256, 10), (1.5, 1.5, 10.0)),
        ((50, 50, 4), (1.0, 1.0, 1.0)),
        ((512, 512, 60), (0.98, 0.98, 3.27)),
    ],
)
def test_slices_that_are_near_each_other_are_planned_as_volumes(shape, spacing_mm):
    plan, _ = planned(*[case(shape, spacing_mm)] * 10)
    assert plan.dimensions == 3
    assert plan.patch_size[0] > 1
    assert plan.network.kernels[-1] == (3, 3, 3)
    # As before: older versions read the plan.
    assert "dimensions" not in plan.model_dump()
    assert "dimensions" not in plan.model_dump()


def test_the_reasons_state_the_numbers():
    assert planned(*SINGLE)[1]["dimensions"] == "the median scan has 1 slice, too few for kernels through the plane"
    assert planned(*DISTANT)[1]["dimensions"] == "slices are 20.2 pixels apart, so neighbouring ones share little"
    assert planned(*SINGLE)[1]["axes"] == "S has few slices: 1 in the median scan"


def test_the_user_decides():
    volume = [case((100, 100, 50), (1.0, 1.0, 2.0))] * 10
    plan, reasons = planned(*volume, choices=PlanChoices(dimensions=2))
    assert (plan.dimensions, plan.patch_size[0], reasons["dimensions"]) == (2, 1, SET)
    plan, _ = planned(*DISTANT, choices=PlanChoices(dimensions=3))
    assert (plan.dimensions, plan.network.kernels[-1]) == (3, (3, 3, 3))
    assert planned(*volume, choices=PlanChoices(patch_size=(1, 64, 64)))[0].dimensions == 2
    assert planned(*DISTANT, choices=PlanChoices(patch_size=(8, 64, 64)))[0].dimensions == 3
    # Finer than the scans: now slices are near each other.
    assert planned(*DISTANT, choices=PlanChoices(spacing_mm=(5.0, 0.84, 0.84)))[0].dimensions == 3
    # A slice has no flip through it.
    assert planned(*SINGLE, choices=PlanChoices(mirror_axes=(0, 1)))[0].mirror_axes == (1,)
    with pytest.raises(ConfigError, match=r"dimensions are 2, but patch_size \(8, 64, 64\) has more than one slice"):
        planned(*volume, choices=PlanChoices(dimensions=2, patch_size=(8, 64, 64)))


def test_slices_in_different_planes_are_refused_by_name():
    cases = [case((64, 64, 1), (1.0, 1.0, 5.0), name="axial")] * 2 + [case((1, 64, 64), (5.0, 1.0, 1.0), name="side")]
    with pytest.raises(ConfigError, match=r"1 across R \(side\); 2 across S \(axial, axial\)"):
        planned(*cases)


def test_a_patch_within_few_slices_keeps_at_least_one():
    plan, _ = planned(case((3000, 3000, 2), (0.1, 0.1, 0.1)), choices=PlanChoices(dimensions=3), memory_gb=0.5)
    assert min(plan.patch_size) >= 1
    assert math.prod(plan.patch_size) > 100**2


def test_a_plan_of_slices_has_no_depth_and_no_flip_through_it():
    plan, _ = planned(*SINGLE)
    document = plan.model_dump()
    for changes, words in (({"patch_size": (8, 64, 64)}, "patch_size"), ({"mirror_axes": (0, 1)}, "mirror_axes")):
        with pytest.raises(ValueError, match=f"dimensions are 2, but {words}"):
            Plan(**{**document, **changes})
    assert plan.spacing_of((17.0, 2.0, 3.0)) == (17.0, *plan.spacing_mm[1:])
    assert planned(case((90, 90, 90), (1.0, 1.0, 1.0)))[0].spacing_of((17.0, 2.0, 3.0)) == (1.0, 1.0, 1.0)
