"""What the scan's Gluon kernels for one state share: a tile's segments, and what flows from one to the next.

A thread holds a segment: eight positions, one after another, of two channels. Two lanes after each other and all warps
after each other hold the segments of a tile, sixteen lanes beside each other its channels. What a segment does to what
enters it is a decay and a sum, and both are known before anything enters: every segment of a tile is worked on at once.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mamba_kernels.selective_scan.gluon_steps import fold, read_layout

CHANNELS = gl.constexpr(32)
LENGTH = gl.constexpr(8)


@gluon.constexpr_function
def tile_layout(warps):
    """Return the layout of a tile (positions, channels)."""
    return gl.BlockedLayout([8, 2], [2, 16], [warps, 1], [1, 0])


@gluon.constexpr_function
def segment_layout(warps):
    """Return the layout of what there is one of for each segment and channel."""
    return gl.BlockedLayout([1, 2], [2, 16], [warps, 1], [1, 0])


@gluon.constexpr_function
def memory_layout(warps, time_fast):
    """Return the layout to read and write a tile in."""
    return read_layout(16 * warps, 32, warps, True) if time_fast else tile_layout(warps)


@gluon.jit
def _quarters(x):
    """Return the four parts of x (..., 4)."""
    R: gl.constexpr = x.shape[0]
    C: gl.constexpr = x.shape[1]
    even, odd = gl.split(x.reshape([R, C, 2, 2]))
    x0, x2 = gl.split(even)
    x1, x3 = gl.split(odd)
    return x0, x1, x2, x3


@gluon.jit
def _joined(x0, x1, x2, x3):
    """Return four parts as (..., 4)."""
    R: gl.constexpr = x0.shape[0]
    C: gl.constexpr = x0.shape[1]
    return gl.join(gl.join(x0, x2), gl.join(x1, x3)).reshape([R, C, 4])


@gluon.jit
def positions_of(tile, SEGMENTS: gl.constexpr):
    """Return the eight positions of a tile's segments, each (segments, channels)."""
    R: gl.constexpr = tile.shape[0] // LENGTH
    C: gl.constexpr = tile.shape[1]
    eight = tile.reshape([R, LENGTH, C]).permute((0, 2, 1))
    even, odd = gl.split(eight.reshape([R, C, LENGTH // 2, 2]))
    x0, x2, x4, x6 = _quarters(even)
    x1, x3, x5, x7 = _quarters(odd)
    return (
        gl.convert_layout(x0, SEGMENTS, assert_trivial=True),
        gl.convert_layout(x1, SEGMENTS, assert_trivial=True),
        gl.convert_layout(x2, SEGMENTS, assert_trivial=True),
        gl.convert_layout(x3, SEGMENTS, assert_trivial=True),
        gl.convert_layout(x4, SEGMENTS, assert_trivial=True),
        gl.convert_layout(x5, SEGMENTS, assert_trivial=True),
        gl.convert_layout(x6, SEGMENTS, assert_trivial=True),
        gl.convert_layout(x7, SEGMENTS, assert_trivial=True),
    )


@gluon.jit
def tile_of(x, TILE: gl.constexpr):
    """Return the tile of eight positions of its segments."""
    R: gl.constexpr = x[0].shape[0]
    C: gl.constexpr = x[0].shape[1]
    even = _joined(x[0], x[2], x[4], x[6])
    odd = _joined(x[1], x[3], x[5], x[7])
    tile = gl.join(even, odd).reshape([R, C, LENGTH]).permute((0, 2, 1)).reshape([LENGTH * R, C])
    return gl.convert_layout(tile, TILE, assert_trivial=True)


@gluon.jit
def _lane_before(x):
    return gl.inline_asm_elementwise(
        "shfl.sync.up.b32 $0, $1, 16, 0, 0xffffffff;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _lane_after(x):
    return gl.inline_asm_elementwise(
        "shfl.sync.down.b32 $0, $1, 16, 31, 0xffffffff;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.constexpr_function
def _last(i, warps, reverse):
    """Return the last segment of the i-th warp that a value flows through."""
    return 2 * (warps - 1 - i) if reverse else 2 * i + 1


@gluon.jit
def flow(decay, added, entering, decays, sums, REVERSE: gl.constexpr, SEGMENTS: gl.constexpr):
    """Let a value through a tile's segments, each of which multiplies it by its decay and adds to it.

    Args:
        decay: Of each segment, (segments, channels).
        added: The same.
        entering: The value that enters the first segment, the last one with ``REVERSE``: (1, channels).
        decays: Shared memory (segments, channels).
        sums: The same.
        REVERSE: Whether it flows towards the past.
        SEGMENTS: The layout of ``decay`` and ``added``.

    Returns:
        What enters each segment, (segments, channels), and what leaves the last of them, (1, channels).
    """
    R: gl.constexpr = decay.shape[0]
    C: gl.constexpr = decay.shape[1]
    WARPS: gl.constexpr = R // 2
    segment = gl.arange(0, R, gl.SliceLayout(1, SEGMENTS))
    if REVERSE:
        other_decay, other_added = _lane_after(decay), _lane_after(added)
        second = (segment % 2 == 0)[:, None]
    else:
        other_decay, other_added = _lane_before(decay), _lane_before(added)
        second = (segment % 2 == 1)[:, None]
    decays.store(gl.where(second, decay * other_decay, decay))
    sums.store(gl.where(second, decay * other_added + added, added))
    enters = gl.zeros([R, C], gl.float32, SEGMENTS)
    for i in gl.static_range(WARPS):
        enters = gl.where((segment // 2 == _last(i, WARPS, REVERSE) // 2)[:, None], entering, enters)
        of_warp = decays.slice(_last(i, WARPS, REVERSE), 1, 0).load(SEGMENTS)
        entering = of_warp * entering + sums.slice(_last(i, WARPS, REVERSE), 1, 0).load(SEGMENTS)
    return gl.where(second, other_decay * enters + other_added, enters), entering


@gluon.jit
def sums_over_channels(x, y):
    """Return the sums of two tiles over their channels, (segments, 16).

    The sum of x at position p of a segment stands in column 2 * p, that of y beside it: each lane holds one.
    """
    T: gl.constexpr = x.shape[0]
    R: gl.constexpr = T // LENGTH
    ACROSS: gl.constexpr = x.shape[1] // 2
    x = gl.sum(x.reshape([T, ACROSS, 2]), axis=2)
    y = gl.sum(y.reshape([T, ACROSS, 2]), axis=2)
    x = fold(gl.join(x, y), 1)
    x = x.reshape([R, LENGTH, ACROSS]).permute((0, 2, 1))
    x = fold(x.reshape([R, ACROSS, 4, 2]), 2)
    x = fold(x.reshape([R, ACROSS, 2, 2]), 4)
    return fold(x, 8)
