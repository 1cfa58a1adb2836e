"""Freed memory that stays in the process.

What the system does with freed pages depends on the holes that earlier work left in the heap, so each test observes it
in a new process.
"""

import resource
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from volseg.networks.cpu import malloc
from volseg.networks.cpu.malloc import keep_freed_memory, reusable_block

GLIBC = malloc._glibc("mallopt") is not None


def page_faults(blocks: int, megabytes: int = 16) -> int:
    """Pages that the system had to clear while `blocks` blocks were allocated and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def in_a_new_process(observe: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(observe).result()


def observe_blocks() -> tuple[int, ...]:
    outside = page_faults(4)
    with keep_freed_memory():
        # glibc looks for a hole a little larger than an aligned block, so some come before one fits.
        page_faults(12)
        inside = page_faults(4)
        held = resident_bytes()
    return outside, inside, held - resident_bytes()


def observe_large_blocks() -> tuple[int, ...]:
    with keep_freed_memory():
        page_faults(4, megabytes=48)
        cleared = page_faults(4, megabytes=48)
    with keep_freed_memory(large=True):
        page_faults(12, megabytes=48)
        kept = page_faults(4, megabytes=48)
        held = resident_bytes()
    return cleared, kept, held - resident_bytes()


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_blocks_are_reused_inside_and_returned_afterwards() -> None:
    outside, inside, returned = in_a_new_process(observe_blocks)
    assert inside < outside / 4
    assert returned > 8 << 20


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_large_blocks_are_reused_only_with_the_option() -> None:
    cleared, kept, returned = in_a_new_process(observe_large_blocks)
    assert kept < cleared / 8
    assert returned > 32 << 20


def test_afterwards_all_settings_but_one_are_the_initial_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[int, int] = {}
    monkeypatch.setattr(malloc, "_set", settings.update)
    with keep_freed_memory(large=True):
        assert settings == malloc.KEEP | malloc.KEEP_LARGE
    assert settings == malloc.START | {malloc.MMAP_THRESHOLD: malloc.KEEP[malloc.MMAP_THRESHOLD]}


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_the_last_thread_to_leave_restores_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[int, int]] = []
    monkeypatch.setattr(malloc, "_set", calls.append)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with keep_freed_memory():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with keep_freed_memory():
        thread.start()
        entered.wait()
    assert calls == [malloc.KEEP]
    leave.set()
    thread.join()
    assert calls == [malloc.KEEP, malloc.START]


def test_nothing_happens_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    with keep_freed_memory():
        assert float(torch.ones(8).sum()) == 8


def test_blocks_are_reused_once_everything_that_shares_them_is_gone() -> None:
    with keep_freed_memory():
        block = reusable_block(1 << 20)
        view = torch.from_numpy(block).view(torch.float32)[10:]
        place = block.ctypes.data
        del block
        other = reusable_block(1 << 20)
        assert other.ctypes.data != place
        del view
        assert reusable_block(1 << 19).ctypes.data != place
        assert reusable_block(1 << 20).ctypes.data == place
    assert not malloc._free


def test_outside_blocks_are_not_kept() -> None:
    reusable_block(1 << 20)
    assert not malloc._free[1 << 20]
