"""What a device has to offer, on machines that have it and on pretended ones."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

from volseg import device
from volseg.device import batch_workers, choose_precision, gpu_memory_gb

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 1), (2, 1, 1), (4, 1, 3), (16, 1, 8), (16, 2, 7), (16, 8, 1), (4, 8, 1)]
)
def test_a_gpu_gets_a_share_of_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert batch_workers(GPU, processes) == workers
    assert batch_workers(CPU, processes) == 1


def test_memory_is_that_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=6 * 2**30))
    assert gpu_memory_gb(GPU) == 6.0
    assert gpu_memory_gb(CPU) == gpu_memory_gb(torch.device("mps")) == math.inf


@pytest.mark.parametrize(("native", "chosen", "warnings"), [(True, torch.bfloat16, 0), (False, torch.float32, 1)])
def test_a_cpu_that_emulates_bfloat16_says_so_once(monkeypatch, caplog, native, chosen, warnings):
    monkeypatch.setattr(device, "_cpu_computes_bf16", lambda: native)
    device._warn_of_emulation.cache_clear()
    assert choose_precision("auto", CPU) == chosen
    assert choose_precision("bf16", CPU) == choose_precision("bf16", CPU) == torch.bfloat16
    assert sum("no bfloat16" in message for message in caplog.messages) == warnings
