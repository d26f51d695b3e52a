"""The launches of SSD's GPU kernels with given configurations: what shapes decide is planned once for each layout."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from mamba_kernels.checks import require
from mamba_kernels.gpu import ceil_divide, launch_grid, multiprocessors
from mamba_kernels.launch import Launch
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.routes.readings import Readings
from mamba_kernels.segments import segment_bits
from mamba_kernels.ssd import triton_plan
from mamba_kernels.ssd.triton_backward import gradients_of_groups, gradients_of_heads, total_parameters
from mamba_kernels.ssd.triton_forward import ssd_forward
from mamba_kernels.ssd.triton_plan import Config, Tiles
from mamba_kernels.ssd.triton_states import carry_states, walk_states
from mamba_kernels.ssd.triton_steps import prepare_steps

OPERANDS = {"bf16": (tl.bfloat16, torch.bfloat16), "fp32": (tl.float32, torch.float32)}
FIELDS = 7
Limits = tuple[float, float]


class _Sizes(NamedTuple):
    """The sizes of a problem and of its tiles; ``heads`` and ``groups`` are those of all readings of a route."""

    batch: int
    readings: int
    length: int
    heads: int
    width: int
    groups: int
    states: int
    tiles: Tiles
    chunk: int
    padded: int
    field: int
    part_chunks: int
    parts: int
    wide: bool

    @property
    def shared(self) -> int:
        """The heads that share a group's B and C."""
        return self.heads // self.groups

    @property
    def reading_heads(self) -> int:
        """The heads of one reading."""
        return self.heads // self.readings

    @property
    def chunks(self) -> int:
        """The chunks of a sequence."""
        return self.padded // self.chunk

    @property
    def programs(self) -> int:
        """The programs that walk a part of all sequences."""
        return self.batch * self.heads * self.tiles.blocks

    def constants(self) -> dict[str, Any]:
        """The constants of the kernels with matrix products."""
        tiles = self.tiles
        return {
            "EXACT": tiles.precision == "tf32x3",
            "WIDE": self.wide,
            "ALL_N": self.states == tiles.state,
            "ALL_P": self.width == tiles.block * tiles.blocks,
            "OPERAND": OPERANDS[tiles.operand][0],
            "PRECISION": tiles.precision,
            "CHUNK": self.chunk,
            "N_PAD": tiles.state,
            "BLOCK": tiles.block,
            "BLOCKS": tiles.blocks,
        }


class _Options(NamedTuple):
    """What of a problem is not a tensor, and whether some tensors are there."""

    softplus: bool
    limit: Limits
    has_marks: bool
    reverse: bool
    routed: bool = False
    wide: bool = False

    def reading(self) -> dict[str, bool]:
        """Return the kernels' constants of how positions are read."""
        return {"HAS_MARKS": self.has_marks, "REVERSE": self.reverse, "ROUTED": self.routed}


class _Forward(NamedTuple):
    sizes: _Sizes
    prepare: Launch
    ends: Launch | None
    carry: Launch | None
    run: Launch


class _Backward(NamedTuple):
    sizes: _Sizes
    splits: int
    terms: int
    prepare: Launch
    ends: Launch | None
    carry: Launch | None
    keep: Launch
    of_heads: Launch
    of_groups: Launch
    total: Launch


def parts(x: Tensor, B: Tensor, C: Tensor, backward: bool) -> int:
    """Return into how many parts a pass cuts the sequences."""
    tiles = triton_plan.tiles(x, B, C)
    batch, readings, length, heads, _ = _by_reading(x).shape
    programs, wanted = batch * readings * heads * tiles.blocks, triton_plan.PROGRAMS_WANTED
    if backward:  # Both directions are walked in one launch, and that is all there is to cut.
        programs, wanted = 2 * programs, triton_plan.walking_programs(tiles.operand, tiles.state)
    return triton_plan.parts(programs, length, multiprocessors(x.device), wanted)


def is_wide(x: Tensor, B: Tensor, C: Tensor, *others: Tensor | None) -> bool:
    """Return whether the kernels have to count in 64 bits within a tile of these tensors or of what belongs to them."""
    layouts = [(t.stride(-3), t.stride(-1), t.shape[-1]) for t in (x, B, C, *others) if t is not None]
    # Results need not lie as what they belong to: on a route they are contiguous.
    layouts += [(_dense(t)[2], _dense(t)[4], t.shape[-1]) for t in (x, B, C)]
    # The rows of a chunk lie side by side, or on a route anywhere.
    return triton_plan.needs_64_bits(x.shape[2] if x.dim() == 5 else triton_plan.LONGEST_CHUNK, *layouts)


def _sizes(x: Tensor, B: Tensor, C: Tensor, chunk: int, wide: bool, *, backward: bool) -> _Sizes:
    batch, readings, length, heads, width = _by_reading(x).shape
    groups, states = (readings * B.shape[-2], B.shape[-1])
    heads *= readings
    tiles = triton_plan.tiles(x, B, C)
    padded = ceil_divide(length, chunk) * chunk
    part_chunks = ceil_divide(padded // chunk, parts(x, B, C, backward))
    field = batch * heads * padded
    require(
        (FIELDS - 1) * field < 2**31,
        f"ssd: the GPU kernels count step sizes in 32 bits, and {batch} sequences of {length} with {heads} heads have "
        "too many",
        "split the batch or the sequences",
    )
    return _Sizes(
        batch, readings, length, heads, width, groups, states, tiles, chunk, padded, field,
        part_chunks, ceil_divide(padded // chunk, part_chunks), wide,
    )  # fmt: skip


def _by_reading(x: Tensor) -> Tensor:
    """Return (B, L, H, P) as (B, 1, L, H, P); on a route it has the dimension of the readings already."""
    return x if x.dim() == 5 else x[:, None]


def _strides(x: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0, 0) if x is None else _by_reading(x).stride()


def _step_strides(dt: Tensor) -> tuple[int, ...]:
    return (dt if dt.dim() == 4 else dt[:, None]).stride()


def _gate_strides(z: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if z is None else z.stride()


def _skip_strides(D: Tensor | None) -> tuple[int, int]:
    """Return the strides of D, 0 over the channels where they share one."""
    if D is None:
        return 0, 0
    return (D.stride(0), 0) if D.dim() == 1 else (D.stride(0), D.stride(1))


def _dense(x: Tensor) -> tuple[int, ...]:
    """Return the strides of the gradient of ``x``, (B, K, L, ...); on a route it is contiguous, whatever x is."""
    if x.dim() == 5:
        return torch.empty(x.shape, device="meta").stride()
    return _by_reading(_like(x)).stride()


def _dense_steps(dt: Tensor) -> tuple[int, ...]:
    """Return the strides of the gradient of the step sizes, (B, K, L, H)."""
    return torch.empty(dt.shape, device="meta").stride() if dt.dim() == 4 else _step_strides(_like(dt))


def _like(x: Tensor) -> Tensor:
    # Not x.to("meta"), which may order dimensions in another way where some are broadcast.
    return empty_in_order(torch.empty_strided(x.shape, x.stride(), device="meta"))


def _plan_prepare(sizes: _Sizes, dt: Tensor, A: Tensor, bias: Tensor | None, options: _Options, slopes: bool) -> Launch:
    heads = min(8, triton_plan.next_power_of_2(sizes.heads))
    return Launch(
        prepare_steps,
        launch_grid("ssd", sizes.batch * sizes.chunks, ceil_divide(sizes.heads, heads)),
        sizes.length, sizes.heads, sizes.reading_heads, sizes.padded, sizes.field, *_step_strides(dt), A.stride(0),
        0 if bias is None else bias.stride(0), *options.limit,
        SOFTPLUS=options.softplus, HAS_BIAS=bias is not None, **options.reading(),
        EXACT=sizes.tiles.precision == "tf32x3", SLOPES=slopes, CHUNK=sizes.chunk, HEADS=heads, num_warps=4,
    )  # fmt: skip


def _plan_walk(
    sizes: _Sizes, config: Config, x: Tensor, B: Tensor, dout: Tensor | None, C: Tensor, z: Tensor | None,
    options: _Options, *, keep: bool, enters: bool, denters: bool,
) -> Launch:  # fmt: skip
    directions = 1 if dout is None else 2
    tiles = sizes.tiles
    tile = tiles.state * tiles.block
    return Launch(
        walk_states,
        launch_grid("ssd", sizes.programs, sizes.parts, directions),
        sizes.length, sizes.heads, sizes.reading_heads, sizes.shared, sizes.width, sizes.states, sizes.padded,
        sizes.field, sizes.part_chunks, sizes.programs * sizes.parts * tile, sizes.programs * sizes.chunks * tile,
        *_strides(x), *_strides(B), *_strides(dout), *_strides(C), *_gate_strides(z),
        KEEP=keep, HAS_Z=z is not None and dout is not None, HAS_ENTERING=enters, HAS_DLEAVING=denters,
        IN_PARTS=sizes.parts > 1, **options.reading(), **sizes.constants(), **config.options(),
    )  # fmt: skip


def _plan_carry(sizes: _Sizes, directions: int, enters: bool, denters: bool) -> Launch:
    tiles = sizes.tiles
    rows = min(16, tiles.state)
    return Launch(
        carry_states, launch_grid("ssd", sizes.programs, tiles.state // rows, directions),
        sizes.heads, sizes.width, sizes.states, sizes.parts, sizes.programs * sizes.parts * tiles.state * tiles.block,
        HAS_ENTERING=enters, HAS_DLEAVING=denters, N_PAD=tiles.state, BLOCK=tiles.block, BLOCKS=tiles.blocks,
        ROWS=rows, num_warps=4,
    )  # fmt: skip


@per_layout
def _plan_forward(
    configs: tuple[Config, Config], x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, bias: Tensor | None, options: _Options, enters: bool, save: bool,
) -> _Forward:  # fmt: skip
    walking, config = configs
    sizes = _sizes(x, B, C, walking.chunk, options.wide or is_wide(x, B, C, z), backward=False)
    ends = carry = None
    if sizes.parts > 1:
        ends = _plan_walk(sizes, walking, x, B, None, C, None, options, keep=False, enters=False, denters=False)
        carry = _plan_carry(sizes, 1, enters, False)
    run = Launch(
        ssd_forward, launch_grid("ssd", sizes.programs, sizes.parts),
        sizes.length, sizes.heads, sizes.reading_heads, sizes.shared, sizes.width, sizes.states, sizes.padded,
        sizes.field, sizes.part_chunks, *_strides(x), *_strides(B), *_strides(C), *_skip_strides(D),
        *_gate_strides(z), *_dense(x),
        HAS_D=D is not None, HAS_Z=z is not None, HAS_ENTERING=enters, IN_PARTS=sizes.parts > 1, SAVE=save,
        **options.reading(), **sizes.constants(), **config.options(),
    )  # fmt: skip
    return _Forward(sizes, _plan_prepare(sizes, dt, A, bias, options, False), ends, carry, run)


@per_layout
def _plan_backward(
    configs: tuple[Config, Config, Config], dout: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, bias: Tensor | None, options: _Options, enters: bool, denters: bool,
) -> _Backward:  # fmt: skip
    walking, of_heads, of_groups = configs
    sizes = _sizes(x, B, C, walking.chunk, options.wide or is_wide(x, B, C, z, dout), backward=True)
    ends = carry = None
    if sizes.parts > 1:
        ends = _plan_walk(sizes, walking, x, B, dout, C, z, options, keep=False, enters=enters, denters=denters)
        carry = _plan_carry(sizes, 2, enters, denters)
    keep = _plan_walk(sizes, walking, x, B, dout, C, z, options, keep=True, enters=enters, denters=denters)
    groups = sizes.batch * sizes.chunks * sizes.groups
    splits = triton_plan.splits(2 * groups, sizes.shared, multiprocessors(x.device))
    if splits == 1:
        dB, dC = ((*_dense(M), 0) for M in (B, C))
    else:
        dB = dC = (*torch.empty(_by_reading(B).shape, device="meta").stride(), B.numel())
    common = (
        sizes.reading_heads, sizes.shared, sizes.width, sizes.states, sizes.padded, sizes.field,
        sizes.programs * sizes.chunks * sizes.tiles.state * sizes.tiles.block,
        *_strides(x), *_strides(B), *_strides(C),
    )  # fmt: skip
    constants = {"HAS_Z": z is not None, **options.reading(), **sizes.constants()}
    of_y = _dense(x)
    heads = Launch(
        gradients_of_heads, launch_grid("ssd", sizes.batch * sizes.chunks * sizes.heads),
        sizes.length, sizes.heads, *common,
        A.stride(0), *_skip_strides(D), *_gate_strides(z), *_strides(dout), of_y[0], *of_y[2:], *_dense(x),
        *_dense_steps(dt), *_gate_strides(None if z is None else _like(z)),
        HAS_D=D is not None, D_VARIES=D is not None and D.dim() == 2, SLICE=triton_plan.state_slice(sizes.tiles),
        **constants, **of_heads.options(),
    )  # fmt: skip
    matrices = Launch(
        gradients_of_groups, launch_grid("ssd", groups * splits, 2),
        sizes.length, sizes.heads, sizes.groups, splits, *common, *_gate_strides(z), *_strides(dout), *dB, *dC,
        **constants, **of_groups.options(),
    )  # fmt: skip
    varies = D is not None and D.dim() == 2
    terms = 2 + (sizes.width if varies else 1)
    columns = 16
    total = Launch(
        total_parameters, launch_grid("ssd", ceil_divide(sizes.heads * terms, columns)),
        sizes.batch * sizes.chunks, sizes.heads, sizes.width,
        *(_skip_strides(None) if D is None else (*_like(D).stride(), 0)[:2]),
        HAS_D=D is not None, D_VARIES=varies, HAS_BIAS=bias is not None, ROWS=128, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    prepare = _plan_prepare(sizes, dt, A, bias, options, True)
    return _Backward(sizes, splits, terms, prepare, ends, carry, keep, heads, matrices, total)


class _Order(NamedTuple):
    """What kernels look positions up in: the bits of each, and where a route reads it."""

    marks: Tensor | None
    order: Tensor | None


def _order(seq_idx: Tensor | None, reverse: bool, readings: Readings | None) -> _Order:
    """Return the bits of each position in reading order, if there are segments, and a route's order."""
    if readings is None:
        marks = None if seq_idx is None else segment_bits(seq_idx.flip(1) if reverse else seq_idx)
    else:
        marks = readings.marks
    # In 32 bits: Triton lays the operands of some products out for the narrowest type it finds behind them, masks too.
    return _Order(None if marks is None else marks.int(), None if readings is None else readings.order)


def _new(x: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=x.device)


def _state(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()


def _gradient_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return memory for what lies as `_dense` says."""
    if x.dim() == 5:
        return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    return empty_in_order(x, dtype)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: Limits,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
    save: bool,
    configs: tuple[Config, Config],
    readings: Readings | None = None,
    wide: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the final states, and the output before the gate (nothing unless ``save`` and a gate).

    The arguments are those of `ssd`, already checked, and its configurations. With the ``readings`` of a route x, B and
    C are (B, K, L, ...), dt (B, K, L, H), A, D and dt_bias hold all readings' heads, and there is no gate, no initial
    state, no segment but the route's; the output is (B, K, L, H, P), each reading's on the grid. ``wide`` counts in 64
    bits where 32 would do.
    """
    marks, order = _order(seq_idx, reverse, readings)
    options = _Options(dt_softplus, dt_limit, marks is not None, reverse, readings is not None, wide)
    save = save and z is not None
    plan = _plan_forward(configs, x, dt, A, B, C, D, z, dt_bias, options, initial_states is not None, save)
    sizes = plan.sizes
    y = _gradient_like(x, out_dtype)
    ungated = torch.empty_like(y) if save else y.new_empty(0)
    final = _new(x, sizes.batch, sizes.heads, sizes.width, sizes.states)
    steps = _new(x, FIELDS, sizes.field)
    entering = _state(initial_states)
    given_marks, given_order, given_entering = (x if t is None else t for t in (marks, order, entering))
    plan.prepare(dt, A, A if dt_bias is None else dt_bias, given_marks, given_order, steps)
    carried = steps
    if plan.ends is not None and plan.carry is not None:
        carried, decays = _parts(x, sizes, 1)
        plan.ends(x, B, x, C, x, given_marks, given_order, steps, given_entering, x, carried, decays, x, x)
        plan.carry(given_entering, x, carried, decays)
    plan.run(
        x, B, C, x if D is None else D, x if z is None else z, given_marks, given_order, steps, given_entering, carried,
        y, ungated, final,
    )  # fmt: skip
    return y, final, ungated


def _parts(x: Tensor, sizes: _Sizes, directions: int) -> tuple[Tensor, Tensor]:
    """Return memory for what parts add, and for their decays."""
    tile = sizes.tiles.state * sizes.tiles.block
    return (
        _new(x, directions, sizes.programs * sizes.parts * tile),
        _new(x, sizes.batch * sizes.parts * sizes.heads),
    )


def backward(
    grad_out: Tensor,
    grad_final_states: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: Limits,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    ungated: Tensor,
    configs: tuple[Config, Config, Config],
    readings: Readings | None = None,
    wide: bool = False,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, dt, A, B, C, D, z, dt_bias and initial_states, empty for absent inputs.

    With the ``readings`` of a route ``grad_out`` is (B, K, L, H, P), and so are the gradients as `forward` has it;
    ``wide`` is that of `forward`.
    """
    marks, order = _order(seq_idx, reverse, readings)
    options = _Options(dt_softplus, dt_limit, marks is not None, reverse, readings is not None, wide)
    enters, denters = initial_states is not None, grad_final_states is not None
    plan = _plan_backward(configs, grad_out, x, dt, A, B, C, D, z, dt_bias, options, enters, denters)
    sizes, tiles = plan.sizes, plan.sizes.tiles

    def like(t: Tensor | None) -> Tensor:
        return x.new_empty(0) if t is None else empty_in_order(t)

    dx, dB, dC = map(_gradient_like, (x, B, C))
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device) if readings is not None else like(dt)
    dA, dD, dz, dbias = map(like, (A, D, z, dt_bias))
    entering, dleaving = _state(initial_states), _state(grad_final_states)
    given_marks, given_order, given_entering, given_dleaving = (
        x if t is None else t for t in (marks, order, entering, dleaving)
    )
    given_z = x if z is None else z
    steps = _new(x, FIELDS, sizes.field)
    plan.prepare(dt, A, A if dt_bias is None else dt_bias, given_marks, given_order, steps)
    dinitial = _new(x, sizes.batch, sizes.heads, sizes.width, sizes.states)
    kept = _new(
        x, 2, sizes.programs * sizes.chunks * tiles.state * tiles.block, dtype=OPERANDS[tiles.operand][1]
    )  # fmt: skip
    walked = (x, B, grad_out, C, given_z, given_marks, given_order, steps, given_entering, given_dleaving)
    ends = decays = dinitial
    if plan.ends is not None and plan.carry is not None:
        ends, decays = _parts(x, sizes, 2)
        plan.ends(*walked, ends, decays, kept, dinitial)
        plan.carry(given_entering, given_dleaving, ends, decays)
    plan.keep(*walked, ends, decays, kept, dinitial)

    split = plan.splits > 1
    dB_parts, dC_parts = (_new(x, plan.splits, *M.shape) if split else gradient for M, gradient in ((B, dB), (C, dC)))
    sums = _new(x, sizes.batch * sizes.chunks, sizes.heads, plan.terms)
    dscores = _new(x, sizes.batch * sizes.chunks * sizes.heads, sizes.chunk**2, dtype=OPERANDS[tiles.operand][1])
    plan.of_heads(
        x, B, C, A, x if D is None else D, given_z, given_marks, given_order, steps, kept, grad_out, ungated, dx, ddt,
        dz, dscores, sums,
    )  # fmt: skip
    plan.of_groups(
        x, B, C, given_z, given_marks, given_order, steps, kept, grad_out, dscores, dB_parts, dC_parts
    )  # fmt: skip
    plan.total(sums, dA, dbias, dD)
    if split:
        dB.copy_(dB_parts.sum(0))
        dC.copy_(dC_parts.sum(0))
    dstart = x.new_empty(0) if initial_states is None else like(initial_states).copy_(dinitial)
    return dx, ddt, dA, dB, dC, dD, dz, dbias, dstart
