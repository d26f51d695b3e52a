"""What a GPU can do at most, measured on it: the rates that operators' times are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl

BLOCK = 1024
ROUNDS = 1024


class Ceilings(NamedTuple):
    """The rates of one GPU.

    Args:
        bytes_per_second: Of a copy in its memory, bytes read and bytes written.
        exponentials_per_second: Of independent float32 numbers in registers.
    """

    bytes_per_second: float
    exponentials_per_second: float

    def milliseconds(self, size: float, exponentials: float = 0) -> float:
        """Return the least time for moving ``size`` bytes and computing ``exponentials`` beside it."""
        return 1e3 * max(size / self.bytes_per_second, exponentials / self.exponentials_per_second)


@triton.jit
def exponentials(out, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute ROUNDS exponentials of each of BLOCK numbers, one after the other, all in registers."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = at.to(tl.float32) * 1e-6
    for _ in range(ROUNDS):
        x = tl.exp2(-x)
    tl.store(out + at, x)


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure a GPU's rates; takes a fraction of a second and 2 GiB of its memory."""
    with torch.cuda.device(device):
        source = torch.randn(2**28, device=device)
        target = torch.empty_like(source)
        copy = _milliseconds(lambda: target.copy_(source))
        programs = 64 * torch.cuda.get_device_properties(device).multi_processor_count
        compute = _milliseconds(lambda: exponentials[(programs,)](target, ROUNDS=ROUNDS, BLOCK=BLOCK, num_warps=4))
    return Ceilings(2 * source.nbytes / (1e-3 * copy), programs * BLOCK * ROUNDS / (1e-3 * compute))


def _milliseconds(run: Callable[[], object]) -> float:
    return triton.testing.do_bench(run, warmup=20, rep=60, return_mode="median")
