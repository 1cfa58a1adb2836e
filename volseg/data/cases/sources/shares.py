"""The shares in which cases of several datasets are sampled: a function of the run's seed and the sample's number."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from volseg.data.cases.dataset import TrainingCase
from volseg.data.cases.patch_sampling import ORDER, SHARE, PatchSampler
from volseg.errors import ConfigError
from volseg.text import first_few

# Samples after which every dataset has had its share, to one of them.
PERIOD = 100


def shares_of(
    stated: Literal["cases", "equal"] | Mapping[str, float], datasets: Sequence[str], training: Sequence[TrainingCase]
) -> dict[str, float] | None:
    """The share of each dataset in the samples, together 1; None for as many as its cases.

    Args:
        stated: `training.dataset_shares`.
        datasets: the names of the datasets that are joined; none for a single one.
        training: the cases to train on.

    Raises:
        ConfigError: shares of other datasets than these, or of one without a case to train on.
    """
    if stated == "cases" or (stated == "equal" and not datasets):
        return None
    given = dict.fromkeys(datasets, 1.0) if stated == "equal" else dict(stated) if isinstance(stated, Mapping) else {}
    if set(given) != set(datasets):
        expected = first_few(list(datasets)) if datasets else "none, because there is one dataset"
        raise ConfigError(
            f"training.dataset_shares has {first_few(sorted(given))}, expected a share for each of the datasets that "
            f"are joined: {expected}."
        )
    sources = {case.source for case in training}
    if empty := [name for name in datasets if name not in sources]:
        raise ConfigError(
            f"training.dataset_shares has a share for {first_few(empty)}, of which this fold trains on no case. Leave "
            "the dataset out, or choose another fold."
        )
    total = sum(given.values())
    return {name: given[name] / total for name in datasets}


@dataclass(frozen=True)
class DatasetTurns:
    """Whose turn it is: which case of which dataset is sample 0, 1, 2, ... of a run.

    In each `PERIOD` of samples every dataset has its share of them, at least one, in an order that differs between
    periods. Each dataset's cases take turns as those of a single one do: every case once, then again in another order.

    Args:
        shares: by dataset.
        counts: the number of cases of each.
        sampler: for the random streams of the run.
    """

    shares: Mapping[str, float]
    counts: Mapping[str, int]
    sampler: PatchSampler

    def turn(self, number: int) -> tuple[str, int]:
        """The dataset of a sample, and the number of the case among the cases of that dataset."""
        period, place = divmod(number, PERIOD)
        slots = [self._slots[slot] for slot in self.sampler.rng(SHARE, period).permutation(PERIOD)]
        name = slots[place]
        turn = period * self._slots.count(name) + slots[:place].count(name)
        epoch, position = divmod(turn, self.counts[name])
        order = self.sampler.rng(ORDER, list(self.shares).index(name), epoch).permutation(self.counts[name])
        return name, int(order[position])

    @cached_property
    def _slots(self) -> list[str]:
        """The dataset of each sample of a period, before they are shuffled: by largest remainder."""
        exact = {name: PERIOD * share for name, share in self.shares.items()}
        slots = Counter({name: max(1, int(one)) for name, one in exact.items()})
        for name in sorted(exact, key=lambda one: int(exact[one]) - exact[one]):
            slots[name] += slots.total() < PERIOD
        # Datasets that have one sample more than their share would give the others fewer.
        while slots.total() > PERIOD:
            slots[max(slots, key=lambda one: slots[one])] -= 1
        return list(slots.elements())
