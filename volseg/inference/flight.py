"""Several scans at work at once, each in a thread of its own; their results in order."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from volseg.inference.room import room_together
from volseg.networks.cpu.malloc import keep_freed_memory
from volseg.progress import Progress

J = TypeVar("J")
R = TypeVar("R")


def in_flight(
    jobs: Iterable[J], size: Callable[[J], int], work: Callable[[J, Progress], R], at_once: int, progress: Progress
) -> Iterator[R]:
    """The results of all jobs, in order; while one waits for the device, others go through their other stages.

    Args:
        jobs: one scan each; taken from the caller's thread.
        size: bytes of memory that a job takes until its result is taken, roughly.
        work: called in a thread, with the job and what to report progress to, which may end it.
        at_once: the most jobs at work; fewer while they would exceed `room_together`.
        progress: called with the progress of each job, from its thread.
    """
    threads, given_up = torch.get_num_threads(), threading.Event()

    def show(stage: str, fraction: float, text: str) -> None:
        if given_up.is_set():
            raise KeyboardInterrupt
        progress(stage, fraction, text)

    with (
        keep_freed_memory(),
        ThreadPoolExecutor(
            at_once, "volseg-segment", initializer=torch.set_num_threads, initargs=(max(threads // at_once, 1),)
        ) as pool,
    ):
        try:
            waiting: deque[tuple[int, Future[R]]] = deque()
            room = room_together()
            for job in jobs:
                needed = size(job)
                while waiting and (len(waiting) > at_once or sum(each for each, _ in waiting) + needed > room):
                    yield waiting.popleft()[1].result()
                waiting.append((needed, pool.submit(work, job, show)))
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            # Nobody waits for the scans at work any more: they stop after the current window.
            given_up.set()
            pool.shutdown(cancel_futures=True)
            # torch applies what one thread sets to all threads that start later.
            torch.set_num_threads(threads)
