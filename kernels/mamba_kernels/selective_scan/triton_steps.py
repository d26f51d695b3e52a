"""What the scan's GPU kernels share: where positions lie, columns of B and C, and states carried over parts of time."""

from __future__ import annotations

import triton
import triton.language as tl

REAL = tl.constexpr(1)
RESET = tl.constexpr(2)
# Parts whose states are carried on at once.
AT_ONCE = tl.constexpr(16)


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
    Parts are read `AT_ONCE`: one after the other, each would wait for memory before the next is asked for.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    on = i < size
    state = tl.zeros([BLOCK], tl.float32)
    if HAS_START:
        state = tl.load(start + batch * size + i, mask=on, other=0.0)
    for first in range(0, parts, AT_ONCE):
        decay = ()
        end = ()
        for k in tl.static_range(AT_ONCE):
            part = (parts - 1 - first - k) if BACKWARD else first + k
            at = (batch * parts + part) * size + i
            inside = on & (first + k < parts)
            decay = decay + (tl.load(decays + at, mask=inside, other=0.0),)
            end = end + (tl.load(ends + at, mask=inside, other=0.0),)
        for k in tl.static_range(AT_ONCE):
            part = (parts - 1 - first - k) if BACKWARD else first + k
            at = (batch * parts + part) * size + i
            tl.store(carried + at, state, mask=on & (first + k < parts))
            state = decay[k] * state + end[k]
