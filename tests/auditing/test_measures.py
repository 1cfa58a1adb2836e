"""How confidently logits contradict a reference, and what is counted where they do, against values by hand."""

import numpy as np
import pytest
import torch

from tests.pipeline import tiny_plan
from volseg.auditing.confidence import FULL, Contradiction, confidence_of
from volseg.auditing.measures import is_in, measure_case
from volseg.auditing.question import Question
from volseg.auditing.ranking import Audited, score_cases
from volseg.config import Label
from volseg.data.grid.geometry import GridMap

SHAPE = (10, 12, 14)


def logits_of(*probabilities: float) -> torch.Tensor:
    """(K, 1, 1) logits of these probabilities."""
    return torch.tensor(probabilities).log().reshape(-1, 1, 1)


def doubt(question: Question, logits: torch.Tensor, value: int) -> float:
    code = int(question.codes(np.array([[[value]]]))[0, 0, 0])
    return float(question.doubts(logits, torch.tensor([[code]]))[0, 0])


def contradiction(reference: np.ndarray, found: np.ndarray, confidence: float = 1.0, **changes) -> Contradiction:
    """A model that is equally confident everywhere."""
    bytes_ = np.full(reference.shape, round(FULL * confidence), np.uint8)
    return Contradiction.between(Question.of(tiny_plan(**changes)), reference, found, found, bytes_)


def boxes() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:8, 3:9, 2:8] = 1
    labels[2:8, 3:9, 8:12] = 2
    return labels


def test_doubt_is_the_lead_of_the_most_probable_class():
    question = Question.of(tiny_plan())
    logits = logits_of(0.1, 0.7, 0.2)
    assert doubt(question, logits, 0) == pytest.approx(0.6)
    assert doubt(question, logits, 1) == pytest.approx(0.0)
    assert doubt(question, logits, 2) == pytest.approx(0.5)


def test_what_nobody_looked_for_counts_as_background():
    question = Question.of(tiny_plan(), ["rod"])
    assert doubt(question, logits_of(0.1, 0.2, 0.7), 0) == pytest.approx(0.0)
    assert doubt(question, logits_of(0.1, 0.2, 0.7), 1) == pytest.approx(0.6)
    assert question.name(1) == "ball"


def test_regions_are_doubted_one_by_one():
    labels = (Label(name="whole", value=1, parts=(1, 2)), Label(name="core", value=2, parts=(2,)))
    network = tiny_plan().network.model_copy(update={"classes": 2})
    plan = tiny_plan(labels=labels, regions=True, network=network)
    logits = torch.logit(torch.tensor([0.95, 0.2])).reshape(2, 1, 1)
    assert doubt(Question.of(plan), logits, 0) == pytest.approx(0.9)
    assert doubt(Question.of(plan), logits, 1) == pytest.approx(0.0)
    assert doubt(Question.of(plan), logits, 2) == pytest.approx(0.6)
    assert doubt(Question.of(plan, ["core"]), logits, 2) == pytest.approx(0.0)
    assert doubt(Question.of(plan, ["whole"]), logits, 0) == pytest.approx(0.0)


def test_confidence_lies_on_the_scan_and_outside_the_crop_labels_are_contradicted():
    question = Question.of(tiny_plan())
    stated = question.codes(boxes())
    box = ((1, 14), (2, 12), (0, 6))
    grid = GridMap(SHAPE, (2, 1, 0), (False, True, False), box, (13, 10, 6), (1.0, 1.0, 1.0))
    order = (0, 1, 2)
    confidence, take = confidence_of(question, stated, grid, order)
    ones = torch.full((3, 10, 6), -20.0)
    ones[1] = 20.0
    for plane in range(13):
        take(plane, slice(0, 10), ones)
    # The crop is I 0 to 5, J 0 to 9 (flipped), K 1 to 13: there, whatever is not 1 is doubted.
    expected = np.where(stated > 0, FULL, 0)
    expected[:6, :10, 1:] = np.where(stated[:6, :10, 1:] == 1, 0, FULL)
    assert np.array_equal(confidence, expected)


def test_equal_images_have_no_finding():
    measures = measure_case(contradiction(boxes(), boxes()))
    assert measures.findings == ()
    assert measures.offset == (0, 0, 0)
    assert {one.disagreement for one in measures.labels.values()} == {0}
    assert measures.labels["ball"].reference == 216


def test_doubts_without_confidence_do_not_count():
    assert measure_case(contradiction(boxes(), np.zeros_like(boxes()), 0.4)).findings == ()
    half = measure_case(contradiction(boxes(), np.zeros_like(boxes()), 0.6))
    assert half.labels["rod"].disagreement == pytest.approx(0.6 * 144, rel=0.01)
    assert half.offset is None


def test_what_postprocessing_removes_is_no_contradiction():
    raw = boxes()
    raw[0, 0, 0] = 1
    full = np.full(SHAPE, FULL, np.uint8)
    found = Contradiction.between(Question.of(tiny_plan()), boxes(), boxes(), raw, full)
    assert measure_case(found).findings == ()
    # A reference with it is not contradicted either: the model agrees, its postprocessing does not.
    found = Contradiction.between(Question.of(tiny_plan()), raw, boxes(), raw, np.full(SHAPE, FULL, np.uint8))
    assert measure_case(found).findings == ()


def test_findings_are_connected_voxels_of_one_pair_the_largest_first():
    reference = boxes()
    reference[0:2, 0, 0] = 2
    reference[3:5, 4:6, 3:5] = 2
    measures = measure_case(contradiction(reference, boxes()))
    assert [(one.stated, one.found, one.voxels) for one in measures.findings] == [(2, 1, 8), (2, 0, 2)]
    assert measures.findings[0].box == ((3, 5), (4, 6), (3, 5))
    assert measures.findings[1].place in {(0, 0, 0), (1, 0, 0)}
    assert measures.labels["rod"].disagreement == 10
    assert measures.labels["rod"].largest == 8
    assert measures.labels["ball"].disagreement == 8
    assert measures.by_label["ball"] == measures.findings[0]


def test_a_gap_is_between_slices_with_the_label():
    inside, outside = boxes(), boxes()
    inside[:, :, 4:6] = 0
    outside[:, :, 10:12] = 0
    assert measure_case(contradiction(inside, boxes())).labels["ball"].gap == 72
    assert measure_case(contradiction(outside, boxes())).labels["rod"].gap == 0
    assert measure_case(contradiction(outside, boxes())).labels["rod"].disagreement == 72


def test_the_finding_in_a_slice():
    reference = boxes()
    reference[3:5, 4:6, 3:5] = 0
    found = contradiction(reference, boxes())
    (finding,) = measure_case(found).findings
    for axis in range(3):
        mask = is_in(finding, found, axis)
        assert mask.shape == tuple(size for one, size in enumerate(SHAPE) if one != axis)
        assert mask.sum() == 4


def case(reference: np.ndarray, found: np.ndarray, name: str = "") -> Audited:
    measures = measure_case(contradiction(reference, found))
    return Audited(name, measures, 0.001, measures.offset)


def usual(number: int) -> Audited:
    """A case whose reference lacks a few voxels at the border, as many do."""
    reference = boxes()
    reference[2, 3 : 4 + number % 5, 2] = 0
    reference[7, 3, 11 - number % 3 :] = 0
    return case(reference, boxes())


def test_a_label_is_compared_with_what_is_usual_for_it():
    wrong = boxes()
    wrong[wrong == 2] = 0
    scores = score_cases([*(usual(number) for number in range(20)), case(wrong, boxes())])
    assert np.argmax([one.value for one in scores]) == 20
    assert scores[20].value > 10
    assert (scores[20].label, scores[20].measure) == ("rod", "disagreement")
    assert scores[20].by_label["ball"] < 2
    assert max(one.value for one in scores[:20]) < 3


def test_a_shift_of_all_labels_is_unusual():
    scores = score_cases([*(usual(number) for number in range(20)), case(np.roll(boxes(), 1, 1), boxes())])
    assert np.argmax([one.value for one in scores]) == 20


def test_cases_that_are_all_alike_have_no_score():
    assert [one.value for one in score_cases([case(boxes(), boxes())] * 3)] == [0, 0, 0]
    assert score_cases([]) == []


def test_a_few_voxels_of_an_absent_label_are_no_large_fraction():
    present, absent = boxes(), boxes()
    absent[absent == 2] = 0
    found = absent.copy()
    found[0, 0, :3] = 2
    scores = score_cases([*(case(present, present) for _ in range(9)), case(absent, found)])
    assert scores[9].by_label["rod"] == pytest.approx(np.log((3 / 144 + 0.02) / 0.02) / 0.1, rel=1e-6)
