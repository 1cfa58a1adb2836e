"""Rules for regions: a whole tumour is one object, and where it is removed, all its parts are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline import tiny_plan
from volseg import Segmenter
from volseg.config import ComponentRule, Label, Plan, may_have_rules
from volseg.errors import InputError
from volseg.evaluation.overlap import label_overlaps
from volseg.modelfile import ModelCard, save_model
from volseg.networks import UNet
from volseg.postprocessing.applying import postprocess
from volseg.postprocessing.tally import CANDIDATES, tally

WHOLE = Label(name="whole", value=2, parts=(1, 2, 3))
CORE = Label(name="core", value=1, parts=(1, 3))
ENHANCING = Label(name="enhancing", value=3, parts=(3,))
CYST = Label(name="cyst", value=5, parts=(5,))
TUMOUR = (WHOLE, CORE, ENHANCING)


def region_plan(labels=TUMOUR, **changes) -> Plan:
    network = tiny_plan().network.model_copy(update={"classes": len(labels)})
    return tiny_plan(labels=labels, regions=True, network=network, **changes)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (TUMOUR, ["whole"]),
        ((CORE, ENHANCING, WHOLE), ["whole"]),
        ((*TUMOUR, CYST), ["whole", "cyst"]),
        ((Label(name="a", value=1, parts=(1, 2)), Label(name="b", value=3, parts=(2, 3))), []),
        ((Label(name="a", value=1, parts=(1, 2)), Label(name="same", value=2, parts=(2, 1))), ["a"]),
        (tiny_plan().labels, ["ball", "rod"]),
    ],
)
def test_labels_that_may_have_rules_are_those_that_no_other_reaches_beyond(labels, expected):
    assert [label.name for label in may_have_rules(labels)] == expected


def image_of(*blocks: tuple[slice, int]) -> np.ndarray:
    image = np.zeros((24, 6, 6), np.uint8)
    for planes, value in blocks:
        image[planes, 2:4, 2:4] = value
    return image


def test_a_region_is_removed_with_all_its_parts_and_touching_parts_are_one_component():
    # 6 planes of three parts that touch, and 3 planes of two parts far away.
    labels = image_of((slice(0, 3), 2), (slice(3, 5), 1), (slice(5, 6), 3), (slice(15, 17), 2), (slice(17, 18), 3))
    before = labels.copy()
    done = postprocess(labels, TUMOUR, {"whole": ComponentRule(largest_only=True)}, 0.001)
    np.testing.assert_array_equal(labels[:6], before[:6])
    assert not labels[6:].any()
    assert done == {
        "whole": {"smallest_ml": 0.0, "largest_only": True, "voxels_removed": 12},
        "core": {"rule_of": "whole", "voxels_removed": 4},
        "enhancing": {"rule_of": "whole", "voxels_removed": 4},
    }


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), candidate=st.sampled_from(range(len(CANDIDATES))), planes=st.integers(1, 9))
def test_scores_of_a_region_are_those_of_the_image_after_the_rule(seed, candidate, planes):
    generator = np.random.default_rng(seed)
    labels, reference = (
        (generator.choice([1, 2, 3, 5], (7, 8, 9)) * (generator.random((7, 8, 9)) < 0.15)).astype(np.uint8)
        for _ in range(2)
    )
    plan = region_plan((*TUMOUR, CYST))
    counted = tally(labels, reference, plan, 0.002, slab_voxels=planes * 72)
    scores = counted.scores(plan.labels)
    assert scores.keys() == {"whole", "cyst"}
    for label in (WHOLE, CYST):
        cleaned = labels.copy()
        postprocess(cleaned, plan.labels, {label.name: CANDIDATES[candidate]}, 0.002, planes * 72)
        values = {label.name: label.stored_values}
        overlap = label_overlaps(cleaned, reference, values, 0.002, None)[label.name]
        assert scores[label.name][candidate] == overlap.dice
        others = ~np.isin(labels, label.stored_values)
        np.testing.assert_array_equal(cleaned[others], labels[others])


def test_a_model_file_has_no_rules_for_a_region_that_others_reach_beyond(tmp_path):
    card = ModelCard(name="tiny", plan=region_plan())
    rules = {"core": ComponentRule(largest_only=True)}
    path = tmp_path / "model.safetensors"
    save_model(path, card.model_copy(update={"postprocessing": rules}), UNet(card.plan.network).state_dict())
    with pytest.raises(InputError, match="rules for core, but other regions reach beyond"):
        Segmenter.load(path, device="cpu")
