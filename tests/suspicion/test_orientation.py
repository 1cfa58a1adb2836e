"""The search for the orientation that a scan with a poor result may have."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.pipeline import tiny_plan
from tests.suspicion.calibrations import calibration_of
from volseg.config import Label, NetworkConfig
from volseg.data.grid.geometry import Geometry
from volseg.data.io.any_scan import as_scan
from volseg.inference.budget import ChunkSize, MemoryEstimate
from volseg.inference.labelling import Labeller
from volseg.inference.windows import Windows
from volseg.modelfile import ModelCard
from volseg.suspicion import orientation
from volseg.suspicion.orientation import Search, expected_dice, middle, question_orientation
from volseg.suspicion.turns import MIRRORED, SAME, turned, turns

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
SURE = calibration_of(ball=0.9, rod=0.9)


class Upright(torch.nn.Module):
    """Sure of what is bright where the three axes get brighter as they did in training, and unsure elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        first = image[:, :1]
        halves = [first.tensor_split(2, axis) for axis in (2, 3, 4)]
        # Of D, H and W, which run to the head, to the right and to the front.
        head, right, front = (float(high.mean() - low.mean()) for low, high in halves)
        sure = 6.0 if 0 < right < head < front else 0.7
        inside = torch.where(first > 1.5, sure, -9.0)
        return torch.cat([-inside, inside, torch.full_like(inside, -99.0)], 1)


def scan_of(shape=(32, 32, 24), affine=AFFINE) -> np.ndarray:
    """A bright block on a ground that gets brighter to the right, more to the head, and most to the front."""
    right, front, head = (np.linspace(0, 1, size) for size in shape)
    ground = 0.1 * right[:, None, None] + 0.6 * front[None, :, None] + 0.3 * head
    ground[12:20, 12:20, 8:16] += 4
    return ground.astype(np.float32)


def search_of(affine=AFFINE, array=None, labels=None, calibration=SURE, patch=(24, 24, 24), **changes) -> Search:
    """A search for a scan whose header states `affine`."""
    array = scan_of() if array is None else array
    labels = labels or tiny_plan().labels
    calibrated = calibration and calibration.model_copy(
        update={"labels": dict(zip((one.name for one in labels), calibration.labels.values(), strict=True))}
    )
    # Voxels of one size, so that a turn changes nothing but the axes.
    plan = tiny_plan(labels=labels, spacing_mm=(2.0, 2.0, 2.0), patch_size=patch, **changes)
    card = ModelCard(name="tiny", plan=plan, calibration=calibrated)
    windows = Windows(plan.patch_size, 0.5, 1)
    labeller = Labeller(Upright().eval(), plan, windows, torch.float32)
    scan = as_scan((array, affine), 1)
    need = MemoryEstimate(card, scan, windows, torch.float32, torch.device("cpu"))
    return Search(labeller, need, ChunkSize())


def header(turn, array=None) -> np.ndarray:
    """The header after which `turn` is right."""
    array = scan_of() if array is None else array
    return turned(Geometry(array.shape, AFFINE), tuple(map(tuple, np.array(turn).T))).affine


def test_a_scan_whose_header_is_right_is_not_suspect():
    search = search_of()
    dice, limit = expected_dice(search, search.need.scan, SAME)
    assert (dice > 0.99, limit) == (True, pytest.approx(0.9))
    assert question_orientation(search) == []


@pytest.mark.parametrize("turn", [one for one in turns() if one != SAME][::9])
def test_a_rotated_header_is_named_and_the_better_orientation_with_it(turn):
    search = search_of(header(turn))
    (found,) = question_orientation(search)
    assert found.flag == "orientation_suspect"
    assert (
        f"The scan looks {orientation.in_words(turn)}: its expected Dice is then 1.00 instead of 0." in found.sentence
    )


def test_a_mirrored_header_is_named_only_for_models_with_sides():
    affine = header(MIRRORED)
    sides = (Label(name="lung_left", value=1), Label(name="lung_right", value=2))
    (found,) = question_orientation(search_of(affine, labels=sides))
    assert "looks mirrored left-right: " in found.sentence
    assert question_orientation(search_of(affine)) == []


def test_a_better_orientation_that_is_poor_itself_is_not_named():
    strict = calibration_of(ball=1.0, rod=1.0)
    affine = header(next(turn for turn in turns() if turn != SAME))
    assert question_orientation(search_of(affine)) != []
    assert question_orientation(search_of(affine, calibration=strict)) == []


def test_orientations_that_are_about_as_good_are_not_named(monkeypatch):
    monkeypatch.setattr(orientation, "expected_dice", lambda *given: (0.95 if given[2] == SAME else 0.99, 0.9))
    assert question_orientation(search_of()) == []
    monkeypatch.setattr(orientation, "expected_dice", lambda *given: (0.93 if given[2] == SAME else 0.99, 0.9))
    assert len(question_orientation(search_of())) == 1


def test_a_scan_without_labels_has_an_expected_dice_of_0():
    array = scan_of() / 10
    array[0, 0, 0] = 5
    search = search_of(array=array)
    search = replace(search, labeller=replace(search.labeller, network=Nothing().eval()))
    assert expected_dice(search, search.need.scan, SAME) == (0.0, 1.0)


class Nothing(Upright):
    """Finds nothing."""

    def forward(self, image):
        empty = torch.zeros_like(image[:, :1])
        return torch.cat([empty + 9, empty - 9, empty - 9], 1)


def test_labels_count_by_their_size_and_those_without_a_threshold_not_at_all():
    search = search_of(calibration=calibration_of(ball=0.8, rod=None))
    dice, limit = expected_dice(search, search.need.scan, SAME)
    assert limit == pytest.approx(0.8)
    assert dice > 0.99


def test_no_more_windows_are_computed_than_for_the_first_result():
    shape = (90, 100, 80)
    search = search_of(array=scan_of(shape), patch=(16, 16, 16))
    first = search.need.window_count
    part = middle(search)
    coarse = replace(search.labeller.windows, overlap=0.0)
    counts = [
        replace(search.need, scan=replace(part, geometry=turned(part.geometry, turn)), windows=coarse).window_count
        for turn in turns()
    ]
    assert 0.2 * first < sum(counts) <= first
    # The middle: as far from each end.
    inside = np.linalg.solve(AFFINE, part.geometry.affine[:, 3])[:3].round().astype(int)
    left = np.array(shape) - inside - part.geometry.shape
    assert np.abs(left - inside).max() <= 1
    assert np.array_equal(
        part.channels[0],
        scan_of(shape)[tuple(slice(one, one + size) for one, size in zip(inside, part.geometry.shape, strict=True))],
    )


def test_a_small_scan_is_tried_as_a_whole_and_once_per_orientation(monkeypatch):
    search = search_of()
    assert search.need.window_count == 1 or math.prod(middle(search).geometry.shape) > 0
    asked = []
    monkeypatch.setattr(orientation, "expected_dice", lambda *given: asked.append(given[2]) or (0.5, 0.9))
    question_orientation(search)
    assert sorted(asked) == sorted(turns())


@pytest.mark.parametrize("sided", [False, True])
def test_the_progress_of_the_search_is_reported_after_each_window(sided):
    seen = []
    labels = (Label(name="lung_left", value=1), Label(name="lung_right", value=2)) if sided else None
    search = replace(search_of(labels=labels), progress=lambda *given: seen.append(given))
    question_orientation(search)
    every = [f"orientation {number} of 24" for number in range(1, 25)]
    every += [f"mirrored {text}" for text in every] if sided else []
    assert list(dict.fromkeys(text for _, _, text in seen)) == every
    # All windows of the result itself are done.
    assert {(stage, fraction) for stage, fraction, _ in seen} == {("segment", 1.0)}


def test_the_search_ends_where_its_progress_says_so():
    """So that Ctrl-C does not wait for it; see `volseg.inference.flight`."""
    seen = []

    def stop(*given):
        seen.append(given)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        question_orientation(replace(search_of(), progress=stop))
    assert len(seen) == 1


def test_no_more_memory_is_taken_than_for_the_first_result():
    # Slices far apart: turned, the scan has five times as many voxels along the fine axes.
    array = scan_of((60, 60, 60))
    search = search_of(np.diag([1.0, 1.0, 5.0, 1.0]), array)
    search = replace(search, need=replace(search.need, card=search.need.card.model_copy(update={
        "plan": search.plan.model_copy(update={"spacing_mm": (5.0, 1.0, 1.0)})})))  # fmt: skip
    most = max(search.need.parts(search.chunk).values())
    part = middle(search)
    more = math.prod(array.shape) - math.prod(part.geometry.shape)
    coarse = replace(search.need.windows, overlap=0.0)
    for turn in turns():
        tried = replace(search.need, scan=replace(part, geometry=turned(part.geometry, turn)), windows=coarse)
        assert max(tried.parts(search.chunk).values()) + more <= most


@pytest.mark.parametrize(
    ("change", "possible"),
    [({}, True), ({"calibration": None}, False), ({"orientation": "stored"}, False)],
    ids=["as planned", "without calibration", "as stored"],
)
def test_models_that_cannot_tell_are_not_asked(change, possible):
    assert search_of(**change).is_possible == possible


def test_scans_that_are_made_upright_are_not_tried():
    search = search_of()
    need = replace(search.need, scan=replace(search.need.scan, untilt=True))
    assert not replace(search, need=need).is_possible


def test_slice_by_slice_models_are_tried_too():
    network = tiny_plan().network
    flat = NetworkConfig(**{**network.model_dump(), "kernels": ((1, 3, 3),) * 2, "strides": ((1, 1, 1), (1, 2, 2))})
    search = search_of(patch=(1, 24, 24), dimensions=2, network=flat)
    assert expected_dice(search, search.need.scan, SAME)[0] > 0
    assert question_orientation(search) == []
