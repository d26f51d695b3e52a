"""A thread pool for the CPU kernels, which release the interpreter's lock while they run.

Work is cut into tasks by the shapes alone, never by the number of threads, so results do not depend on how many run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """Drop the pool in a forked child, where its threads do not exist."""
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run_workers(worker: Callable[[], None], count: int) -> None:
    """Call ``worker`` on as many threads as ``torch.get_num_threads()`` and ``count`` allow, and wait for all.

    Args:
        worker: A function that takes task after task from a counter of its own until none is left, and releases the
            interpreter's lock for most of its time.
        count: Number of tasks; nothing is called if it is 0.
    """
    global _pool, _pool_size
    size = min(torch.get_num_threads(), count)
    if size <= 1:
        if count > 0:
            worker()
        return
    if _pool is None or _pool_size < size:
        _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="mamba-kernels"), size
    others = [_pool.submit(worker) for _ in range(size - 1)]
    try:
        worker()
    finally:
        wait(others)
    for other in others:
        other.result()


def run_tasks(task: Callable[[int], None], count: int) -> None:
    """Call ``task(i)`` for every i in ``range(count)`` on ``torch.get_num_threads()`` threads, and wait.

    Args:
        task: A function that releases the interpreter's lock for most of its time and writes only its own outputs.
        count: Number of tasks.
    """
    numbers = iter(range(count))  # taking the next one is atomic under the interpreter's lock

    def worker() -> None:
        for i in numbers:
            task(i)

    run_workers(worker, count)
