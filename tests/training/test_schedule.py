"""The learning rate and the budget at points computed by hand."""

import pytest

from volseg.training.budget import Budget
from volseg.training.optimisers import learning_rate


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.1, 1.0), (0.55, 0.5), (1.0, 0.0), (1.7, 0.0), (0.325, 0.5 * (1 + 2**-0.5))],
)
def test_half_a_cosine_after_the_warmup(progress, expected):
    assert learning_rate(progress, peak=1.0, warmup=0.1) == pytest.approx(expected, abs=1e-9)


def test_the_warmup_rises_to_the_peak():
    rates = [learning_rate(step / 100, peak=0.5, warmup=0.1) for step in range(11)]
    assert rates == sorted(rates)
    assert 0 < rates[0] < 0.01
    assert rates[-1] == pytest.approx(0.5)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(0.0, peak=0.2, warmup=0.0) == pytest.approx(0.2)


def test_budget_counts_steps_or_seconds():
    assert Budget(steps=200).progress(50, seconds=1e9) == 0.25
    assert Budget(seconds=60.0).progress(10**9, seconds=45.0) == 0.75
