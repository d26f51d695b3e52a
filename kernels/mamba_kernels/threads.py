"""A thread pool for the CPU kernels, which release the interpreter's lock while they run.

Work is cut into tasks by the shapes alone, never by the number of threads, so results do not depend on how many run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """Drop the pool in a forked child, where its threads do not exist."""
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run_tasks(task: Callable[[int], None], count: int) -> None:
    """Call ``task(i)`` for every i in ``range(count)`` on ``torch.get_num_threads()`` threads, and wait.

    Args:
        task: A function that releases the interpreter's lock for most of its time and writes only its own outputs.
        count: Number of tasks, at least 1.
    """
    global _pool, _pool_size
    size = min(torch.get_num_threads(), count)
    if size <= 1:
        for i in range(count):
            task(i)
        return
    if _pool is None or _pool_size < size:
        _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="mamba-kernels"), size

    def share(worker: int) -> None:
        for i in range(worker, count, size):
            task(i)

    waiting: Sequence = [_pool.submit(share, worker) for worker in range(1, size)]
    share(0)
    for future in waiting:
        future.result()
