"""The sums of parameters' gradients that the programs of a backward kernel leave, added up in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, launch_grid
from mamba_kernels.launch import Launch
from mamba_kernels.memo import per_layout


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


@per_layout
def _plan(parts: Tensor, dweight: Tensor, dbias: Tensor | None) -> Launch:
    programs, sets, terms, channels = parts.shape
    # A part is one number a channel: few channels a program, so that many programs read at once.
    columns, rows = 16, min(256, max(16, 1 << (programs - 1).bit_length()))
    return Launch(
        sum_parts, launch_grid("sum_parts", ceil_divide(channels, columns), sets * terms),
        programs, channels, *dweight.stride(), *((0, 0) if dbias is None else dbias.stride()),
        TAPS=dweight.shape[2], TERMS=terms, ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip


def add_parts(parts: Tensor, dweight: Tensor, dbias: Tensor | None) -> None:
    """Write the gradients of K sets of weights and biases from the parts that P programs leave.

    Args:
        parts: (P, K, W + 1, D) float32, the last of the W + 1 being the bias'; (P, K, W, D) where there is none.
        dweight: (K, D, W), any strides.
        dbias: (K, D), any strides, or None.
    """
    _plan(parts, dweight, dbias)(parts, dweight, dweight if dbias is None else dbias)
