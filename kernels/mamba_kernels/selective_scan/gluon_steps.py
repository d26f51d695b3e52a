"""What the scan's Gluon kernels share: step sizes, decays, and tiles between global memory and registers."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
REAL = gl.constexpr(1)
RESET = gl.constexpr(2)


@gluon.jit
def exp2(x):
    """Return 2**x; results too small for a normal float32 are 0, which spares the rescaling around each of them."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def reciprocal(x):
    """Return 1 / x to a unit in the last place."""
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    return reciprocal(1.0 + exp2(x * -LOG2E))


@gluon.jit
def softplus(x):
    """Return log(1 + exp(x)), which is x itself from 20 on.

    It is max(x, 0) + log1p(e) with e = exp(-|x|) and log1p(e) / e a polynomial on [0, 1], to 2e-7 of its value: the
    hardware's logarithm loses the digits of results near 0, which small step sizes are made of.
    """
    e = exp2(gl.abs(x) * -LOG2E)
    p = e * 0.005253457929939032 - 0.02958850748836994
    p = p * e + 0.07836166769266129
    p = p * e - 0.13674770295619965
    p = p * e + 0.19111430644989014
    p = p * e - 0.24844369292259216
    p = p * e + 0.33319270610809326
    p = p * e - 0.49999502301216125
    p = p * e + 1.0
    return gl.maximum(x, 0.0) + e * p


@gluon.jit
def position(order, t, stop, length, WALK: gl.constexpr):
    """Return where in memory the positions ``t`` in reading order are."""
    if WALK == "order":
        return gl.load(order + t, mask=t < stop, other=0)
    elif WALK == "reverse":
        return length - 1 - t
    else:
        return t


@gluon.jit
def rows_of_tile(order, t0, stop, length, WALK: gl.constexpr, TILE: gl.constexpr):
    """Return where in memory the positions of the tile at ``t0`` are.

    TILE is the tile's shape and layout, and whether numbers within a sequence take 64 bits.

    Where they are looked up, that takes as long as a tile's own loads, which cannot begin before: rows are asked for a
    tile earlier than what lies there.
    """
    t = t0 + gl.arange(0, TILE[0], gl.SliceLayout(1, TILE[2]))
    return position(order, t, stop, length, WALK)


@gluon.jit
def offsets(index, stride, TILE: gl.constexpr):
    """Return index * stride, in 64 bits where a sequence reaches that far."""
    if TILE[3]:
        index = index.to(gl.int64)
    return index * stride


@gluon.jit
def load_tile(base, rows, t0, c0, row_stride, column_stride, stop, columns, TILE: gl.constexpr):
    """Return the tile (positions, columns) at ``rows`` and ``c0``, zero outside; its positions begin at ``t0``."""
    t = t0 + gl.arange(0, TILE[0], gl.SliceLayout(1, TILE[2]))
    c = c0 + gl.arange(0, TILE[1], gl.SliceLayout(0, TILE[2]))
    rows = gl.convert_layout(rows, gl.SliceLayout(1, TILE[2]))
    at = offsets(rows, row_stride, TILE)[:, None] + offsets(c, column_stride, TILE)[None, :]
    return gl.load(base + at, mask=(t < stop)[:, None] & (c < columns)[None, :], other=0.0)


@gluon.jit
def store_tile(base, tile, rows, t0, c0, row_stride, column_stride, stop, columns, TILE: gl.constexpr):
    """Write a tile where `load_tile` would read it."""
    t = t0 + gl.arange(0, TILE[0], gl.SliceLayout(1, TILE[2]))
    c = c0 + gl.arange(0, TILE[1], gl.SliceLayout(0, TILE[2]))
    rows = gl.convert_layout(rows, gl.SliceLayout(1, TILE[2]))
    at = offsets(rows, row_stride, TILE)[:, None] + offsets(c, column_stride, TILE)[None, :]
    tile = gl.convert_layout(tile.to(base.dtype.element_ty), TILE[2])
    gl.store(base + at, tile, mask=(t < stop)[:, None] & (c < columns)[None, :])


@gluon.jit
def keep_of(marks, t, stop):
    """Return 0 where position ``t`` resets the state, else 1."""
    return gl.where((gl.load(marks + t, mask=t < stop, other=0) & RESET) != 0, 0.0, 1.0)


@gluon.jit
def real_rows(marks, t0, stop, HAS_MARKS: gl.constexpr, TILE: gl.constexpr):
    """Return which of a tile's positions are tokens: inside the sequence and not padding."""
    t = t0 + gl.arange(0, TILE[0], gl.SliceLayout(1, TILE[2]))
    real = t < stop
    if HAS_MARKS:
        real = real & ((gl.load(marks + t, mask=real, other=0) & REAL) != 0)
    return real[:, None]


@gluon.jit
def in_groups(tile):
    """Return a tile (positions, columns) in shared memory as (positions / 4, 4, columns)."""
    STEPS: gl.constexpr = tile.shape[0]
    return tile._reinterpret(tile.dtype, [STEPS // 4, 4, tile.shape[1]], tile.layout)


@gluon.jit
def rows_of(four):
    """Return four vectors (columns) as the rows of one tile (4, columns)."""
    COLUMNS: gl.constexpr = four[0].shape[0]
    pairs = gl.join(gl.join(four[0], four[2]), gl.join(four[1], four[3]))
    return pairs.reshape([COLUMNS, 4]).permute((1, 0))


@gluon.constexpr_function
def _fold(lane):
    """Return the instructions that add two registers up over two lanes: the first in the lower, the second above."""
    return f"""{{
        .reg .b32 lane, kept, sent, received;
        .reg .pred high;
        mov.u32 lane, %laneid;
        and.b32 lane, lane, {lane};
        setp.ne.u32 high, lane, 0;
        selp.b32 kept, $2, $1, high;
        selp.b32 sent, $1, $2, high;
        shfl.sync.bfly.b32 received, sent, {lane}, 31, 0xffffffff;
        add.rn.f32 $0, kept, received;
    }}"""


@gluon.jit
def fold(x, LANE: gl.constexpr):
    """Return sums of ``x`` (..., 2) over pairs of lanes, LANE apart: x[..., 0] in the lower, x[..., 1] above.

    One exchange sums two registers, where a sum that every lane gets takes two: halving until one register is left
    costs as many exchanges as there are registers. What was a dimension of registers becomes one of lanes, which the
    result's layout cannot say: the caller reads it accordingly.
    """
    a, b = gl.split(x)
    return gl.inline_asm_elementwise(_fold(LANE), "=f,f,f", [a, b], dtype=gl.float32, is_pure=True, pack=1)


@gluon.constexpr_function
def tile_layout(steps, columns, warps):
    """Return the layout of a tile whose columns are neighbours in memory: up to 16 bytes of them a thread."""
    wide = max(1, min(8, columns * steps // (32 * warps), columns))
    across = min(32, columns // wide)
    return gl.BlockedLayout([1, wide], [32 // across, across], [warps, 1], [1, 0])


@gluon.constexpr_function
def read_layout(steps, columns, warps, time_fast):
    """Return the layout to read a tile in: that of `tile_layout`, unless positions are neighbours in memory."""
    if not time_fast:
        return tile_layout(steps, columns, warps)
    long = min(8, steps)
    return gl.BlockedLayout([long, 1], [steps // long, 32 * long // steps], [1, warps], [0, 1])


@gluon.constexpr_function
def rows_at_once(steps, columns, warps):
    """Return how many of a tile's rows the threads hold side by side, each thread one of them."""
    layout = tile_layout(steps, columns, warps)
    return min(steps, layout.threads_per_warp[0] * layout.warps_per_cta[0])
