"""The memory that a training plan is made for is that of the device."""

import pytest
import torch

from volseg.api.training import prepare
from volseg.config import PlanChoices


@pytest.mark.parametrize(
    ("device", "gpu", "machine", "expected"),
    [("cuda", 4.0, 64.0, 4.0), ("cuda", 80.0, 64.0, 8.0), ("cpu", None, 64.0, 8.0), ("cpu", None, 1.0, 0.25)],
)
def test_plans_fit_smaller_devices(monkeypatch, device, gpu, machine, expected):
    arrived = {}
    monkeypatch.setattr(prepare, "gpu_memory_gb", lambda _: gpu)
    monkeypatch.setattr(prepare, "machine_memory_gb", lambda: machine)
    monkeypatch.setattr(prepare, "make_plan", lambda *_, **options: arrived.update(options))
    prepare.plan_for(None, None, PlanChoices(), torch.device(device))
    assert arrived == {"accelerated": device == "cuda", "memory_gb": expected}
