"""What a device has to offer, on machines that have it and on pretended ones."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

from volseg.device import batch_workers, free_gpu_memory, gpu_memory_gb, has_room, memory_errors
from volseg.errors import ResourceError

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


def test_what_torch_keeps_for_its_next_tensors_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert free_gpu_memory(GPU) == 500
    assert has_room(GPU, 124)
    assert not has_room(GPU, 125)
    assert has_room(CPU, 2**60)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_memory_that_runs_out_is_one_sentence(error):
    with pytest.raises(ResourceError, match="Out of memory while counting"), memory_errors("counting"):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="no kernel image"), memory_errors("counting"):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
