"""Functions of single numbers in GPU kernels, as few instructions as float32 accuracy allows."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
LOG2E = tl.constexpr(1.4426950408889634)
MINUS_LOG2E = tl.constexpr(-1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp2(x):
    """Return 2**x; results too small for a normal float32 are 0, which spares the rescaling around each of them."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)), the identity above 20.

    It is max(x, 0) + log1p(e) with e = exp(-|x|), by the series of the inverse hyperbolic tangent: the hardware's
    logarithm loses the digits of results near 0, which small step sizes are made of.
    """
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    p = q * (1.0 / 15) + 1.0 / 13
    p = p * q + 1.0 / 11
    p = p * q + 1.0 / 9
    p = p * q + 1.0 / 7
    p = p * q + 1.0 / 5
    p = p * q + 1.0 / 3
    p = p * q + 1.0
    return tl.where(x > 20.0, x, tl.maximum(x, 0.0) + 2.0 * s * p)


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
