"""Who calls `predict` and ends at the first error has let it come to its end, which releases the folder."""

from types import SimpleNamespace

import pytest

from volseg.api import demo
from volseg.errors import ResourceError
from volseg.node import worker


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (demo, lambda folder: demo.run_demo(folder, samples=folder)),
        (worker, lambda folder: worker.write_results(None, folder, folder / "results", [])),
    ],
)
def test_a_case_that_fails_leaves_no_folder_claimed(monkeypatch, tmp_path, module, call):
    ended = []

    def outcomes(*_, **__):
        yield SimpleNamespace(error=ResourceError("no space"))
        ended.append(True)

    monkeypatch.setattr(demo, "train", lambda *_, **__: None)
    monkeypatch.setattr(module, "predict", outcomes)
    with pytest.raises(ResourceError, match="no space"):
        call(tmp_path)
    assert ended == [True]
