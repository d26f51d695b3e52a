"""What the scan's GPU kernels share: the step size, the decay, and columns of B and C as separate tensors."""

from __future__ import annotations

import os

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
REAL = tl.constexpr(1)
RESET = tl.constexpr(2)


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
def position(order, t, stop, length, WALK: tl.constexpr):
    """Return where in memory the ``t``-th position in reading order is."""
    if WALK == "order":
        return tl.load(order + t, mask=t < stop, other=0).to(tl.int64)
    elif WALK == "reverse":
        return length - 1 - t
    else:
        return t


@triton.jit
def columns(tile, N_PAD: tl.constexpr, STEPS: tl.constexpr):
    """Return the 2 or 4 columns of a tile (N_PAD, STEPS) as a tuple."""
    if STEPS == 2:
        first, second = tl.split(tile)
        return first, second
    else:
        even, odd = tl.split(tl.reshape(tile, [N_PAD, 2, 2]))
        c0, c2 = tl.split(even)
        c1, c3 = tl.split(odd)
        return c0, c1, c2, c3


@triton.jit
def carry_states(
    ends, decays, start, carried, parts, size,
    BACKWARD: tl.constexpr, HAS_START: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the state that enters each part of the sequence, from what each part adds and how far it decays.

    ``ends``, ``decays`` and ``carried`` are (B, parts, size); with ``BACKWARD`` the parts are walked from the last one.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    on = i < size
    state = tl.zeros([BLOCK], tl.float32)
    if HAS_START:
        state = tl.load(start + batch * size + i, mask=on, other=0.0)
    for k in range(parts):
        part = (parts - 1 - k) if BACKWARD else k
        at = (batch * parts + part) * size + i
        tl.store(carried + at, state, mask=on)
        state = tl.load(decays + at, mask=on, other=0.0) * state + tl.load(ends + at, mask=on, other=0.0)
