"""Options with absurd texts: the sentence that refuses them is short."""

import numpy as np
import pytest

from tests.data.images import write_series
from volseg.data.io.choice import chosen
from volseg.data.io.reading import read_scan
from volseg.device import choose_device
from volseg.errors import VolsegError
from volseg.inference.budget import parse_size

DIGITS = "9" * 50_000


@pytest.mark.parametrize(
    "ask",
    [
        lambda _: parse_size(DIGITS),
        lambda _: choose_device(f"cuda:{DIGITS}"),
        lambda _: choose_device("x" * 50_000),
        lambda path: read_scan(path, choice=chosen(DIGITS, None, False)),
        lambda _: chosen(None, DIGITS, False),
    ],
    ids=["memory", "device number", "device", "series", "volume"],
)
def test_a_long_text_makes_no_long_sentence(tmp_path, ask):
    voxels = np.arange(210, dtype=np.int16).reshape(7, 6, 5)
    path = write_series(tmp_path / "series", voxels, [(0, 0, k) for k in range(5)])
    with pytest.raises(VolsegError) as refused:
        ask(path)
    assert 20 < len(str(refused.value)) < 1000
