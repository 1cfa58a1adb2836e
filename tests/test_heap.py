"""The heap that keeps what is freed."""

import resource
import threading

import pytest
import torch

from volseg import heap
from volseg.heap import kept_block, kept_heap

GLIBC = heap._glibc("mallopt") is not None


def page_faults(blocks: int, megabytes: int = 16) -> int:
    """Pages the system had to clear while `blocks` blocks came and went."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_blocks_are_used_again_inside_and_given_back_afterwards() -> None:
    outside = page_faults(4)
    with kept_heap():
        # glibc looks for a hole a little larger than an aligned block, so some come before one fits.
        page_faults(12)
        inside = page_faults(4)
        held = resident_bytes()
    assert inside < outside / 4
    assert resident_bytes() < held - (1 << 23)


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_large_blocks_are_used_again_only_where_that_is_asked_for() -> None:
    with kept_heap():
        page_faults(4, megabytes=48)
        cleared = page_faults(4, megabytes=48)
    with kept_heap(large=True):
        page_faults(12, megabytes=48)
        kept = page_faults(4, megabytes=48)
        held = resident_bytes()
    assert kept < cleared / 8
    assert resident_bytes() < held - (32 << 20)
    page_faults(1, megabytes=48)
    assert page_faults(4, megabytes=48) > cleared / 2


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_the_last_thread_to_leave_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[int, int]] = []
    monkeypatch.setattr(heap, "_set", calls.append)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with kept_heap():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with kept_heap():
        thread.start()
        entered.wait()
    assert calls == [heap.KEEP]
    leave.set()
    thread.join()
    assert calls == [heap.KEEP, heap.START]


def test_nothing_happens_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    with kept_heap():
        assert float(torch.ones(8).sum()) == 8


def test_blocks_come_again_inside_once_all_that_shares_them_is_gone() -> None:
    with kept_heap():
        block = kept_block(1 << 20)
        view = torch.from_numpy(block).view(torch.float32)[10:]
        place = block.ctypes.data
        del block
        other = kept_block(1 << 20)
        assert other.ctypes.data != place
        del view
        assert kept_block(1 << 19).ctypes.data != place
        assert kept_block(1 << 20).ctypes.data == place
    assert not heap._free


def test_outside_blocks_are_not_kept() -> None:
    kept_block(1 << 20)
    assert not heap._free[1 << 20]
