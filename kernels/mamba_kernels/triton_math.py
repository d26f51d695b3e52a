"""Functions of single numbers in GPU kernels, as few instructions as float32 accuracy allows."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
MINUS_LOG2E = tl.constexpr(-1.4426950408889634)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)), 0 where that is too small for a normal float32.

    The hardware's exponential and reciprocal are accurate to a few units in the last place; what they are spared is the
    rescaling of numbers that sigmoid does not produce, half of its instructions.
    """
    if INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-x))
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 e;
            ex2.approx.ftz.f32 e, $1;
            add.ftz.f32 e, e, 0f3F800000;
            rcp.approx.ftz.f32 $0, e;
            }""",
            "=f,f", [x * MINUS_LOG2E], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def silu_slope(x):
    """Return the derivative of x sigmoid(x)."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))
