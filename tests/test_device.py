"""What a device has to offer, on machines that have it and on pretended ones."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

from volseg.device import batch_workers, gpu_memory_gb

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
