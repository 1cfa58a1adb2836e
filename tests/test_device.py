"""Devices, memory and workers, on the real machine and on simulated ones."""

import math
import os
import weakref
from types import SimpleNamespace

import pytest
import torch

from volseg.device import (
    batch_workers,
    choose_device,
    empty_volume,
    expandable_memory,
    free_gpu_memory,
    gpu_memory_gb,
    has_room,
    limit_threads_after_fork,
    memory_errors,
    volume_bytes,
)
from volseg.errors import ResourceError, UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda:1", 0, "No such device: 'cuda:1' requested, 0 CUDA devices found. Use --device auto."),
        ("cuda:1", 1, "No such device: 'cuda:1' requested, 1 CUDA device found. Use --device auto."),
        ("xpu", 0, "No such device: 'xpu' requested, 0 XPU devices found. Use --device auto."),
        ("gpu", 0, "Unknown device 'gpu'. Use auto, cpu, cuda, cuda:N or mps."),
    ],
)
def test_a_missing_device_is_rejected(monkeypatch, name, count, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UsageError) as caught:
        choose_device(name)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(1, 1, 1), (2, 1, 1), (4, 1, 2), (16, 1, 14), (64, 1, 62), (16, 2, 6), (16, 8, 1), (4, 8, 1)],
)
def test_a_gpu_gets_its_part_of_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("volseg.device.tightest_limit", lambda: None)
    assert batch_workers(GPU, processes) == workers
    assert batch_workers(CPU, processes) == 1


def test_memory_is_that_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=6 * 2**30))
    assert gpu_memory_gb(GPU) == 6.0
    assert gpu_memory_gb(CPU) == gpu_memory_gb(torch.device("mps")) == math.inf


def test_memory_that_torch_has_cached_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert free_gpu_memory(GPU) == 500
    assert has_room(GPU, 124)
    assert not has_room(GPU, 125)
    assert has_room(CPU, 2**60)


def test_the_volumes_of_all_scans_at_work_leave_a_gpu_to_their_windows(monkeypatch):
    """Each alone would fit, together they would fill it before a window is computed."""
    empty, there = torch.empty, []

    def taken():
        return sum(volume.nbytes for one in there if (volume := one()) is not None)

    def on_gpu(shape, device=CPU):
        volume = empty(shape)
        if device == GPU:
            there.append(weakref.ref(volume))
        return volume

    monkeypatch.setattr(torch, "empty", on_gpu)
    monkeypatch.setattr("volseg.device.free_gpu_memory", lambda _: 16000 - taken())
    volumes = [empty_volume((1, 5, 5, 10), GPU) for _ in range(9)]
    assert len(there) == 3
    assert volume_bytes(GPU) == taken() == 3000
    del volumes[:2]
    assert volume_bytes(GPU) == taken() == 1000
    volumes.append(empty_volume((1, 5, 5, 10), GPU))
    assert volume_bytes(GPU) == taken() == 2000
    assert volume_bytes(CPU) == volume_bytes(torch.device("cuda:1")) == 0
    assert empty_volume((1, 5, 5, 10), CPU).shape == (1, 5, 5, 10)
    assert len(there) == 4
    volumes.clear()
    assert volume_bytes(GPU) == 0


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
def test_out_of_memory_is_one_sentence(error):
    with pytest.raises(ResourceError, match=r"^Out of memory while counting\. Free memory,"), memory_errors("counting"):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="no kernel image"), memory_errors("counting"):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")


@pytest.mark.parametrize(("forked", "threads", "left"), [(False, 2, 2), (True, 2, 1), (True, 1, 1), (False, 1, 1)])
def test_only_a_forked_process_computes_on_one_thread(monkeypatch, caplog, forked, threads, left):
    set_to = []
    monkeypatch.setattr("volseg.device._forked", forked)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    limit_threads_after_fork()
    assert (set_to or [threads]) == [left]
    assert bool(caplog.messages) == bool(set_to) == (left < threads)


@pytest.fixture
def allocator(monkeypatch):
    """What torch's allocator is told, and an environment without its variables."""
    told = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append, raising=False)
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    return told


def test_gpu_memory_is_expandable_while_patches_grow(allocator):
    with expandable_memory(GPU, needed=True):
        assert allocator == ["expandable_segments:True"]
    assert allocator == ["expandable_segments:True", "expandable_segments:False"]


@pytest.mark.parametrize(
    ("device", "needed", "variable"),
    [(GPU, False, None), (CPU, True, None), (GPU, True, "PYTORCH_CUDA_ALLOC_CONF"), (GPU, True, "PYTORCH_ALLOC_CONF")],
)
def test_the_allocator_is_left_alone_where_it_is_not_needed_or_configured(
    allocator, monkeypatch, device, needed, variable
):
    if variable:
        monkeypatch.setenv(variable, "max_split_size_mb:128")
    with expandable_memory(device, needed):
        pass
    assert allocator == []
