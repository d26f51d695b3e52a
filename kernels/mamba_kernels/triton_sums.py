"""The GPU kernel that adds up what the programs of a backward kernel leave of parameters' gradients."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sum_parts(
    sums, dweight, dbias, count, channels, dweight_k, dweight_d, dweight_w, dbias_k, dbias_d,
    TAPS: tl.constexpr, TERMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add up one term of one set of parameters over ``count`` programs: a tap, or after the taps the bias."""
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    on_d = d < channels
    d64 = d.to(tl.int64)
    term = tl.program_id(1) % TERMS
    reading = (tl.program_id(1) // TERMS).to(tl.int64)
    each = tl.num_programs(1).to(tl.int64) * channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    sums += tl.program_id(1).to(tl.int64) * channels + d64[None, :]
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)
        total += tl.load(sums + row[:, None] * each, mask=(row < count)[:, None] & on_d[None, :], other=0.0)
    result = tl.sum(total, axis=0)
    tl.store(
        dweight + reading * dweight_k + d64 * dweight_d + term * dweight_w, result.to(dweight.dtype.element_ty),
        mask=on_d & (term < TAPS),
    )  # fmt: skip
    if TERMS > TAPS:
        tl.store(
            dbias + reading * dbias_k + d64 * dbias_d, result.to(dbias.dtype.element_ty), mask=on_d & (term == TAPS)
        )  # fmt: skip
